"""From what the watcher hears to the routing table: only what changed is looked at anew, and never for long at a time.

Figures go straight into the routes (`RoutingReports` hands them to the table). What comes here is the rest: a replica
that is ready or gone, a deployment, a placement, a key. Each node's replicas are weighed once (`_Place`) and kept; a
change makes its node be weighed again, and then the models concerned be put together anew from what is kept. After a
resync that is every node of the cluster, so the work is done in slices, between which streams go on. The table's
revision, which acknowledges drains, moves when all of it is done.
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from nebula_core.records.endpoint import Endpoint, Seen, endpoint_of, view_of
from nebula_core.records.event import Change, ChangeKind
from nebula_core.records.replica import STARTING
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.store.routing_reports import RoutingReports
from nebula_core.store.watcher import Changed
from nebula_proxy.traffic.plane import Plane

log = structlog.get_logger(__name__)

#: The loop is held for so long at a time.
SLICE_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class _Place:
    """One replica of a node as routing sees it; `endpoint` when requests may go there."""

    replica: str
    deployment: str
    model: str
    starting: bool
    endpoint: Endpoint | None


class TableFeeder:
    """Give `reports` to the watcher and `take` to its listeners."""

    def __init__(self, plane: Plane) -> None:
        self.reports = RoutingReports(plane.table, plane.proxy)
        #: How often the table was put together anew.
        self.changes = 0
        self._authenticator = plane.authenticator
        self._table = plane.table
        self._responses = plane.responses
        self._quarantine = plane.quarantine
        self._snapshot = ClusterSnapshot()
        self._places: dict[str, tuple[_Place, ...]] = {}
        #: Nodes that have replicas of a model.
        self._homes: dict[str, set[str]] = {}
        #: Models that are in the table.
        self._shown: set[str] = set()
        #: What is still to be looked at.
        self._nodes: set[str] = set()
        self._models: set[str] = set()
        self._due: asyncio.Handle | None = None

    def take(self, snapshot: ClusterSnapshot, changed: Changed) -> None:
        """The watcher's listener."""
        self._snapshot = snapshot
        self._authenticator.update(snapshot.keys)
        self._responses.follow(self.reports.own_proxy, snapshot.proxies.values())
        self._quarantine.follow(self.reports.own_proxy, snapshot.proxies.values())
        if changed.resynced:
            self._nodes.update(self.reports.nodes, self._places)
            self._models.update(snapshot.deployments, self._shown)
        self._nodes |= changed.nodes
        self._mark(changed.durable)
        if self._due is not None:
            return
        if changed.resynced or changed.nodes or snapshot.revision != self._table.revision:
            self._work()
        else:
            self._table.count_elsewhere(snapshot.proxies, time.monotonic())

    def forget(self, nodes: Iterable[str]) -> None:
        """Lets go of nodes nobody reports."""
        for name in nodes:
            log.info("node_forgotten", node=name, reason="known from disk alone, and not heard of since")
            del self.reports.nodes[name]
            self._nodes.add(name)
        if self._nodes and self._due is None:
            self._work()

    def tick(self, now: float) -> None:
        """Once a second: proxies that fell silent are believed no longer."""
        self._table.count_elsewhere(self._snapshot.proxies, now)

    def stop(self) -> None:
        if self._due is not None:
            self._due.cancel()

    def _mark(self, changes: Iterable[Change]) -> None:
        deployments = {change.id for change in changes if change.kind is ChangeKind.DEPLOYMENT}
        replicas = {change.id for change in changes if change.kind is ChangeKind.PLACEMENT}
        if not deployments and not replicas:
            return
        self._models |= deployments
        for name, places in self._places.items():
            if any(place.replica in replicas or place.deployment in deployments for place in places):
                self._nodes.add(name)

    def _work(self) -> None:
        """Goes on with what is to be looked at; what does not fit into this slice is done in the next."""
        self._due = None
        until = time.perf_counter() + SLICE_SECONDS
        while self._nodes:
            self._weigh(self._nodes.pop())
            if time.perf_counter() > until:
                return self._later()
        while self._models:
            self._put(self._models.pop())
            if self._models and time.perf_counter() > until:
                return self._later()
        self.changes += 1
        self._table.settle(self._snapshot.revision)
        return self._table.count_elsewhere(self._snapshot.proxies, time.monotonic())

    def _later(self) -> None:
        self._due = asyncio.get_running_loop().call_soon(self._work)

    def _weigh(self, name: str) -> None:
        node = self.reports.nodes.get(name)
        before = self._places.get(name, ())
        snapshot = self._snapshot
        now: tuple[_Place, ...] = ()
        if node is not None:
            now = tuple(
                _Place(
                    status.id,
                    status.deployment,
                    status.model,
                    status.phase in STARTING,
                    endpoint_of(snapshot, Seen(status, node.at)),
                )
                for status in node.statuses()
            )
        self._places[name] = now
        models = {place.model for place in now}
        for place in before:
            if place.model not in models:
                self._homes[place.model].discard(name)
        for model in models:
            self._homes.setdefault(model, set()).add(name)
        self._models |= models
        self._models.update(place.model for place in before)

    def _put(self, model: str) -> None:
        homes = self._homes.get(model, ())
        places = [place for home in homes for place in self._places[home] if place.model == model]
        ready = [place.endpoint for place in places if place.endpoint is not None]
        starting = sum(place.starting for place in places)
        view = view_of(self._snapshot, model, ready, starting)
        self._table.put(model, view)
        if view is None:
            self._shown.discard(model)
        else:
            self._shown.add(model)
        if not homes:
            self._homes.pop(model, None)
