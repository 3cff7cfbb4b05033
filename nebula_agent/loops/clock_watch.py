"""Compares this node's clock with the store's now and then, and raises what is found."""

import time

import structlog

from nebula_agent.decisions.clock_skew import ClockReading, clock_problem
from nebula_agent.loops.context import Context
from nebula_core.errors import StoreUnavailable
from nebula_core.store.store import Store

log = structlog.get_logger(__name__)

EVERY_SECONDS = 30.0


async def read_clocks(store: Store, wall: float, monotonic: float) -> ClockReading:
    """Asks the store; `wall` and `monotonic` are now. Raises StoreUnavailable."""
    there = await store.clock()
    took = time.monotonic() - monotonic
    return ClockReading(wall + took / 2, there, took)


class ClockWatch:
    """`iterate` is one question."""

    def __init__(self, context: Context, store: Store) -> None:
        self._context = context
        self._store = store

    async def iterate(self) -> None:
        try:
            reading = await read_clocks(self._store, self._context.clock.wall(), time.monotonic())
        except StoreUnavailable:
            return  # the watcher says so already
        ahead = reading.ahead_seconds
        if ahead is None:
            return
        problem = clock_problem(ahead)
        if self._context.problems.set("clock", problem):
            log.warning("clock_skew", ahead_seconds=round(ahead, 1), over=problem is None)
            self._context.changed()
