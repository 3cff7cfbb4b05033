"""What a dialog shows before anything is done: the pass the leader would make, over a changed view."""

from nebula_core.planning.preview import preview
from nebula_core.planning.reconcile import reconcile
from nebula_core.records.deployment import Move
from nebula_core.records.node import DrainIntent, NodeIntent
from nebula_core.records.plan import Bucket
from tests.support.cluster_model import ClusterModel, make_deployment, make_node


def serving(replicas: int = 2) -> ClusterModel:
    model = ClusterModel([make_node("n1", 4), make_node("n2", 4)])
    model.deploy(make_deployment(replicas=replicas))
    model.settle()
    return model


def test_scale_up_says_where_and_what_is_blocked():
    model = ClusterModel([make_node("n1", 2)])
    model.deploy(make_deployment(replicas=1))
    model.settle()
    wanted = make_deployment(replicas=4, generation=2)
    plan = preview(model.view, model.policy, model.now, deployments={"chat": wanted})
    assert plan.summary == (
        "starts chat-r2 on n1 [1]; 2 blocked: needs 1 GPU; nearest is n1: 0 of 1 GPUs free (held: chat-r1, chat-r2)"
    )


def test_what_is_shown_is_what_is_done():
    model = serving()
    wanted = make_deployment(replicas=5, generation=2)
    shown = preview(model.view, model.policy, model.now, deployments={"chat": wanted})
    model.deploy(wanted)
    done = reconcile(model.view, model.policy, model.now)
    assert [(one.replica, one.reason) for one in shown.changes] == [(one.replica, one.reason) for one in done.changes]


def test_it_changes_nothing():
    model = serving()
    before = model.view
    preview(model.view, model.policy, model.now, deployments={"chat": None})
    assert model.view is before
    assert model.plan().changes == ()


def test_deleting_drains_all_also_when_it_is_more_than_one():
    model = serving()
    model.deploy(make_deployment("code", 2))
    model.settle()
    plan = preview(model.view, model.policy, model.now, deployments={"chat": None, "code": None})
    assert plan.brake is None
    assert len(plan.changes) == 4


def test_the_drain_of_a_node_names_every_replica_that_moves():
    model = serving(4)
    intent = NodeIntent(node="n1", drain=DrainIntent(by="ops", since=0.0))
    plan = preview(model.view, model.policy, model.now, intents={"n1": intent})
    moving = {entry.replica for entry in plan.entries if entry.bucket is Bucket.MOVING}
    assert moving == {placement.replica for placement in model.placed("chat") if placement.node == "n1"}
    assert [change.reason for change in plan.changes] == ["starts chat-r5 on n2 [2]"]


def test_a_move_of_one_replica():
    model = serving()
    former = model.view.deployments["chat"]
    order = Move(replica="chat-r1", generation=former.generation + 1, reason="restart asked for by ops")
    moved = former.model_copy(update={"generation": former.generation + 1, "moves": (order,)})
    plan = preview(model.view, model.policy, model.now, deployments={"chat": moved})
    assert "restart asked for by ops; its replacement starts first" in [entry.reason for entry in plan.entries]
