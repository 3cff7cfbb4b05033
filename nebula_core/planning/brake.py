"""When so much is gone at once that the planner is more likely wrong than the cluster: change nothing and say so.

Two cases. *Nodes vanish together* (a switch reboots, the control process was cut off): more than half of the nodes
that were there, or two of at most three, fall silent within one window. Replacing their replicas would pile the
whole load on the rest, and they usually come back as they were. The brake holds until most of them are back, or an
operator accepts the loss. *Deployments vanish together*, without anybody having deleted them (a store that lost
writes): absence is no order, so their replicas stay.
"""

from nebula_core.planning.index import ClusterIndex
from nebula_core.planning.policy import PlanPolicy
from nebula_core.records.placement import Wanted
from nebula_core.records.snapshot import LOST_AFTER_SECONDS, ClusterSnapshot


def braked_nodes(view: ClusterSnapshot, index: ClusterIndex, policy: PlanPolicy, now: float) -> frozenset[str]:
    """The nodes that hold the brake in this view; empty when it is free."""
    memory = policy.memory
    occupied = {placement.node for placement in view.placements.values() if placement.wanted is Wanted.RUN}
    lost = {name for name, facts in index.nodes.items() if facts.lost and facts.known and name not in memory.released}
    recent: set[str] = set()
    for name in lost:
        received = view.reports.get(name)
        heard = memory.listening_since if received is None else received.at
        if heard is None:
            continue
        # A node this leader never heard of matters only if something should run there: else it has been dead for long.
        if received is None and name not in occupied:
            continue
        if now - (heard + LOST_AFTER_SECONDS) <= policy.brake_window_seconds:
            recent.add(name)
    population = sum(1 for facts in index.nodes.values() if facts.known and not facts.lost) + len(recent)
    if recent and (2 * len(recent) > population or (population <= 3 and len(recent) >= 2)):
        return frozenset(recent) | (memory.braked & lost)
    held = memory.braked & lost
    return held if 2 * len(held) > len(memory.braked) else frozenset()


def why_braked(view: ClusterSnapshot, index: ClusterIndex, policy: PlanPolicy, now: float) -> str | None:
    """The reason to change nothing at all, or None."""
    if policy.emptied:
        return "the store came back empty; nothing is planned until an operator runs adopt or restore"
    nodes = braked_nodes(view, index, policy, now)
    if nodes:
        known = sum(1 for facts in index.nodes.values() if facts.known)
        return (
            f"{len(nodes)} of {known} nodes fell silent together ({_some(nodes)}); "
            "nothing is changed until most are back or the loss is accepted"
        )
    return _vanished_deployments(view, policy)


def _vanished_deployments(view: ClusterSnapshot, policy: PlanPolicy) -> str | None:
    running = 0
    orphans = 0
    names: set[str] = set()
    accepted = policy.memory.deleted | policy.memory.released
    for placement in view.placements.values():
        if placement.wanted is not Wanted.RUN:
            continue
        running += 1
        if placement.deployment not in view.deployments and placement.deployment not in accepted:
            orphans += 1
            names.add(placement.deployment)
    if len(names) < 2 or orphans <= policy.vanished_ratio * running:
        return None
    return (
        f"{len(names)} deployments are gone at once ({_some(names)}) and nobody was seen deleting them; "
        f"their {orphans} replicas are kept until the loss is accepted or the store is restored"
    )


def _some(names: set[str] | frozenset[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", …" if len(ordered) > 3 else "")
