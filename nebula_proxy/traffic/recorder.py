"""Decision records on their way to the store: taken when a request ends, written in batches by a task of its own.

At most `MAX_WAITING` wait; beyond it, and beyond the allowance of a second, records are counted instead. No request
ever waits for the store.
"""

from collections.abc import Callable

from nebula_core.errors import NebulaError
from nebula_core.records.decision import DecisionRecord
from nebula_core.store.store import Store
from nebula_proxy.decisions.sampling import Sampling

MAX_WAITING = 2000
BATCH = 100


class Recorder:
    """One process's records."""

    def __init__(self, sampling: Sampling | None = None) -> None:
        self.sampling = sampling or Sampling()
        self._waiting: list[DecisionRecord] = []
        #: Written, and lost: the allowance was spent, or the store was away for too long.
        self.written = self.dropped = 0
        self.floor_left = self.sampling.floor
        self._left = self.sampling.most
        self._rejected_left = self.sampling.most_rejected

    def tick(self) -> None:
        """A new second, a new allowance."""
        sampling = self.sampling
        self.floor_left, self._left, self._rejected_left = sampling.floor, sampling.most, sampling.most_rejected

    def take(self, reason: str, make: Callable[[], DecisionRecord]) -> None:
        """Keeps what `make` makes, if there is room for it."""
        if reason == "floor":
            self.floor_left -= 1
        elif reason == "rejected":
            if self._rejected_left <= 0:
                self.dropped += 1
                return
            self._rejected_left -= 1
        if self._left <= 0 or len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        self._left -= 1
        self._waiting.append(make())

    def waiting(self, request: str) -> DecisionRecord | None:
        """The record of a request that ended a moment ago and is not written yet."""
        return next((record for record in reversed(self._waiting) if record.id == request), None)

    def __len__(self) -> int:
        return len(self._waiting)

    async def flush(self, store: Store) -> None:
        """Writes what waits. While the store is away it is kept, up to the bound."""
        while self._waiting:
            batch = self._waiting[:BATCH]
            try:
                await store.append_requests(batch)
            except NebulaError:
                return  # the watcher says that the store is away
            del self._waiting[: len(batch)]
            self.written += len(batch)
