"""A clock that stands still until a test moves it."""

import asyncio
import heapq
import itertools


class FakeClock:
    """Implements `nebula_core.runtime.clock.Clock`; `advance` wakes the sleepers whose time has come, in order."""

    def __init__(self, monotonic: float = 1_000.0, wall: float = 1_700_000_000.0) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._wall

    def step_wall(self, seconds: float) -> None:
        """The wall clock jumps, the monotonic one does not."""
        self._wall += seconds

    @property
    def sleepers(self) -> int:
        return sum(not waiting.done() for _, _, waiting in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), waiting))
        await waiting

    async def advance(self, seconds: float) -> None:
        """Moves both clocks, stopping at each sleeper so that what it starts next is counted from its own moment."""
        end = self._monotonic + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, waiting = heapq.heappop(self._sleepers)
            self._wall += due - self._monotonic
            self._monotonic = due
            if not waiting.done():
                waiting.set_result(None)
            await settle()
        self._wall += end - self._monotonic
        self._monotonic = end
        await settle()

    async def until_sleepers(self, count: int) -> None:
        """Gives the loop turns until `count` tasks sleep; fails after many turns instead of hanging."""
        for _ in range(10_000):
            if self.sleepers >= count:
                return
            await asyncio.sleep(0)
        raise AssertionError(f"only {self.sleepers} of {count} tasks went to sleep")


async def settle(turns: int = 20) -> None:
    """Lets everything that is ready run."""
    for _ in range(turns):
        await asyncio.sleep(0)
