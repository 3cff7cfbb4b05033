"""The law of the watch: a difference, laid over what was told, gives what is."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.event import Event
from nebula_core.records.replica import Phase
from nebula_core.records.views import ClusterView, DeploymentView, NodeView, ReplicaView, WatchDelta
from nebula_proxy.control.scopes import Scope, concerns, cut, difference
from nebula_proxy.control.views import Views

NAMES = st.sampled_from(["a", "b", "c"])
SPEC = DeploymentSpec(source="s")


@st.composite
def views(draw: st.DrawFn) -> Views:
    nodes = {
        name: NodeView(id=name, state=draw(st.sampled_from(["ready", "lost"])), heartbeat_age_seconds=1.0)
        for name in draw(st.sets(NAMES))
    }
    deployments = {
        name: DeploymentView(
            name=name,
            generation=draw(st.integers(1, 2)),
            spec=SPEC,
            replicas_wanted=1,
            replicas_ready=0,
            replicas_starting=0,
            status="ready",
        )
        for name in draw(st.sets(NAMES))
    }
    replicas = {
        f"{name}-r1": ReplicaView(
            id=f"{name}-r1",
            deployment=name,
            model=name,
            node=draw(NAMES),
            engine="vllm",
            phase=draw(st.sampled_from([Phase.READY, Phase.LOST])),
        )
        for name in draw(st.sets(NAMES))
    }
    cluster = ClusterView(
        version="0", revision=draw(st.integers(0, 1)), incarnation="i", store_reachable=True, snapshot_age_seconds=0.0
    )
    return Views(cluster, nodes, deployments, replicas)


def laid_over(known: Views, delta: WatchDelta) -> Views:
    def part(before, changed, gone, key):
        return {
            **{name: view for name, view in before.items() if name not in gone},
            **{key(one): one for one in changed},
        }

    return Views(
        delta.cluster or known.cluster,
        part(known.nodes, delta.nodes, delta.gone_nodes, lambda one: one.id),
        part(known.deployments, delta.deployments, delta.gone_deployments, lambda one: one.name),
        part(known.replicas, delta.replicas, delta.gone_replicas, lambda one: one.id),
    )


SCOPES = st.one_of(
    st.just(Scope()), st.builds(Scope, st.just("node"), NAMES), st.builds(Scope, st.just("deployment"), NAMES)
)


@given(views(), views(), SCOPES)
def test_a_difference_laid_over_what_was_told_gives_what_is(before: Views, after: Views, scope: Scope) -> None:
    told, seen = cut(before, scope), cut(after, scope)
    delta = difference(told, seen)
    if delta is None:
        assert told == seen
        return
    assert told != seen
    # On the wire as well: fields that hold their default are left out there.
    assert laid_over(told, WatchDelta.from_json(delta.to_json())) == seen


@given(views(), SCOPES)
def test_a_cut_holds_together(whole: Views, scope: Scope) -> None:
    seen = cut(whole, scope)
    for view in seen.replicas.values():
        assert view.node in seen.nodes or view.node not in whole.nodes
        assert view.deployment in seen.deployments or view.deployment not in whole.deployments
    if scope.kind == "node":
        assert set(seen.nodes) <= {scope.name}
    if scope.kind == "deployment":
        assert set(seen.deployments) <= {scope.name}


@given(views(), SCOPES, st.sampled_from(["node", "deployment", "replica", "cluster", "key"]), NAMES)
def test_the_overview_hears_everything(whole: Views, scope: Scope, kind: str, name: str) -> None:
    event = Event(kind="k", object=f"{kind}/{name}", message="m", actor="a", at=0.0)
    heard = concerns(scope, cut(whole, scope), event)
    assert heard or scope.kind != "overview"
    if kind == "key":
        assert heard == (scope.kind == "overview")
