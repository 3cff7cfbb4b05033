"""Which replica holds the beginning of a prompt, as far as this process has sent it there itself.

**Theory.** One table for all replicas of a model: digest of a prefix → the replicas that were sent it, as a mask of
bits. A prompt is entered whole, so a replica that holds a digest holds all before it: the masks of a chain only shrink
with depth, and the longest match is found by binary search, whatever the number of replicas.

*Forgetting.* Engines drop what was used least recently, a volume of tokens ago. The index does the same in whole
generations: entries go into the newest, a look-up asks all eight, and the oldest is dropped as a whole. So nothing is
ever walked through, and the tail of a prefix never outlives its head. A generation is closed after an eighth of

* the volume the engines' caches hold (`capacity_bytes`, divided by the number of proxies that fill them),
* the bound on entries (`most_entries`),
* half an hour: what nobody asked for so long is not counted on.

Every use enters the prefix anew, so what is used stays. Generated tokens take room in a cache too and are not seen here;
an engine's own figures are never asked for, because its hit rate is an aggregate and feeds the rich (issue 3, part 3).

*Another start of an engine* has an empty cache: it gets a bit of its own, and the old one is struck out of every
generation by one mask. A bit is given again only when no generation has ever seen it.

*Several processes* have an index each, of what they route themselves. Once a second each tells the others the last
digest of every prompt it sent and where to (`told`, `learn`): 20 B a request, and just what the next turn of a conversation
begins with. For a prefix that is new to all the tie between equals is broken by consistent hashing (`rendezvous`), which
all do alike, so they agree while loads allow.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from nebula_proxy.decisions.prompt import ENDS

GENERATIONS = 8
MOST_ENTRIES = 200_000
KEPT_SECONDS = 1800.0
#: Different depths looked for in one generation; replicas that share less are counted with the first block alone.
_DEPTHS = 6
#: Prompts told to other processes at most at once.
MOST_TOLD = 1024


class _Generation:
    __slots__ = ("alive", "entries", "ever", "filled_bytes", "since")

    def __init__(self, live: int, now: float) -> None:
        self.entries: dict[int, int] = {}
        #: Bits that count, and bits that may stand in the entries.
        self.alive = live
        self.ever = live
        self.filled_bytes = 0
        self.since = now


class PrefixIndex:
    """The index of one model in one process."""

    def __init__(self, now: float = 0.0, *, most_entries: int = MOST_ENTRIES) -> None:
        self.most_entries = most_entries
        #: Bytes of prompts that the caches of all replicas hold, divided by the proxies that fill them; None unknown.
        self.capacity_bytes: int | None = None
        #: Whether there are other processes that want to be told.
        self.telling = False
        self._fresh: list[tuple[int, int]] = []
        #: Last digests of prompts that others sent, in two ages, and the bits that may stand in them.
        self._ends: dict[int, int] = {}
        self._older_ends: dict[int, int] = {}
        self._ends_ever = 0
        self._older_ends_ever = 0
        self._rotations = 0
        self._live = 0
        self._seats: dict[tuple[str, str | None], int] = {}
        self._generations: deque[_Generation] = deque([_Generation(0, now)])

    def __len__(self) -> int:
        """Entries of all generations; never above `most_entries` by more than one prompt."""
        own = sum(len(generation.entries) for generation in self._generations)
        return own + len(self._ends) + len(self._older_ends)

    def seat(self, replica: str, engine_epoch: str | None) -> int:
        """The bit of this start of an engine: the same for the same one, a fresh one for every other."""
        bit = self._seats.get((replica, engine_epoch))
        if bit is None:
            taken = self._live | self._ends_ever | self._older_ends_ever
            for generation in self._generations:
                taken |= generation.ever
            bit = ~taken & (taken + 1)
            self._seats[replica, engine_epoch] = bit
            self._live |= bit
            newest = self._generations[-1]
            newest.alive |= bit
            newest.ever |= bit
        return bit

    def keep_only(self, epochs: dict[str, str | None]) -> None:
        """Forgets replicas that are gone and engines that were started anew; `epochs` are those that are there."""
        for seat in [seat for seat in self._seats if seat[0] not in epochs or epochs[seat[0]] != seat[1]]:
            bit = self._seats.pop(seat)
            self._live &= ~bit
            for generation in self._generations:
                generation.alive &= ~bit

    def insert(self, chain: Sequence[int], bit: int, now: float) -> None:
        """Notes that a prompt was sent to the replica of that seat."""
        if not chain:
            return
        newest = self._generations[-1]
        if now - newest.since >= KEPT_SECONDS / GENERATIONS:
            newest = self._rotate(now)
        entries = newest.entries
        at = len(chain)
        # From the end: what is known of a prompt is known up to there.
        while at:
            digest = chain[at - 1]
            holders = entries.get(digest, 0)
            if holders & bit:
                break
            entries[digest] = holders | bit if holders else bit
            at -= 1
        if self.telling and at < len(chain) and len(self._fresh) < MOST_TOLD:
            self._fresh.append((chain[-1], bit))
        newest.filled_bytes += ENDS[len(chain) - 1] - (ENDS[at - 1] if at else 0)
        capacity = self.capacity_bytes
        if len(entries) * GENERATIONS >= self.most_entries or (
            capacity is not None and newest.filled_bytes * GENERATIONS >= capacity
        ):
            self._rotate(now)

    def told(self) -> dict[str, list[int]]:
        """What was sent since the last time, for other processes: last digests by replica."""
        fresh, self._fresh = self._fresh, []
        names = {bit: replica for (replica, _), bit in self._seats.items()}
        told: dict[str, list[int]] = {}
        for digest, bit in fresh:
            if bit in names:
                told.setdefault(names[bit], []).append(digest)
        return told

    def learn(self, digests: Iterable[int], bit: int) -> None:
        """Another process sent prompts with these last digests to the replica of that seat."""
        ends = self._ends
        for digest in digests:
            ends[digest] = ends.get(digest, 0) | bit
        self._ends_ever |= bit
        if len(ends) * 4 >= self.most_entries:
            self._age_ends()

    def match(self, chain: Sequence[int]) -> list[tuple[int, int]]:
        """(depth, mask), deepest first: these replicas, and none before in the list, hold the first `depth` digests."""
        if not chain:
            return []
        found: list[tuple[int, int]] = []
        for generation in self._generations:
            get = generation.entries.get
            left = get(chain[0], 0) & generation.alive
            if not left:
                continue
            high = len(chain)
            for _ in range(_DEPTHS):
                low = 1
                while low < high:
                    middle = (low + high + 1) >> 1
                    if get(chain[middle - 1], 0) & left:
                        low = middle
                    else:
                        high = middle - 1
                mask = get(chain[low - 1], 0) & left
                found.append((low, mask))
                left &= ~mask
                if not left:
                    break
                high = low
            else:
                found.append((1, left))
        if self._ends or self._older_ends:
            ends, older = self._ends.get, self._older_ends.get
            for depth in range(len(chain), 0, -1):
                digest = chain[depth - 1]
                if mask := (ends(digest, 0) | older(digest, 0)) & self._live:
                    found.append((depth, mask))
                    break
        if len(found) < 2:
            return found
        found.sort(reverse=True)
        seen = 0
        groups: list[tuple[int, int]] = []
        for depth, mask in found:
            fresh = mask & ~seen
            if fresh:
                seen |= fresh
                groups.append((depth, fresh))
        return groups

    def _age_ends(self) -> None:
        self._older_ends, self._ends = self._ends, {}
        self._older_ends_ever, self._ends_ever = self._ends_ever, 0

    def _rotate(self, now: float) -> _Generation:
        self._rotations += 1
        if self._rotations % (GENERATIONS // 2) == 0:
            self._age_ends()
        newest = _Generation(self._live, now)
        self._generations.append(newest)
        if len(self._generations) > GENERATIONS:
            self._generations.popleft()
        oldest_allowed = now - KEPT_SECONDS
        while self._generations[0].since < oldest_allowed and len(self._generations) > 1:
            self._generations.popleft()
        return newest
