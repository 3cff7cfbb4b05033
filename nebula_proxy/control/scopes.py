"""What a watcher sees: a scope cuts the views, a delta is the difference of two cuts.

`overview` is everything, `node:NAME` one machine with what runs on it, `deployment:NAME` one model with the machines
it runs on. Deltas carry whole views of what changed, so a client only replaces and removes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from nebula_core.records.base import Record
from nebula_core.records.event import Event
from nebula_core.records.views import WatchDelta, WatchSnapshot
from nebula_proxy.control.refusals import invalid
from nebula_proxy.control.views import Views

View = TypeVar("View", bound=Record)


@dataclass(frozen=True, slots=True)
class Scope:
    kind: Literal["overview", "node", "deployment"] = "overview"
    name: str = ""


def parse_scope(text: str) -> Scope:
    """Raises CallRefused for a scope that is none."""
    if text == "overview":
        return Scope()
    kind, _, name = text.partition(":")
    if kind == "node" and name:
        return Scope("node", name)
    if kind == "deployment" and name:
        return Scope("deployment", name)
    raise invalid(f"{text[:64]!r} is no scope", param="scope", hint="overview, node:NAME or deployment:NAME")


def cut(views: Views, scope: Scope) -> Views:
    """The part of the views that the scope shows."""
    match scope.kind:
        case "node":
            replicas = {key: view for key, view in views.replicas.items() if view.node == scope.name}
            names = {view.deployment for view in replicas.values()}
            return Views(views.cluster, _only(views.nodes, {scope.name}), _only(views.deployments, names), replicas)
        case "deployment":
            replicas = {key: view for key, view in views.replicas.items() if view.deployment == scope.name}
            nodes = {view.node for view in replicas.values()}
            return Views(views.cluster, _only(views.nodes, nodes), _only(views.deployments, {scope.name}), replicas)
        case _:
            return views


def concerns(scope: Scope, views: Views, event: Event) -> bool:
    """Whether an event belongs in the scope."""
    if scope.kind == "overview":
        return True
    kind, _, name = event.object.partition("/")
    match kind:
        case "node":
            return name in views.nodes if scope.kind == "node" else False
        case "deployment":
            return name in views.deployments if scope.kind == "deployment" else False
        case "replica":
            return name in views.replicas
        case _:
            return kind == "cluster"


def snapshot_of(views: Views, events: Sequence[Event]) -> WatchSnapshot:
    return WatchSnapshot(
        cluster=views.cluster,
        nodes=tuple(views.nodes.values()),
        deployments=tuple(views.deployments.values()),
        replicas=tuple(views.replicas.values()),
        events=tuple(events),
    )


def difference(before: Views, after: Views, events: Sequence[Event] = ()) -> WatchDelta | None:
    """What makes `after` of `before`; None when nothing does."""
    delta = WatchDelta(
        cluster=None if before.cluster == after.cluster else after.cluster,
        nodes=_changed(before.nodes, after.nodes),
        deployments=_changed(before.deployments, after.deployments),
        replicas=_changed(before.replicas, after.replicas),
        gone_nodes=_gone(before.nodes, after.nodes),
        gone_deployments=_gone(before.deployments, after.deployments),
        gone_replicas=_gone(before.replicas, after.replicas),
        events=tuple(events),
    )
    return delta if delta != _NOTHING else None


_NOTHING = WatchDelta()


def _only(views: Mapping[str, View], names: set[str]) -> dict[str, View]:
    return {name: view for name, view in views.items() if name in names}


def _changed(before: Mapping[str, View], after: Mapping[str, View]) -> tuple[View, ...]:
    return tuple(view for name, view in after.items() if (known := before.get(name)) is not view and known != view)


def _gone(before: Mapping[str, View], after: Mapping[str, View]) -> tuple[str, ...]:
    return tuple(name for name in before if name not in after)
