"""The whole cluster as one process sees it: immutable, replaced by small steps.

Durable records come in by `with_changes`, reports by `with_reports` and `with_deltas`. Each returns a new snapshot
that shares everything untouched with the old one; a batch costs one copy of the maps it touches, so readers
fold a whole batch (about 100 ms of telemetry) in one call. Nothing here reads a clock: `now` and the times of
receipt are the reader's own monotonic seconds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from nebula_core.records.access import ApiKey
from nebula_core.records.base import frozen_map, revised
from nebula_core.records.compact import NodeDelta, ReplicaDelta
from nebula_core.records.deployment import Deployment
from nebula_core.records.event import Change, ChangeKind
from nebula_core.records.node import Node, NodeIntent
from nebula_core.records.placement import Placement, SignedPlacement
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.report import NodeReport, ProxyReport

#: GOALS R5: a silent node is suspect after 2 s and lost after 10 s.
SUSPECT_AFTER_SECONDS = 2.0
LOST_AFTER_SECONDS = 10.0


class NodeState(StrEnum):
    READY = "ready"
    SUSPECT = "suspect"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Received:
    """A node's latest word: the full report with the newest compact figures folded in, and when each came."""

    report: NodeReport
    #: Monotonic seconds of the reader when anything of this node last came.
    at: float
    sequence: int


@dataclass(frozen=True, slots=True)
class ReceivedProxy:
    report: ProxyReport
    at: float


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """Every part is a read-only map from its id."""

    incarnation: str = ""
    revision: int = 0
    deployments: Mapping[str, Deployment] = field(default_factory=frozen_map)
    nodes: Mapping[str, Node] = field(default_factory=frozen_map)
    intents: Mapping[str, NodeIntent] = field(default_factory=frozen_map)
    placements: Mapping[str, Placement] = field(default_factory=frozen_map)
    keys: Mapping[str, ApiKey] = field(default_factory=frozen_map)
    reports: Mapping[str, Received] = field(default_factory=frozen_map)
    proxies: Mapping[str, ReceivedProxy] = field(default_factory=frozen_map)

    def with_changes(self, changes: Iterable[Change]) -> "ClusterSnapshot":
        """Folds durable changes in. Raises ValueError (pydantic) for a value that is not such a record."""
        maps: dict[ChangeKind, dict[str, object]] = {}
        revision = self.revision
        for change in changes:
            parts = maps.get(change.kind)
            if parts is None:
                parts = maps[change.kind] = dict(getattr(self, DURABLE_FIELDS[change.kind]))
            if change.value is None:
                parts.pop(change.id, None)
            else:
                parts[change.id] = decode_durable(change.kind, change.value)
            revision = max(revision, change.revision)
        updates: dict[str, object] = {DURABLE_FIELDS[kind]: frozen_map(parts) for kind, parts in maps.items()}
        return replace(self, revision=revision, **updates)  # type: ignore[arg-type]

    def with_reports(
        self,
        nodes: Iterable[NodeReport] = (),
        proxies: Iterable[ProxyReport] = (),
        *,
        at: float,
    ) -> "ClusterSnapshot":
        """Takes full reports received at monotonic `at`. An older one of the same agent is ignored.

        Older is a lower sequence that was not made later: an agent that restarts in a container may come back with the
        same pid and counts from the beginning.
        """
        reports = dict(self.reports)
        for report in nodes:
            known = reports.get(report.node)
            if known is not None and _is_older(report, known):
                continue
            reports[report.node] = Received(report, at, report.sequence)
        seen = dict(self.proxies)
        for proxy in proxies:
            former = seen.get(proxy.proxy)
            if former is not None and _same_proxy(former.report, proxy) and proxy.sequence < former.report.sequence:
                continue
            seen[proxy.proxy] = ReceivedProxy(proxy, at)
        return replace(self, reports=frozen_map(reports), proxies=frozen_map(seen))

    def with_deltas(self, deltas: Iterable[NodeDelta], *, at: float) -> "ClusterSnapshot":
        """Folds compact records in; one for a node whose full report has not come yet is ignored."""
        reports = dict(self.reports)
        for delta in deltas:
            known = reports.get(delta.node)
            if known is None or delta.sequence <= known.sequence:
                continue
            reports[delta.node] = Received(fold(known.report, delta), at, delta.sequence)
        return replace(self, reports=frozen_map(reports))

    def without_silent(self, *, now: float, proxies_after: float = LOST_AFTER_SECONDS) -> "ClusterSnapshot":
        """Drops proxies that fell silent; nodes stay, as lost, until an operator removes them."""
        live = {name: seen for name, seen in self.proxies.items() if now - seen.at <= proxies_after}
        return self if len(live) == len(self.proxies) else replace(self, proxies=frozen_map(live))

    def forgiving(self, seconds: float) -> "ClusterSnapshot":
        """Every time of receipt moved later: silence is not counted while the reader itself could not hear."""
        return replace(
            self,
            reports=frozen_map({node: replace(got, at=got.at + seconds) for node, got in self.reports.items()}),
            proxies=frozen_map({name: replace(got, at=got.at + seconds) for name, got in self.proxies.items()}),
        )

    def heartbeat_age(self, node: str, now: float) -> float | None:
        """Seconds since anything of this node came; None when nothing ever did."""
        received = self.reports.get(node)
        return None if received is None else max(0.0, now - received.at)

    def node_state(self, node: str, now: float) -> NodeState:
        age = self.heartbeat_age(node, now)
        if age is None or age > LOST_AFTER_SECONDS:
            return NodeState.LOST
        return NodeState.SUSPECT if age > SUSPECT_AFTER_SECONDS else NodeState.READY

    def replicas(self) -> dict[str, ReplicaStatus]:
        """Every replica that some agent reports. Two nodes reporting one id: the one its placement names wins."""
        found: dict[str, ReplicaStatus] = {}
        for received in self.reports.values():
            for status in received.report.replicas:
                other = found.get(status.id)
                if other is not None:
                    placement = self.placements.get(status.id)
                    if placement is None or placement.node != status.node:
                        continue
                found[status.id] = status
        return found

    def inflight(self, replica: str) -> int:
        """Open requests on a replica over all live proxies."""
        return sum(seen.report.inflight.get(replica, 0) for seen in self.proxies.values())


#: The field of the snapshot that holds each kind.
DURABLE_FIELDS: Mapping[ChangeKind, str] = {
    ChangeKind.DEPLOYMENT: "deployments",
    ChangeKind.NODE: "nodes",
    ChangeKind.INTENT: "intents",
    ChangeKind.PLACEMENT: "placements",
    ChangeKind.KEY: "keys",
}


def decode_durable(kind: ChangeKind, value: str) -> Deployment | Node | NodeIntent | Placement | ApiKey:
    """The record of one durable value. A placement is taken out of its envelope unverified: who obeys it verifies it."""
    match kind:
        case ChangeKind.DEPLOYMENT:
            return Deployment.from_json(value)
        case ChangeKind.NODE:
            return Node.from_json(value)
        case ChangeKind.INTENT:
            return NodeIntent.from_json(value)
        case ChangeKind.PLACEMENT:
            return Placement.from_json(SignedPlacement.from_json(value).payload)
        case ChangeKind.KEY:
            return ApiKey.from_json(value)


def fold(report: NodeReport, delta: NodeDelta) -> NodeReport:
    """The full report with the figures of one second in place of its own."""
    gpus = report.gpus
    if len(delta.gpus) == len(gpus):
        gpus = tuple(
            revised(
                sample,
                {
                    "utilization_ratio": values[0],
                    "memory_used_bytes": values[1],
                    "temperature_celsius": values[2],
                    "power_watts": values[3],
                },
            )
            for sample, values in zip(gpus, delta.gpus, strict=True)
        )
    by_id = {replica.id: replica for replica in delta.replicas}
    replicas = tuple(
        status if (news := by_id.get(status.id)) is None else fold_replica(status, news) for status in report.replicas
    )
    host = report.host if delta.cpu is None else revised(report.host, {"cpu_ratio": delta.cpu})
    return revised(report, {"gpus": gpus, "replicas": replicas, "host": host, "sequence": delta.sequence})


_PHASES = frozenset(phase.value for phase in Phase)


def fold_replica(status: ReplicaStatus, news: ReplicaDelta) -> ReplicaStatus:
    """One replica with the figures of one second in place of its own."""
    # A phase of a newer version waits for the next full report; the figures need not.
    phase = Phase(news.phase) if news.phase in _PHASES else status.phase
    update: dict[str, object] = {"phase": phase}
    if phase != status.phase:
        update["phase_seconds"] = 0.0
    if status.sample is not None:
        update["sample"] = revised(
            status.sample,
            {
                "requests_running": news.running,
                "requests_waiting": news.waiting,
                "kv_cache_usage": news.kv,
                "generation_tokens_per_second": news.generation_rate,
                "prompt_tokens_per_second": news.prompt_rate,
                "ttft_p95_seconds": news.ttft_p95,
                "prefix_cache_hit_ratio": news.hit,
            },
        )
    return revised(status, update)


def _is_older(report: NodeReport, known: Received) -> bool:
    same_agent = known.report.boot_id == report.boot_id and known.report.agent_pid == report.agent_pid
    return same_agent and report.sequence < known.sequence and report.at <= known.report.at


def _same_proxy(known: ProxyReport, report: ProxyReport) -> bool:
    return known.pid == report.pid and known.started_at == report.started_at
