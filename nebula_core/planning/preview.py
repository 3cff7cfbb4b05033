"""What would be done if something were changed: the same pass over a changed snapshot (`dry_run`)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from nebula_core.planning.policy import PlanPolicy
from nebula_core.planning.reconcile import reconcile
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import Deployment
from nebula_core.records.node import NodeIntent
from nebula_core.records.plan import Plan
from nebula_core.records.snapshot import ClusterSnapshot

T = TypeVar("T")


def preview(
    view: ClusterSnapshot,
    policy: PlanPolicy,
    now: float,
    *,
    deployments: Mapping[str, Deployment | None] | None = None,
    intents: Mapping[str, NodeIntent | None] | None = None,
) -> Plan:
    """The plan for the view with these records put in place of its own (None: taken away).

    `policy` is the planner loop's own, so that what is shown is judged by what the leader remembers.
    """
    gone = frozenset(name for name, value in (deployments or {}).items() if value is None)
    changed = replace(
        view,
        deployments=frozen_map(_overlaid(view.deployments, deployments)),
        intents=frozen_map(_overlaid(view.intents, intents)),
    )
    memory = replace(policy.memory, deleted=policy.memory.deleted | gone)
    return reconcile(changed, replace(policy, memory=memory), now)


def _overlaid(former: Mapping[str, T], news: Mapping[str, T | None] | None) -> dict[str, T]:
    merged = dict(former)
    for name, value in (news or {}).items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = value
    return merged
