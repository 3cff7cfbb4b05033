"""What a change would do, as a dialog shows it: with figures from the same snapshot."""

from collections.abc import Mapping

from nebula_core.planning.preview import preview
from nebula_core.records.deployment import Deployment
from nebula_core.records.node import DrainIntent, NodeIntent
from nebula_core.records.plan import Bucket, Plan
from nebula_core.records.views import PlanView
from nebula_proxy.control.consequences import consequences, focused, leaving_replicas
from tests.support.cluster_model import ClusterModel, make_deployment, make_node


def model(*deployments: Deployment, nodes: int = 2, gpus: int = 2) -> ClusterModel:
    cluster = ClusterModel([make_node(f"n{number}", gpus) for number in range(1, nodes + 1)])
    for deployment in deployments:
        cluster.deploy(deployment)
    cluster.settle()
    return cluster


def shown(
    cluster: ClusterModel,
    concerned: set[str],
    *,
    deployments: Mapping[str, Deployment | None] | None = None,
    intents: Mapping[str, NodeIntent | None] | None = None,
) -> PlanView:
    without = preview(cluster.view, cluster.policy, cluster.now)
    planned = preview(cluster.view, cluster.policy, cluster.now, deployments=deployments, intents=intents)
    return consequences(cluster.view, without, planned, concerned, "headline", dry_run=True)


def test_nothing_to_plan_leaves_the_headline() -> None:
    cluster = model(make_deployment("chat", 1))
    answer = shown(cluster, {"chat"}, deployments={"chat": cluster.view.deployments["chat"]})
    assert (answer.summary, answer.inflight_affected, answer.last_ready) == ("headline", 0, False)


def test_the_last_ready_replica_is_told_and_its_requests_counted() -> None:
    cluster = model(make_deployment("chat", 2), make_deployment("other", 1))
    cluster.proxies["proxy-0"].inflight = {"chat-r1": 2, "chat-r2": 3, "other-r1": 9}
    cluster.hear()
    one = shown(cluster, {"chat"}, deployments={"chat": make_deployment("chat", 1, generation=2)})
    assert (one.last_ready, one.inflight_affected) == (False, 3)
    none = shown(cluster, {"chat"}, deployments={"chat": make_deployment("chat", 0, generation=2)})
    assert (none.last_ready, none.inflight_affected) == (True, 5)
    gone = shown(cluster, {"chat"}, deployments={"chat": None})
    assert (gone.last_ready, leaving_replicas(gone.plan)) == (True, {"chat-r1", "chat-r2"})


def test_a_drain_with_room_elsewhere_silences_nobody() -> None:
    cluster = model(make_deployment("chat", 1), nodes=2)
    [placed] = cluster.placed("chat")
    order = DrainIntent(by="li", since=0.0)
    answer = shown(cluster, {"chat"}, intents={placed.node: NodeIntent(node=placed.node, generation=1, drain=order)})
    assert not answer.last_ready
    assert leaving_replicas(answer.plan) == {"chat-r1"}
    assert answer.estimated_ready_seconds == 3.0


def test_a_drain_without_room_does() -> None:
    cluster = model(make_deployment("chat", 1), nodes=1)
    order = DrainIntent(by="li", since=0.0)
    answer = shown(cluster, {"chat"}, intents={"n1": NodeIntent(node="n1", generation=1, drain=order)})
    assert answer.last_ready


def test_a_model_that_never_loaded_has_no_estimate() -> None:
    cluster = model()
    answer = shown(cluster, {"new"}, deployments={"new": make_deployment("new", 1)})
    assert answer.plan.changes
    assert answer.estimated_ready_seconds is None


def test_a_neighbour_who_loses_his_room_is_shown() -> None:
    """`aaa` comes first in the alphabet and takes the last GPUs, which `zzz` was about to get."""
    cluster = model(nodes=1, gpus=2)
    cluster.deploy(make_deployment("zzz", 2))
    cluster.deploy(make_deployment("quiet", 1, gpus=8))
    answer = shown(cluster, {"aaa"}, deployments={"aaa": make_deployment("aaa", 2)})
    assert [one.deployment for one in answer.plan.unplaceable] == ["zzz"]


def test_what_goes_on_elsewhere_anyway_is_left_out() -> None:
    cluster = model(make_deployment("chat", 1), make_deployment("other", 1))
    cluster.change("other", replicas=2)
    answer = shown(cluster, {"chat"}, deployments={"chat": make_deployment("chat", 2, generation=2)})
    assert {change.placement.deployment for change in answer.plan.changes if change.placement} == {"chat"}
    assert {entry.deployment for entry in answer.plan.entries} == {"chat"}


def test_focus_keeps_the_brake() -> None:
    plan = Plan(brake="held")
    assert focused(Plan(), plan, frozenset()).brake == "held"


def test_buckets_of_leaving() -> None:
    cluster = model(make_deployment("chat", 2))
    answer = shown(cluster, {"chat"}, deployments={"chat": make_deployment("chat", 1, generation=2)})
    surplus = [entry.replica for entry in answer.plan.entries if entry.bucket is Bucket.SURPLUS]
    assert leaving_replicas(answer.plan) == set(surplus)
