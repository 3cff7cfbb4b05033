"""Telemetry as a data worker takes it: the figures routing weighs go straight to where it weighs them.

A worker of a cluster of 1,000 nodes hears 1,000 compact records and 200 full reports a second, and none of that may be
felt by the streams it carries (GOALS S8: 2 % of a core, no stall above 5 ms). So

- of a compact record only the replicas are decoded, and their figures are handed to the *sink* (the routing table), which
  writes them into the routes there are: no record is made anew, no table built;
- a full report is fetched only when it says something new. Its note in the stream carries the figures of that moment
  and a digest of everything else (`routing_digest`): with the digest we know, the figures are all there is to take.
  The note of an older agent has neither, and its report is fetched each time;
- what is kept of a report are its replicas. `nodes` holds them, and the names of the nodes whose replicas changed (a
  phase, an address, another start) are what a listener of the watcher is told: only then is a model looked at anew.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from nebula_core.records.base import revised
from nebula_core.records.compact import ReplicaDelta, RoutingDelta
from nebula_core.records.event import ChangeKind
from nebula_core.records.replica import ReplicaStatus
from nebula_core.records.report import RoutingReport
from nebula_core.records.snapshot import ClusterSnapshot, fold_replica
from nebula_core.store import keys
from nebula_core.store.reports import Breath, Entries, Fetch, Gathered, ProxyNews, all_proxies, proxy_news
from nebula_core.store.telemetry import DELTA, DIGEST, FULL, PROXY

_CHECK_EVERY = 64


class RoutingSink(Protocol):
    """Where figures go."""

    def heard(self, figures: Mapping[str, tuple[ReplicaDelta, ...]], at: float) -> None:
        """Something came of these nodes at monotonic `at`, with these figures of their replicas."""

    def forgive(self, seconds: float) -> None:
        """Every time of receipt moves later: for so long nobody could be heard."""


class RoutedNode:
    """The replicas of one node, by its last full report and the figures since."""

    __slots__ = ("at", "figures", "heard", "phases", "report", "sequence")

    def __init__(self, report: RoutingReport, at: float) -> None:
        self.report = report
        self.sequence = report.sequence
        #: Monotonic seconds of the reader when anything of this node last came.
        self.at = at
        self.figures: tuple[ReplicaDelta, ...] = ()
        #: By this process, and not only by one before it.
        self.heard = True
        self.phases = {status.id: status.phase.value for status in report.replicas}

    def statuses(self) -> Iterator[ReplicaStatus]:
        """Its replicas with the newest figures and phases."""
        figures = {one.id: one for one in self.figures}
        for status in self.report.replicas:
            news = figures.get(status.id)
            yield status if news is None else fold_replica(status, news)

    def take(self, delta: RoutingDelta, at: float) -> bool:
        """Newer figures; True when a phase has changed with them."""
        self.sequence = delta.sequence
        self.at = at
        self.heard = True
        self.figures = delta.replicas
        phases = self.phases
        changed = False
        for one in delta.replicas:
            if phases.get(one.id) != one.phase and one.id in phases:
                phases[one.id] = one.phase
                changed = True
        return changed


class RoutingReports:
    """`nodes` is kept up to date in place. `own_proxy`: the name under which the reader itself reports."""

    kinds = frozenset({ChangeKind.DEPLOYMENT, ChangeKind.PLACEMENT, ChangeKind.KEY})
    telemetry = True

    def __init__(self, sink: RoutingSink, own_proxy: str = "") -> None:
        self.nodes: dict[str, RoutedNode] = {}
        self.sink = sink
        self.own_proxy = own_proxy

    def restore(self, reports: Iterable[RoutingReport], at: float) -> None:
        """Takes over what an earlier process knew; its figures are too old to be worth anything."""
        for report in reports:
            bare = tuple(revised(status, {"sample": None}) for status in report.replicas)
            node = self.nodes[report.node] = RoutedNode(revised(report, {"replicas": bare, "routing": None}), at)
            node.heard = False

    def unheard(self) -> list[str]:
        """Nodes of which only an earlier process heard."""
        return [name for name, node in self.nodes.items() if not node.heard]

    async def load(self, fetch: Fetch, known: ClusterSnapshot) -> Gathered:
        found = await fetch.every(RoutingReport, keys.REPORT)
        fresh = tuple(
            report
            for report in found
            if (node := self.nodes.get(report.node)) is None or not node.heard or _stamp(report) != _stamp(node.report)
        )
        return _Read(self, fresh, {}, await all_proxies(fetch, known), frozenset())

    async def read(self, fetch: Fetch, entries: Entries, known: ClusterSnapshot) -> Gathered:  # noqa: ARG002
        wanted: set[str] = set()
        proxies: set[str] = set()
        deltas: dict[str, RoutingDelta] = {}
        breath = Breath()
        nodes = self.nodes
        for count, (_, fields) in enumerate(entries, 1):
            raw = fields.get(DELTA)
            full = fields.get(FULL)
            delta = None
            if raw is not None:
                try:
                    delta = RoutingDelta.from_json(raw)
                except ValueError as error:
                    fetch.offence("telemetry", error)
            if full is not None:
                node = nodes.get(full)
                digest = fields.get(DIGEST)
                # A lower sequence is an agent that began again: only its report says that it is newer.
                if (
                    delta is None
                    or digest is None
                    or node is None
                    or node.report.routing != digest
                    or delta.sequence < node.sequence
                ):
                    wanted.add(full)
                    deltas.pop(full, None)
                else:
                    # The same as we know: should an earlier note of this batch want it, that is void.
                    wanted.discard(full)
                    deltas[full] = delta
            elif delta is not None:
                if delta.node not in nodes:
                    wanted.add(delta.node)
                deltas[delta.node] = delta
            elif (proxy := fields.get(PROXY)) is not None and proxy != self.own_proxy:
                proxies.add(proxy)
            if count % _CHECK_EVERY == 0:
                await breath()
        return _Read(
            self,
            tuple(await fetch.records(RoutingReport, [keys.report(node) for node in sorted(wanted)])) if wanted else (),
            deltas,
            await proxy_news(fetch, proxies),
            frozenset(proxies),
        )

    def forgive(self, snapshot: ClusterSnapshot, seconds: float) -> ClusterSnapshot:
        for node in self.nodes.values():
            node.at += seconds
        self.sink.forgive(seconds)
        return snapshot.forgiving(seconds)


@dataclass(slots=True)
class _Read:
    of: RoutingReports
    reports: tuple[RoutingReport, ...]
    deltas: Mapping[str, RoutingDelta]
    news: ProxyNews
    proxies: frozenset[str]
    nodes: frozenset[str] = frozenset()

    def fold(self, snapshot: ClusterSnapshot, at: float) -> ClusterSnapshot:
        nodes = self.of.nodes
        changed: set[str] = set()
        for report in self.reports:
            node = nodes.get(report.node)
            if node is not None and node.heard and _is_older(report, node):
                continue
            nodes[report.node] = RoutedNode(report, at)
            changed.add(report.node)
        heard: dict[str, tuple[ReplicaDelta, ...]] = {}
        for name, delta in self.deltas.items():
            node = nodes.get(name)
            if node is None or delta.sequence <= node.sequence:
                continue
            if node.take(delta, at):
                changed.add(name)
            heard[name] = delta.replicas
        if heard:
            self.of.sink.heard(heard, at)
        self.nodes = frozenset(changed)
        return self.news.fold(snapshot, at)


def _stamp(report: RoutingReport) -> tuple[str, int, float]:
    return (report.boot_id, report.agent_pid, report.at)


def _is_older(report: RoutingReport, node: RoutedNode) -> bool:
    """As in the snapshot: a lower sequence of the same agent that was not made later."""
    known = node.report
    same_agent = known.boot_id == report.boot_id and known.agent_pid == report.agent_pid
    return same_agent and report.sequence < node.sequence and report.at <= known.at
