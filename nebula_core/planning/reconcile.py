"""Desired against observed: the one function that says what must change next, and why nothing else does.

    snapshot ─► index ─► brake? ─► per deployment: leaving, missing, surplus, outgoing ─► place ─► Plan

A pass takes one step. What it wants is state, so the pass after it takes the next step from whatever came true,
and a lost step only costs a pass. Each replica falls in one bucket (`records.plan.Bucket`):

- *keep*: as wanted, be it ready, starting or failed (the agent restarts its engines, nobody else does);
- *missing*: wanted, and placed by this pass, or unplaceable with a verdict per node;
- *surplus*: more than wanted; not ready ones go first, then those on shaky or crowded nodes, then the newest;
- *moving*: to be replaced where it is (its node drains, its spec or restart number is old, its GPU is faulty);
- *lost*: its node is silent; it does not count any more, unless the deployment says `keep`;
- *replaced*: was lost or moving, and its replacement serves: it may go;
- *stopping*: on its way out, with what it waits for.

Replacement first: a moving replica that serves goes only when enough others serve without it, one extra replica
(`surge`) being allowed meanwhile. Only where the replacement fits nowhere does the old one stop first, and only if
that makes the room, or if its node has to be emptied anyway. First come all the missing of all deployments, then the
extras, so that no rollout takes a GPU from a model that has too few. The order is by name, but models with nothing
running come first; the same view gives the same plan.
"""

from nebula_core.planning.brake import why_braked
from nebula_core.planning.deployment_pass import DeploymentPass
from nebula_core.planning.index import ClusterIndex
from nebula_core.planning.policy import PlanPolicy
from nebula_core.planning.shared import Shared
from nebula_core.records.plan import Bucket, Plan, PlanEntry
from nebula_core.records.snapshot import ClusterSnapshot


def reconcile(view: ClusterSnapshot, policy: PlanPolicy, now: float, index: ClusterIndex | None = None) -> Plan:
    """One step towards what is desired. `now` is in the monotonic seconds of the snapshot's times of receipt.

    `index` is one kept from an earlier call: the answer is the same, but only what moved is looked at again.
    """
    index = index or ClusterIndex()
    index.advance(view, policy, now)
    brake = why_braked(view, index, policy, now)
    if brake is not None:
        return Plan(brake=brake, revision=view.revision)
    shared = Shared(view, index, policy, now)
    names = sorted(view.deployments.keys() | index.deployments())
    passes = [DeploymentPass(shared, name) for name in names if name not in index.calm]
    for one in passes:
        one.leave()
    for one in sorted(passes, key=lambda one: (one.present > 0, one.name)):
        one.fill()
    for one in passes:
        one.shrink()
    for one in passes:
        one.move()
    for one in passes:
        one.account()
        if one.at_rest:
            index.calm[one.name] = tuple(one.entries)
    moving = {one.name: one.entries for one in passes}
    entries = [entry for name in names for entry in (moving[name] if name in moving else index.calm[name])]
    return Plan(
        entries=(*entries, *_strays(index)),
        changes=tuple(change for one in passes for change in one.changes),
        unplaceable=tuple(blocked for one in passes for blocked in one.unplaceable),
        revision=view.revision,
    )


def _strays(index: ClusterIndex) -> tuple[PlanEntry, ...]:
    return tuple(
        PlanEntry(
            bucket=Bucket.KEEP,
            deployment=status.deployment,
            replica=status.id,
            node=status.node,
            gpus=status.gpus,
            reason="runs without a placement and its deployment does not exist: left alone",
        )
        for status in index.strays
    )
