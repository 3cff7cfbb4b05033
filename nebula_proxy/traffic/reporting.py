"""What this process says of itself once a second: the proxy report, and what keeps the table's clock honest."""

import os
import time
from collections.abc import Callable

from nebula_core import __version__
from nebula_core.errors import NebulaError
from nebula_core.records.report import ProxyReport
from nebula_core.store.store import Store
from nebula_proxy.traffic.plane import Plane


class Reporter:
    """Makes and publishes reports. `connections` counts the clients' open connections."""

    def __init__(self, plane: Plane, store: Store, connections: Callable[[], int]) -> None:
        self._plane = plane
        self._store = store
        self._connections = connections
        self._sequence = 0
        self._started_at = time.time()

    def report(self, now: float) -> ProxyReport:
        plane = self._plane
        plane.meters.read(now)
        self._sequence += 1
        return ProxyReport(
            proxy=plane.proxy,
            sequence=self._sequence,
            pid=os.getpid(),
            version=__version__,
            at=time.time(),
            started_at=self._started_at,
            revision=plane.table.revision,
            inflight=dict(plane.ledger.replicas),
            models=plane.meters.traffic(),
            connections=self._connections(),
            ejected=plane.ejections.reasons(now),
            draining=plane.draining,
        )

    async def publish(self) -> bool:
        """One report; False when the store is away, which the watcher already says."""
        report = self.report(time.monotonic())
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
