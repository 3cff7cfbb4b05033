"""What a change would do, in a form a person can decide on: the plan with the change against the plan without it.

Both are the planner's own. Shown is what concerns the deployments in question and whatever else differs, so a drain
that goes on elsewhere does not clutter the dialog, and a neighbour who loses his room does appear.
"""

from collections.abc import Iterable
from statistics import median

from nebula_core.planning.fetches import planned_fetches
from nebula_core.records.placement import Wanted
from nebula_core.records.plan import Bucket, PlacementChange, Plan, PlanEntry, Unplaceable
from nebula_core.records.replica import Phase
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.records.views import PlanView

_GOING = frozenset({Bucket.SURPLUS, Bucket.MOVING, Bucket.REPLACED})


def consequences(
    view: ClusterSnapshot, without: Plan, planned: Plan, concerned: Iterable[str], headline: str, *, dry_run: bool
) -> PlanView:
    """The answer to a mutating call. `headline` says what is changed where the plan itself has nothing to say."""
    plan = focused(without, planned, frozenset(concerned))
    leaving = leaving_replicas(plan)
    return PlanView(
        dry_run=dry_run,
        summary=plan.summary if plan.changes or plan.unplaceable or plan.brake else headline,
        plan=plan,
        inflight_affected=sum(view.inflight(replica) for replica in sorted(leaving)),
        last_ready=bool(silenced(view, plan)),
        estimated_ready_seconds=estimated_ready_seconds(view, plan),
        fetches=planned_fetches(view, plan),
    )


def focused(without: Plan, planned: Plan, concerned: frozenset[str]) -> Plan:
    known_entries = {_key(entry) for entry in without.entries}
    known_changes = {_act(change) for change in without.changes}
    known_blocks = {_block(one) for one in without.unplaceable}
    deployments = {change.replica: change.placement.deployment for change in planned.changes if change.placement}
    return planned.model_copy(
        update={
            "entries": tuple(
                entry for entry in planned.entries if entry.deployment in concerned or _key(entry) not in known_entries
            ),
            "changes": tuple(
                change
                for change in planned.changes
                if deployments.get(change.replica) in concerned or _act(change) not in known_changes
            ),
            "unplaceable": tuple(
                one for one in planned.unplaceable if one.deployment in concerned or _block(one) not in known_blocks
            ),
        }
    )


def _key(entry: PlanEntry) -> tuple[object, ...]:
    # Without its place: that a neighbour gets another GPU than he would have got is no news.
    return (entry.bucket, entry.deployment, entry.replica)


def _act(change: PlacementChange) -> tuple[object, ...]:
    return (change.replica, None if change.placement is None else change.placement.wanted)


def _block(one: Unplaceable) -> tuple[object, ...]:
    return (one.deployment, one.count)


def leaving_replicas(plan: Plan) -> frozenset[str]:
    """Replicas that stop or are to be moved, now or in a later step."""
    gone = {one.replica for one in plan.changes if one.placement is None or one.placement.wanted is not Wanted.RUN}
    gone |= {entry.replica for entry in plan.entries if entry.replica is not None and entry.bucket in _GOING}
    return frozenset(gone)


def silenced(view: ClusterSnapshot, plan: Plan) -> tuple[str, ...]:
    """Deployments whose last ready replica would go in this step: those that answer now and would not then."""
    going = {one.replica for one in plan.changes if one.placement is None or one.placement.wanted is not Wanted.RUN}
    if not going:
        return ()
    ready: dict[str, set[str]] = {}
    for replica, status in view.replicas().items():
        placement = view.placements.get(replica)
        if status.phase is Phase.READY and (placement is None or placement.wanted is Wanted.RUN):
            ready.setdefault(status.deployment, set()).add(replica)
    return tuple(sorted(name for name, replicas in ready.items() if replicas <= going))


def estimated_ready_seconds(view: ClusterSnapshot, plan: Plan) -> float | None:
    """The usual time of loading of what is started here; None when nothing starts or nobody has seen it load."""
    starting = {
        one.placement.deployment
        for one in plan.changes
        if one.placement is not None and one.placement.wanted is Wanted.RUN and one.replica not in view.placements
    }
    if not starting:
        return None
    seen: dict[str, list[float]] = {}
    for status in view.replicas().values():
        if status.load_seconds is not None:
            seen.setdefault(status.deployment, []).append(status.load_seconds)
    if not starting <= seen.keys():
        return None
    return round(max(median(seen[name]) for name in starting), 1)
