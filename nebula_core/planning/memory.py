"""Carries a leader's memory from one snapshot to the next; the only place where it changes by what is seen."""

from dataclasses import replace

from nebula_core.planning.brake import braked_nodes
from nebula_core.planning.drain import why_not_quiet
from nebula_core.planning.index import ClusterIndex
from nebula_core.planning.policy import DrainSeen, Memory, PlanPolicy
from nebula_core.records.base import frozen_map
from nebula_core.records.placement import Wanted
from nebula_core.records.replica import ReplicaStatus
from nebula_core.records.snapshot import ClusterSnapshot


def observe(policy: PlanPolicy, view: ClusterSnapshot, now: float, index: ClusterIndex | None = None) -> PlanPolicy:
    """The policy with its memory brought up to `view`. Call it once per snapshot before `reconcile`.

    `index` is one kept from an earlier call, or from `reconcile`; it only saves time.
    """
    memory = policy.memory
    if memory.listening_since is None:
        memory = replace(memory, listening_since=now)
    policy = replace(policy, memory=memory)
    index = index or ClusterIndex()
    index.advance(view, policy, now)
    drains: dict[str, DrainSeen] = {}
    stops: dict[str, float] = {}
    for replica, placement in index.leaving.items():
        if placement.wanted is Wanted.DRAIN:
            seen = memory.drains.get(replica) or DrainSeen(now, view.revision)
            drains[replica] = _listen(view, seen, replica, index.nodes[placement.node].statuses.get(replica), now)
        else:
            stops[replica] = memory.stops.get(replica, now)
    held = index.deployments()
    lost = {name for name, facts in index.nodes.items() if facts.lost}
    memory = Memory(
        listening_since=memory.listening_since,
        drains=frozen_map(drains),
        stops=frozen_map(stops),
        braked=braked_nodes(view, index, policy, now),
        released=frozenset(name for name in memory.released if name in lost or name in held),
        deleted=frozenset(name for name in memory.deleted if name in held and name not in view.deployments),
    )
    return replace(policy, memory=memory)


def _listen(
    view: ClusterSnapshot, seen: DrainSeen, replica: str, status: ReplicaStatus | None, now: float
) -> DrainSeen:
    if why_not_quiet(view, status, replica, seen.revision, now) is not None:
        return seen if seen.quiet_at is None else replace(seen, quiet_at=None)
    return seen if seen.quiet_at is not None else replace(seen, quiet_at=now)
