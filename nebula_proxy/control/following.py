"""Streams that follow something in the store: lines of a replica, events, the audit.

Each is a loop of short questions, so that a hundred followers hold no connection of the store while they wait. Agents
send lines only while somebody asks for them; asking is renewed here, and the first lines of a replica that nobody
watched take a moment to come.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

import structlog

from nebula_core.errors import NebulaError
from nebula_core.records.event import Audit, Event
from nebula_core.records.views import LogLine
from nebula_core.runtime.clock import Clock
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher
from nebula_proxy.control.answers import KEEPALIVE, KEEPALIVE_SECONDS, error_event, sse
from nebula_proxy.control.watching import WatchHub

log = structlog.get_logger(__name__)

LINES_AT_ONCE: Final = 500
#: As many as a replica's stream keeps: a follower that is this far behind misses the rest.
MOST_AT_ONCE: Final = 10_000
ENTRIES_AT_ONCE: Final = 200
#: Between two looks for lines: shortest while they flow, longest while it is quiet.
SHORTEST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 0.5
#: The store forgets after 15 s that somebody watches.
RENEW_SECONDS: Final = 5.0
#: How long the first lines of a replica nobody watched may take, and the quiet that says they are complete.
FIRST_LINES_SECONDS: Final = 2.5
QUIET_SECONDS: Final = 0.4
#: Entries of the audit of other processes are looked for so often; events come by the hub.
LOOK_SECONDS: Final = 1.0

Entry = TypeVar("Entry", Event, Audit)


class Follower:
    def __init__(self, store: Store, watcher: Watcher, hub: WatchHub, clock: Clock) -> None:
        self._store = store
        self._watcher = watcher
        self._hub = hub
        self._clock = clock

    # -- lines -----------------------------------------------------------------------------------------------------

    async def last_lines(self, replica: str, tail: int, since_seconds: float | None) -> list[LogLine]:
        """The newest lines, waiting a moment for the agent when nobody watched. Raises StoreUnavailable."""
        began = self._clock.monotonic()
        await self._store.watch_logs(replica)
        lines: list[LogLine] = []
        cursor: str | None = None
        grew = began
        while True:
            fresh, cursor = await self._read_on(replica, cursor, tail)
            now = self._clock.monotonic()
            if fresh:
                lines = _last([*lines, *fresh], tail)
                grew = now
            if now - began >= FIRST_LINES_SECONDS or (lines and now - grew >= QUIET_SECONDS):
                return self._young(lines, since_seconds)
            await asyncio.sleep(SHORTEST_PAUSE)

    async def lines(self, replica: str, tail: int, since_seconds: float | None) -> AsyncGenerator[bytes]:
        """What there is (at most `tail` lines), then what comes, until the replica is gone."""
        with self._hub.stream():
            try:
                async for chunk in self._lines(replica, tail, since_seconds):
                    yield chunk
            except NebulaError as error:
                yield error_event(error)

    async def _lines(self, replica: str, tail: int, since_seconds: float | None) -> AsyncGenerator[bytes]:
        cursor: str | None = None
        renewed = spoke = float("-inf")
        pause = SHORTEST_PAUSE
        while not self._hub.closed.is_set():
            now = self._clock.monotonic()
            if now - renewed >= RENEW_SECONDS:
                await self._store.watch_logs(replica)
                renewed = now
            first = cursor is None
            fresh, cursor = await self._read_on(replica, cursor, tail if first else MOST_AT_ONCE)
            if fresh:
                spoke, pause = now, SHORTEST_PAUSE
                lines = self._young(fresh, since_seconds) if first else fresh
                yield b"".join(sse("line", line.to_json(), line.id) for line in lines) or KEEPALIVE
            elif now - spoke >= KEEPALIVE_SECONDS:
                spoke = now
                yield KEEPALIVE
            if not fresh:
                if self._is_gone(replica):
                    yield sse("end", '{"reason":"the replica is gone"}')
                    return
                pause = min(LONGEST_PAUSE, pause * 1.5)
            await self._pause(pause)

    async def _read_on(self, replica: str, cursor: str | None, keep: int) -> tuple[list[LogLine], str | None]:
        """Reads to the end of what there is after the cursor; the last `keep` lines and the new cursor."""
        lines: list[LogLine] = []
        while True:
            fresh = await self._store.read_logs(replica, cursor, LINES_AT_ONCE)
            if fresh:
                cursor = fresh[-1].id
                lines = _last([*lines, *fresh], keep)
            if len(fresh) < LINES_AT_ONCE:
                return lines, cursor

    def _is_gone(self, replica: str) -> bool:
        view = self._watcher.snapshot
        return self._watcher.reachable and replica not in view.placements and replica not in view.replicas()

    def _young(self, lines: Sequence[LogLine], since_seconds: float | None) -> list[LogLine]:
        if since_seconds is None:
            return list(lines)
        # The node's clock against ours: for a person's "the last ten minutes" that is near enough.
        oldest = self._clock.wall() - since_seconds
        return [line for line in lines if line.at >= oldest]

    # -- events and audit ------------------------------------------------------------------------------------------

    async def events(self, after: str | None) -> AsyncGenerator[bytes]:
        """Events after an id, None: from now on."""
        async for chunk in self._entries("event", self._store.read_events, after, self._hub.event_turn):
            yield chunk

    async def audit(self, after: str | None) -> AsyncGenerator[bytes]:
        async for chunk in self._entries("audit", self._store.read_audit, after, self._pause):
            yield chunk

    async def _entries(
        self,
        name: str,
        read: Callable[[str | None, int], Awaitable[list[Entry]]],
        after: str | None,
        wait: Callable[[float], Awaitable[None]],
    ) -> AsyncGenerator[bytes]:
        with self._hub.stream():
            try:
                if after is None:
                    newest = await read(None, 1)
                    after = newest[-1].id if newest else "0-0"
                spoke = self._clock.monotonic()
                yield KEEPALIVE
                while not self._hub.closed.is_set():
                    entries = await read(after, ENTRIES_AT_ONCE)
                    now = self._clock.monotonic()
                    if entries:
                        after, spoke = entries[-1].id, now
                        yield b"".join(sse(name, entry.to_json(), entry.id) for entry in entries)
                        continue
                    if now - spoke >= KEEPALIVE_SECONDS:
                        spoke = now
                        yield KEEPALIVE
                    await wait(LOOK_SECONDS)
            except NebulaError as error:
                yield error_event(error)

    async def _pause(self, seconds: float) -> None:
        """Ends early when the process does."""
        try:
            async with asyncio.timeout(seconds):
                await self._hub.closed.wait()
        except TimeoutError:
            return


def _last(lines: list[LogLine], count: int) -> list[LogLine]:
    return lines[-count:] if count else []
