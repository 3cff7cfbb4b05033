"""What operators should read of a step of the cluster: the differences of two views, and of two plans, in words.

Only the leader tells it, so nothing is told twice; a new leader takes its first view as known and tells what follows.
"""

from collections.abc import Iterable, Mapping

from nebula_core.planning.index import judged_state
from nebula_core.planning.policy import PlanPolicy
from nebula_core.records.event import Event, Severity
from nebula_core.records.placement import Wanted
from nebula_core.records.plan import PlacementChange, Plan
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.snapshot import ClusterSnapshot, NodeState

PLANNER = "planner"
AGENT = "agent"


def tell_changes(view: ClusterSnapshot, changes: Iterable[PlacementChange], at: float) -> list[Event]:
    """What the planner has just ordered. Removals are told by the agent's `stopped`."""
    told: list[Event] = []
    for change in changes:
        placement = change.placement
        if placement is None:
            continue
        known = view.placements.get(change.replica)
        kind = "placed" if known is None and placement.wanted is Wanted.RUN else _ORDER[placement.wanted]
        told.append(
            Event(
                kind=kind,
                object=f"replica/{change.replica}",
                message=f"{change.reason} ({placement.reason})" if kind == "placed" else change.reason,
                actor=PLANNER,
                at=at,
            )
        )
    return told


_ORDER: Mapping[Wanted, str] = {Wanted.RUN: "kept", Wanted.DRAIN: "drain", Wanted.STOP: "stop"}


def tell_plan(before: Plan | None, plan: Plan, at: float) -> list[Event]:
    """The brake, and deployments that have become unplaceable or are so no longer."""
    told: list[Event] = []

    def say(kind: str, about: str, message: str, severity: Severity) -> None:
        told.append(Event(kind=kind, object=about, message=message, severity=severity, actor=PLANNER, at=at))

    braked = None if before is None else before.brake
    if plan.brake is not None and braked is None:
        say("brake", "cluster/planner", plan.brake, "crit")
    elif plan.brake is None and braked is not None:
        say("brake", "cluster/planner", "released: the planner acts again", "info")
    if plan.brake is not None:
        return told
    was = set() if before is None else {blocked.deployment for blocked in before.unplaceable}
    now = {blocked.deployment for blocked in plan.unplaceable}
    for blocked in plan.unplaceable:
        if blocked.deployment not in was:
            say("blocked", f"deployment/{blocked.deployment}", f"{blocked.count} unplaceable: {blocked.reason}", "warn")
    for name in sorted(was - now):
        say("unblocked", f"deployment/{name}", "has room again", "info")
    return told


def tell_reports(before: ClusterSnapshot, after: ClusterSnapshot, at: float) -> list[Event]:
    """Phases that replicas have reached, by the reports that came in between."""
    told: list[Event] = []
    for node in sorted(after.reports):
        received, known = after.reports[node], before.reports.get(node)
        if received is known:
            continue
        phases = {} if known is None else {status.id: status for status in known.report.replicas}
        for status in received.report.replicas:
            former = phases.get(status.id)
            if former is None and known is None and status.phase not in {Phase.READY, Phase.FAILED}:
                continue
            event = _tell_phase(former, status, at)
            if event is not None:
                told.append(event)
    return told


def _tell_phase(former: ReplicaStatus | None, status: ReplicaStatus, at: float) -> Event | None:
    kind: str
    severity: Severity = "info"
    if former is not None and former.phase is status.phase:
        if status.phase is Phase.READY and status.restarts > former.restarts:
            kind, severity = "restart", "warn"
            message = f"restarted and ready again on {status.node}, restart {status.restarts}"
        else:
            return None
    elif status.phase is Phase.READY:
        kind = "ready"
        took = "" if status.load_seconds is None else f" in {status.load_seconds:.0f} s"
        message = f"ready{took} on {status.node}"
    elif status.phase is Phase.FAILED:
        kind, severity = "failed", "crit"
        message = status.phase_reason or "failed without a reason"
    elif status.phase is Phase.STOPPED and former is not None:
        kind = "stopped"
        message = f"stopped on {status.node}" + (f": {status.phase_reason}" if status.phase_reason else "")
    else:
        return None
    return Event(kind=kind, object=f"replica/{status.id}", message=message, severity=severity, actor=AGENT, at=at)


def node_states(view: ClusterSnapshot, policy: PlanPolicy, now: float) -> dict[str, NodeState]:
    return {name: judged_state(view, policy, name, now) for name in view.nodes}


def tell_nodes(
    before: Mapping[str, NodeState], after: Mapping[str, NodeState], view: ClusterSnapshot, at: float
) -> list[Event]:
    """Nodes that fell silent for good, or answer again. A moment's silence is not told."""
    told: list[Event] = []
    for name in sorted(after):
        was, state = before.get(name), after[name]
        if state is NodeState.LOST and was not in {None, NodeState.LOST}:
            count = sum(1 for one in view.placements.values() if one.node == name and one.wanted is Wanted.RUN)
            message = f"silent for more than 10 s with {count} replica{'s' if count != 1 else ''}"
            told.append(_about_node(name, "lost", message, "crit", at))
        elif state is NodeState.READY and was is NodeState.LOST:
            told.append(_about_node(name, "back", "answers again", "info", at))
        elif was is None and state is NodeState.READY:
            gpus = len(view.nodes[name].gpus)
            told.append(_about_node(name, "joined", f"reports for the first time, {gpus} GPUs", "info", at))
    return told


def _about_node(name: str, kind: str, message: str, severity: Severity, at: float) -> Event:
    return Event(kind=kind, object=f"node/{name}", message=message, severity=severity, actor=PLANNER, at=at)
