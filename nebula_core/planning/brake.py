"""When so much is gone at once that the planner is more likely wrong than the cluster: change nothing and say so.

Three cases. *The store lost its memory*, or the latest of it: what it says is no order. *Nodes vanish together* (a switch
reboots, the control process was cut off): more than half of the nodes that were there, or two of at most three, fall silent
within one window. Replacing their replicas would pile the whole load on the rest, and they usually come back as they
were. The brake holds until most of them are back, or an operator accepts the loss. *Deployments vanish together*, without anybody having deleted them (a store that lost
writes): absence is no order, so their replicas stay.
"""

from collections.abc import Sequence

from nebula_core.planning.index import ClusterIndex, NodeFacts
from nebula_core.planning.policy import PlanPolicy
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.plan import PlacementChange
from nebula_core.records.snapshot import LOST_AFTER_SECONDS, ClusterSnapshot
from nebula_core.records.store_memory import StoreDoubt


def braked_nodes(view: ClusterSnapshot, index: ClusterIndex, policy: PlanPolicy, now: float) -> frozenset[str]:
    """The nodes that hold the brake in this view; empty when it is free."""
    memory = policy.memory
    lost = {name for name, facts in index.nodes.items() if facts.lost and facts.known and name not in memory.released}
    recent: set[str] = set()
    for name in lost:
        received = view.reports.get(name)
        heard = memory.listening_since if received is None else received.at
        if heard is None:
            continue
        # A node this leader never heard of matters only if something should run there: else it has been dead for long.
        if received is None and not _should_run_something(index.nodes[name]):
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
    if policy.doubt is not None:
        how = "came back empty" if policy.doubt is StoreDoubt.EMPTIED else "came back older than it was"
        return (
            f"the store {how}; nothing is planned until that is settled: `nebula adopt --store` shows what runs and writes "
            "it back, or put the store's own files back"
        )
    nodes = braked_nodes(view, index, policy, now)
    if nodes:
        known = sum(1 for facts in index.nodes.values() if facts.known)
        return (
            f"{len(nodes)} of {known} nodes fell silent together ({_some(nodes)}); "
            "nothing is changed until most are back or the loss is accepted"
        )
    return _vanished_deployments(view, index, policy)


def allowed_yet(changes: Sequence[PlacementChange], policy: PlanPolicy, now: float) -> tuple[PlacementChange, ...]:
    """What a leader may do that has just begun to listen: nothing that takes anything away.

    The store may be an older copy of itself, and it takes a second or two until those who have seen more say so.
    """
    since = policy.memory.listening_since
    if since is not None and now - since >= policy.listen_seconds:
        return tuple(changes)
    return tuple(one for one in changes if one.placement is not None and _runs(one.placement))


def _should_run_something(node: NodeFacts) -> bool:
    return any(_runs(placement) for placement in node.placements.values())


def _vanished_deployments(view: ClusterSnapshot, index: ClusterIndex, policy: PlanPolicy) -> str | None:
    accepted = policy.memory.deleted | policy.memory.released
    gone = [name for name in index.deployments() if name not in view.deployments and name not in accepted]
    counts = {name: sum(_runs(one) for one in index.placements_of(name).values()) for name in gone}
    names = {name for name, count in counts.items() if count}
    if len(names) < 2:
        return None
    orphans = sum(counts.values())
    running = sum(_runs(placement) for placement in view.placements.values())
    if orphans <= policy.vanished_ratio * running:
        return None
    return (
        f"{len(names)} deployments are gone at once ({_some(names)}) and nobody was seen deleting them; "
        f"their {orphans} replicas are kept until the loss is accepted or the store is restored"
    )


def _runs(placement: Placement) -> bool:
    return placement.wanted is Wanted.RUN


def _some(names: set[str] | frozenset[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", …" if len(ordered) > 3 else "")
