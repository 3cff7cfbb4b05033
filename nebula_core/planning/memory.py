"""Carries a leader's memory from one snapshot to the next; the only place where it changes by what is seen."""

from dataclasses import replace

from nebula_core.planning.brake import braked_nodes
from nebula_core.planning.drain import why_not_quiet
from nebula_core.planning.index import build_index
from nebula_core.planning.policy import DrainSeen, Memory, PlanPolicy
from nebula_core.records.base import frozen_map
from nebula_core.records.placement import Wanted
from nebula_core.records.replica import ReplicaStatus
from nebula_core.records.snapshot import ClusterSnapshot


def observe(policy: PlanPolicy, view: ClusterSnapshot, now: float) -> PlanPolicy:
    """The policy with its memory brought up to `view`. Call it once per snapshot before `reconcile`."""
    memory = policy.memory
    if memory.listening_since is None:
        memory = replace(memory, listening_since=now)
        policy = replace(policy, memory=memory)
    drains: dict[str, DrainSeen] = {}
    stops: dict[str, float] = {}
    for replica, placement in view.placements.items():
        if placement.wanted is Wanted.DRAIN:
            seen = memory.drains.get(replica) or DrainSeen(now, view.revision)
            drains[replica] = _listen(view, seen, replica, placement.node, now)
        elif placement.wanted is Wanted.STOP:
            stops[replica] = memory.stops.get(replica, now)
    index = build_index(view, policy, now)
    lost = {name for name, facts in index.nodes.items() if facts.lost}
    memory = Memory(
        listening_since=memory.listening_since,
        drains=frozen_map(drains),
        stops=frozen_map(stops),
        braked=braked_nodes(view, index, policy, now),
        released=frozenset(name for name in memory.released if name in lost or name in index.replicas),
        deleted=frozenset(name for name in memory.deleted if name in index.replicas and name not in view.deployments),
        moves=frozen_map({replica: why for replica, why in memory.moves.items() if replica in view.placements}),
    )
    return replace(policy, memory=memory)


def _listen(view: ClusterSnapshot, seen: DrainSeen, replica: str, node: str, now: float) -> DrainSeen:
    if why_not_quiet(view, _status(view, replica, node), replica, seen.revision, now) is not None:
        return seen if seen.quiet_at is None else replace(seen, quiet_at=None)
    return seen if seen.quiet_at is not None else replace(seen, quiet_at=now)


def _status(view: ClusterSnapshot, replica: str, node: str) -> ReplicaStatus | None:
    received = view.reports.get(node)
    if received is None:
        return None
    return next((status for status in received.report.replicas if status.id == replica), None)
