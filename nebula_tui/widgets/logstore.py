"""A bounded ring of log lines, and scans over it that work in slices. Knows no Textual.

Lines are numbered from 0 for ever; the ring keeps the newest. Memory goes by whole chunks, so keeping it bounded costs
nothing per line. A `Scan` finds the lines that pass a test: new lines as they come, old ones backwards from the newest in
steps, so that what the operator looks at is answered first and no step is long.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from nebula_tui.presenters.loglines import LogEntry

CHUNK: Final = 1000


class LogStore:
    """`first` is the number of the oldest line kept, `end` one past the newest."""

    def __init__(self, capacity: int = 100_000) -> None:
        self.capacity = max(capacity, 1)
        self.first = 0
        self.end = 0
        self._base = 0  # number of the first line in memory; up to a chunk of them is no longer kept
        self._chunks: deque[list[LogEntry]] = deque()

    def __len__(self) -> int:
        return self.end - self.first

    def append(self, entries: Sequence[LogEntry]) -> None:
        at, left = 0, len(entries)
        while left:
            if not self._chunks or len(self._chunks[-1]) == CHUNK:
                self._chunks.append([])
            taken = min(left, CHUNK - len(self._chunks[-1]))
            self._chunks[-1].extend(entries[at : at + taken])
            at, left = at + taken, left - taken
            self.end += taken
            self.first = max(self.first, self.end - self.capacity)
            while self.first - self._base >= CHUNK:
                self._chunks.popleft()
                self._base += CHUNK

    def __getitem__(self, number: int) -> LogEntry:
        """The line of that number; IndexError when it is not kept (any more)."""
        if not self.first <= number < self.end:
            raise IndexError(number)
        place = number - self._base
        return self._chunks[place // CHUNK][place % CHUNK]

    def slice(self, low: int, high: int) -> Iterator[tuple[int, LogEntry]]:
        """Lines low..high-1 that are kept, with their numbers."""
        low, high = max(low, self.first), min(high, self.end)
        while low < high:
            place = low - self._base
            chunk = self._chunks[place // CHUNK]
            start = place % CHUNK
            stop = min(CHUNK, start + high - low)
            yield from enumerate(chunk[start:stop], low)
            low += stop - start

    def clear(self) -> None:
        self._chunks.clear()
        self.first = self._base = self.end


class Scan:
    """Numbers of the lines that pass a test, ascending, as far as the scan has come."""

    def __init__(self, store: LogStore, test: Callable[[LogEntry], object]) -> None:
        self._store = store
        self._test = test
        self._found: list[int] = []
        self._gone = 0
        self._low = self._high = store.end

    @property
    def done(self) -> bool:
        return self._low <= self._store.first

    def step(self, lines: int) -> None:
        """Looks at the next older `lines` lines."""
        low = max(self._store.first, self._low - lines)
        test = self._test
        self._found = [n for n, entry in self._store.slice(low, self._low) if test(entry)] + self._found[self._gone :]
        self._gone = 0
        self._low = low

    def catch_up(self) -> None:
        """Looks at the lines that came since, and forgets those that left the ring."""
        test = self._test
        self._found += [n for n, entry in self._store.slice(self._high, self._store.end) if test(entry)]
        self._high = self._store.end
        self._gone = bisect_left(self._found, self._store.first, self._gone)
        if self._gone > 4 * CHUNK:
            del self._found[: self._gone]
            self._gone = 0

    def __len__(self) -> int:
        return len(self._found) - self._gone

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._found[self._gone + place]

    def place(self, number: int) -> int:
        """How many found lines come before line `number`."""
        return bisect_left(self._found, number, self._gone) - self._gone

    def after(self, number: int) -> int | None:
        """The next found line after `number`."""
        at = bisect_right(self._found, number, self._gone)
        return self._found[at] if at < len(self._found) else None

    def before(self, number: int) -> int | None:
        at = bisect_left(self._found, number, self._gone)
        return self._found[at - 1] if at > self._gone else None

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._found, number, self._gone)
        return at < len(self._found) and self._found[at] == number


class Whole:
    """The same face as `Scan` for "every line": a view without a filter."""

    done = True

    def __init__(self, store: LogStore) -> None:
        self._store = store

    def step(self, lines: int) -> None:
        """Nothing to look for."""

    def catch_up(self) -> None:
        """Nothing to remember."""

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._store.first + place

    def place(self, number: int) -> int:
        return max(0, min(number, self._store.end) - self._store.first)


def drop_oldest(pending: deque[LogEntry], entries: Iterable[LogEntry], limit: int) -> int:
    """Adds to a bounded queue; the number of lines (and of lines behind gaps) that had to go."""
    pending.extend(entries)
    lost = 0
    while len(pending) > limit:
        lost += pending.popleft().gap or 1
    return lost
