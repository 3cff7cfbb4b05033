"""What people ask of this process while it works: what is open, why this one, end that one.

Commands come through the inbox of the proxy in the store, on which one long read waits, so an answer takes
milliseconds and costs nothing while nobody asks. What is open is shown once a second, for as long as somebody asked a
moment ago (`SHOWN_SECONDS`); beyond `ROWS_KEPT` only the oldest requests, for those are the ones that hurt.
"""

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Callable

import structlog

from nebula_core.errors import NebulaError
from nebula_core.records.inflight import (
    ROWS_KEPT,
    SHOWN_SECONDS,
    CommandAnswer,
    InflightReport,
    ProxyCommand,
)
from nebula_core.store.store import Store
from nebula_proxy.traffic.plane import OpenExchange, Plane

log = structlog.get_logger(__name__)

#: How long one read of the inbox waits.
BLOCK_SECONDS = 10.0
#: While the store is away.
PAUSE_SECONDS = 0.5


class Inquiries:
    """Answers commands for one plane. `clock` answers monotonic seconds."""

    def __init__(self, plane: Plane, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._plane = plane
        self._store = store
        self._clock = clock
        # The name of a proxy is of one process: whatever is in its inbox is for this one.
        self._cursor: str | None = None
        self._shown_until = float("-inf")

    @property
    def shown(self) -> bool:
        """Somebody watches."""
        return self._clock() < self._shown_until

    async def listen(self) -> None:
        """One read of the inbox; commands are carried out in their order."""
        try:
            commands, self._cursor = await self._store.proxy_commands(self._plane.proxy, self._cursor, BLOCK_SECONDS)
            for command in commands:
                await self._obey(command)
        except NebulaError:
            # The watcher says that the store is away. What was not answered is asked again by whoever asked.
            await asyncio.sleep(PAUSE_SECONDS)

    async def show(self) -> None:
        """Once a second: what is open, while somebody watches."""
        if self.shown:
            await self._publish()

    async def _publish(self) -> None:
        try:
            await self._store.publish_inflight(self.report())
        except NebulaError:
            return  # the watcher says that the store is away

    async def _obey(self, command: ProxyCommand) -> None:
        if command.kind == "show":
            self._shown_until = self._clock() + SHOWN_SECONDS
            await self._publish()
            return
        found = self._find(command.request or "")
        # As it stood before it is cancelled: a record of the end is written by its end.
        record = self._plane.recorder.waiting(command.request or "") if found is None else found.record("asked")
        if found is not None and command.kind == "cancel":
            log.info("request_cancelled", request_id=command.request, by=command.by)
            found.cancel()
        await self._store.answer_command(
            command.id, CommandAnswer(proxy=self._plane.proxy, found=record is not None, record=record)
        )

    def _find(self, request: str) -> OpenExchange | None:
        name = request.encode("ascii", "replace")
        # Of two with the same id (a client chose it) the older one first, so that repeating reaches the other.
        same = [one for one in self._plane.ledger if one.request_id == name]
        return min(same, key=lambda one: one.at, default=None)

    def report(self) -> InflightReport:
        """What is open now."""
        now = self._clock()
        open_now = list(self._plane.ledger)
        rows = [one.glance(now) for one in heapq.nsmallest(ROWS_KEPT, open_now, key=lambda one: one.at)]
        phases = Counter(one.phase for one in open_now)
        return InflightReport(
            proxy=self._plane.proxy,
            at=time.time(),
            total=len(open_now),
            waiting=phases["waiting"],
            prefill=phases["prefill"],
            streaming=phases["streaming"],
            running=phases["running"],
            stalled=sum(row.stalled is not None for row in rows),
            rows=tuple(rows),
        )
