"""What needs a person: one row per trouble, the worst first, each with the key that does something about it.

Every rule here is a function of the fleet's views; none guesses. A trouble is gone when its cause is gone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from nebula_core.records.replica import Phase
from nebula_core.records.views import DeploymentView, NodeView, ReplicaView
from nebula_tui.presenters.cells import Cell, Column, Row, Severity, age, duration, gib, milliseconds, percent
from nebula_tui.presenters.fleet import FleetState
from nebula_tui.presenters.states import HIGH, KV_FULL, fill_severity, short_replica
from nebula_tui.presenters.text import plural

#: More than this between two clocks makes times of different nodes misleading.
SKEW_SECONDS: Final = 1.0

COLUMNS: Final = (
    Column("object", "OBJECT", 19, min_width=14),
    Column("what", "WHAT", 30, min_width=12, flex=True),
    Column("key", "KEY", 9, priority=1),
)

_RANK: Final = {Severity.CRIT: 0, Severity.WARN: 1, Severity.INFO: 2}


@dataclass(frozen=True, slots=True)
class Trouble:
    """`kind` and `name` say what to open; `key` is the key that helps, with its verb."""

    severity: Severity
    kind: str
    name: str
    label: str
    what: str
    key: str = ""

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}/{self.label}/{self.key}/{self.severity}"


def troubles(fleet: FleetState, now: float) -> list[Trouble]:
    by_node = fleet.replicas_by_node()
    found = [
        *_of_cluster(fleet, now),
        *(trouble for node in fleet.nodes.values() for trouble in _of_node(fleet, node, by_node.get(node.id, ()), now)),
        *(trouble for deployment in fleet.deployments.values() for trouble in _of_deployment(fleet, deployment)),
        *(trouble for replica in fleet.replicas.values() for trouble in _of_replica(fleet, replica)),
    ]
    return sorted(found, key=lambda trouble: (_RANK[trouble.severity], trouble.label))


def counts(found: list[Trouble]) -> tuple[int, int]:
    """(critical, warnings)."""
    return (
        sum(trouble.severity is Severity.CRIT for trouble in found),
        sum(trouble.severity is Severity.WARN for trouble in found),
    )


def rows(found: list[Trouble]) -> list[Row]:
    made: dict[str, Row] = {}
    for trouble in found:
        id_ = trouble.id
        while id_ in made:
            id_ += "'"
        made[id_] = Row(
            id_,
            (
                Cell.of((f"{trouble.severity.glyph} ", trouble.severity), (trouble.label, Severity.NORMAL)),
                Cell(trouble.what),
                Cell(trouble.key, Severity.ACCENT),
            ),
        )
    return list(made.values())


def _of_cluster(fleet: FleetState, now: float) -> Iterator[Trouble]:
    cluster = fleet.cluster
    if cluster is None:
        return
    if cluster.brake:
        yield Trouble(Severity.CRIT, "cluster", "brake", "planner", f"brake: {cluster.brake}", "e: events")
    if not cluster.store_reachable:
        what = f"not reachable; figures are {age(fleet.store_age(now))} old, replicas go on serving"
        yield Trouble(Severity.CRIT, "cluster", "store", "store", what, "")
    elif cluster.leader is None:
        yield Trouble(Severity.WARN, "cluster", "leader", "planner", "no leader: nothing is placed or healed")
    if not cluster.proxies:
        yield Trouble(Severity.CRIT, "cluster", "proxy", "proxy", "none reports: no request is routed")


def _of_node(fleet: FleetState, node: NodeView, on_it: Sequence[ReplicaView], now: float) -> Iterator[Trouble]:
    silent = fleet.node_age(node, now) if node.state != "ready" else None
    if node.state == "lost":
        what = f"silent {duration(silent)}" if silent is not None else "has not reported"
        what += f"; {plural(len(on_it), 'replica')} on it" if on_it else ""
        yield Trouble(Severity.CRIT, "node", node.id, node.id, what, "e: events")
    elif node.state == "suspect":
        yield Trouble(Severity.WARN, "node", node.id, node.id, f"silent {duration(silent)}", "e: events")
    for index, fault in fleet.summary(node).faults:
        yield Trouble(Severity.CRIT, "node", node.id, f"{node.id} gpu{index}", fault, "c: cordon")
    for problem in node.problems:
        severity = Severity.CRIT if problem.severity == "crit" else Severity.WARN
        what = f"{problem.message} → {problem.hint}" if problem.hint else problem.message
        yield Trouble(severity, "node", node.id, node.id, what, "⏎: node")
    if node.clock_skew_seconds is not None and abs(node.clock_skew_seconds) >= SKEW_SECONDS:
        what = f"clock is {node.clock_skew_seconds:+.1f}s off: times of its log lines are shifted"
        yield Trouble(Severity.WARN, "node", node.id, node.id, what)
    used, total = node.host.disk_used_bytes, node.host.disk_total_bytes
    if used is not None and total and used / total >= HIGH:
        what = f"disk {percent(used / total)}%, {gib(total - used)} GiB left"
        yield Trouble(fill_severity(used / total), "node", node.id, node.id, what, "⏎: node")
    if node.draining:
        open_requests = sum(replica.inflight for replica in on_it)
        what = (
            f"drain: {plural(len(on_it), 'replica')} left, {open_requests} in flight"
            if on_it
            else "drained: empty, U brings it back"
        )
        yield Trouble(Severity.INFO, "node", node.id, node.id, what, "⏎: watch")


def _of_deployment(fleet: FleetState, deployment: DeploymentView) -> Iterator[Trouble]:
    missing = deployment.replicas_wanted - deployment.replicas_ready
    if missing <= 0:
        return
    ready = f"{deployment.replicas_ready}/{deployment.replicas_wanted} ready"
    why = "; ".join(deployment.reasons) or deployment.status
    if deployment.replicas_starting >= missing and not deployment.reasons:
        starting = [replica for replica in fleet.replicas_of(deployment.name) if _is_starting(replica)]
        why = ", ".join(
            f"{short_replica(replica.id, deployment.name)} {replica.phase.value} {duration(replica.phase_seconds)}"
            for replica in starting
        )
        why = why or deployment.status
        severity = Severity.INFO if deployment.replicas_ready else Severity.WARN
    else:
        severity = Severity.WARN if deployment.replicas_ready else Severity.CRIT
    what = f"{ready}: {why}" if why else ready
    yield Trouble(severity, "deployment", deployment.name, deployment.name, what, "⏎: model")


def _is_starting(replica: ReplicaView) -> bool:
    return replica.phase in (Phase.PENDING, Phase.PULLING, Phase.CREATING, Phase.LOADING)


def _of_replica(fleet: FleetState, replica: ReplicaView) -> Iterator[Trouble]:
    name = short_replica(replica.id)
    if replica.phase is Phase.FAILED:
        why = replica.phase_reason or "no reason given"
        again = f" (restart {replica.restarts})" if replica.restarts else ""
        yield Trouble(Severity.CRIT, "replica", replica.id, name, f"failed: {why}{again}", "l: logs")
    elif replica.ejected:
        reasons = ", ".join(sorted(set(replica.ejected.values())))
        what = f"out of routing at {plural(len(replica.ejected), 'proxy' if len(replica.ejected) == 1 else 'proxie')}"
        yield Trouble(Severity.WARN, "replica", replica.id, name, f"{what}: {reasons}", "l: logs")
    sample = replica.sample
    if sample is None or replica.phase is not Phase.READY:
        return
    deployment = fleet.deployments.get(replica.deployment)
    limit = deployment.spec.limits.waiting if deployment is not None else 8
    full = sample.kv_cache_usage is not None and sample.kv_cache_usage >= KV_FULL
    queued = sample.requests_waiting is not None and sample.requests_waiting >= limit
    if full or queued:
        words = [f"KV {percent(sample.kv_cache_usage)}%", f"{sample.requests_waiting or 0} waiting"]
        if sample.ttft_p95_seconds is not None:
            words.append(f"TTFT p95 {milliseconds(sample.ttft_p95_seconds)}")
        severity = Severity.CRIT if full and queued else Severity.WARN
        yield Trouble(severity, "replica", replica.id, name, ", ".join(words), "s: scale")
