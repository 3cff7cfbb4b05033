"""Several logs as one, by time; how many lines a second, and what the pane is doing, in words.

Lines of several replicas arrive a little out of order (each comes by its own stream), so the merger holds every line for
`HOLD_SECONDS` before it lets it go, sorted by the time it was written. A line that is later than that is let through
where it is: order is a help for the eye, and no line is ever lost for it.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from nebula_tui.presenters.cells import Severity, count, short_count
from nebula_tui.presenters.loglines import Level, LogEntry, LogFilter
from nebula_tui.presenters.states import short_replica
from nebula_tui.presenters.text import Span, TextLine, plural

HOLD_SECONDS: Final = 0.25
RATE_SECONDS: Final = 240


class Merger:
    """`add` lines as they come with the reader's monotonic `now`; `take` those whose time has come."""

    def __init__(self, hold_seconds: float = HOLD_SECONDS) -> None:
        self.hold_seconds = hold_seconds
        self._held: list[tuple[float, float, int, LogEntry]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, entries: Iterable[LogEntry], now: float) -> None:
        for entry in entries:
            self._number += 1
            self._held.append((entry.at, now, self._number, entry))

    def take(self, now: float) -> list[LogEntry]:
        """Everything that was held long enough, and what was written before it."""
        due = [item for item in self._held if now - item[1] >= self.hold_seconds]
        if not due:
            return []
        newest = max(item[0] for item in due)
        out = [item for item in self._held if item[0] <= newest]
        self._held = [item for item in self._held if item[0] > newest]
        out.sort(key=lambda item: (item[0], item[2]))
        return [item[3] for item in out]


class Rates:
    """Lines per second of the last minutes, all and errors."""

    def __init__(self) -> None:
        self.total: deque[int] = deque(maxlen=RATE_SECONDS)
        self.errors: deque[int] = deque(maxlen=RATE_SECONDS)
        self._total = 0
        self._errors = 0

    def count(self, entries: Iterable[LogEntry]) -> None:
        for entry in entries:
            self._total += 1
            if entry.level >= Level.ERROR:
                self._errors += 1

    def tick(self) -> None:
        """Once a second."""
        self.total.append(self._total)
        self.errors.append(self._errors)
        self._total = self._errors = 0

    @property
    def per_second(self) -> float | None:
        newest = list(self.total)[-5:]
        return sum(newest) / len(newest) if newest else None


def source_line(replicas: Sequence[str], broken: Sequence[str], rates: Rates) -> TextLine:
    """`2 sources: demo/r1, demo/r2 ▏merged by time ▏12 l/s`."""
    if not replicas:
        return ((" no source: choose a replica on screen 3 and press l, or :logs NAME", Severity.DIM),)
    names = ", ".join(short_replica(replica) for replica in replicas)
    spans: list[Span] = [(f" {plural(len(replicas), 'source')}: {names}", Severity.NORMAL)]
    if len(replicas) > 1:
        spans += [(" ▏", Severity.DIM), ("merged by time", Severity.NORMAL)]
    spans += [(" ▏", Severity.DIM), (f"{short_count(rates.per_second)} lines/s", Severity.NORMAL)]
    if broken:
        names = ", ".join(short_replica(replica) for replica in broken)
        spans += [(" ▏", Severity.DIM), (f"● not connected: {names}", Severity.WARN)]
    return tuple(spans)


def status_line(
    *,
    search: str,
    hits: int,
    hit: int | None,
    scanning: bool,
    filter: LogFilter,  # noqa: A002 - the word of the screen
    kept: int,
    capacity: int,
    lost: int,
    following: bool,
) -> TextLine:
    """`/preempt ▏hit 3 of 214 ▏level ≥INFO ▏ring 61k/100k ▏0 lost ▏● FOLLOW`."""
    bar: Span = (" ▏", Severity.DIM)
    spans: list[Span] = [(f" /{search}" if search else " / search", Severity.ACCENT if search else Severity.DIM)]
    if search:
        found = f"hit {count(hit)} of {count(hits)}" if hit is not None else f"{count(hits)} hits"
        spans += [bar, (found + (" …" if scanning else ""), Severity.NORMAL)]
    if filter.level > Level.TRACE:
        spans += [bar, (f"level ≥{filter.level.name}", Severity.NORMAL)]
    spans += [span for word in filter.include for span in (bar, (f"& {word}", Severity.NORMAL))]
    spans += [span for word in filter.exclude for span in (bar, (f"- {word}", Severity.NORMAL))]
    spans += [bar, (f"ring {short_count(kept)}/{short_count(capacity)}", Severity.NORMAL)]
    spans += [bar, (f"{count(lost)} lost", Severity.WARN if lost else Severity.NORMAL)]
    spans += [bar, ("● FOLLOW", Severity.OK) if following else ("‖ reading, f follows", Severity.WARN)]
    return tuple(spans)
