"""What this process says of itself once a second: the proxy report, and what keeps the table's clock honest."""

import asyncio
import os
import time
from collections.abc import Callable

from nebula_core import __version__
from nebula_core.errors import NebulaError
from nebula_core.records.base import revised
from nebula_core.records.report import ProxyReport
from nebula_core.store.store import Store
from nebula_proxy.traffic.plane import Plane

#: What cannot wait for the next second is told at once, but not more often than that.
ALARM_SECONDS = 0.2


class Reporter:
    """Makes and publishes reports. `connections` counts the clients' open connections."""

    def __init__(self, plane: Plane, store: Store, connections: Callable[[], int]) -> None:
        self._plane = plane
        self._store = store
        self._connections = connections
        self._sequence = 0
        self._started_at = time.time()
        self._latest: ProxyReport | None = None
        #: One report at a time: the latest wins, so they must not overtake each other.
        self._turn = asyncio.Lock()

    def report(self, now: float) -> ProxyReport:
        plane = self._plane
        plane.meters.read(now)
        self._sequence += 1
        suspects, acquitted = plane.quarantine.told(now)
        return ProxyReport(
            proxy=plane.proxy,
            sequence=self._sequence,
            pid=os.getpid(),
            version=__version__,
            at=time.time(),
            started_at=self._started_at,
            revision=plane.table.revision,
            inflight=dict(plane.ledger.replicas),
            unread_bytes=dict(plane.ledger.unread),
            responses=plane.responses.told(now),
            prefixes=plane.table.told_prefixes(),
            models=plane.meters.traffic(),
            connections=self._connections(),
            ejected=plane.ejections.reasons(now),
            suspects=suspects,
            acquitted=acquitted,
            draining=plane.draining,
        )

    async def publish(self) -> bool:
        """One report; False when the store is away, which the watcher already says."""
        async with self._turn:
            self._latest = self.report(time.monotonic())
            return await self._send(self._latest)

    async def alarm(self) -> None:
        """Waits until an engine has died under a request, and tells what is held against that: its client may come again soon.

        All else is said again as it was: a reader may miss the report between.
        """
        quarantine = self._plane.quarantine
        await quarantine.news.wait()
        quarantine.news.clear()
        async with self._turn:
            if self._latest is None:
                return  # the first report is on its way
            self._sequence += 1
            suspects, acquitted = quarantine.told(time.monotonic())
            changes = {"sequence": self._sequence, "suspects": suspects, "acquitted": acquitted}
            self._latest = revised(self._latest, changes)
            await self._send(self._latest)
        await asyncio.sleep(ALARM_SECONDS)

    async def _send(self, report: ProxyReport) -> bool:
        try:
            await self._store.publish_proxy(report)
        except NebulaError:
            return False
        return True

    async def withdraw(self) -> None:
        """The process ends on purpose: nobody shall wait for its word."""
        try:
            await self._store.withdraw_proxy(self._plane.proxy)
        except NebulaError:
            return
