"""The brake: when much is gone at once, nothing is changed, and the plan says why."""

from dataclasses import replace

import pytest

from nebula_core.planning.brake import allowed_yet
from nebula_core.planning.policy import Memory
from nebula_core.records.base import frozen_map
from nebula_core.records.store_memory import StoreDoubt
from tests.support.cluster_model import ClusterModel, make_deployment, make_node


def running(nodes: int, replicas: int | None = None) -> ClusterModel:
    model = ClusterModel([make_node(f"n{number}", 4) for number in range(1, nodes + 1)])
    model.deploy(make_deployment(replicas=replicas or nodes))
    model.settle()
    return model


def lose(model: ClusterModel, count: int) -> None:
    for name in sorted(model.nodes)[:count]:
        model.nodes[name].up = False


@pytest.mark.parametrize(
    ("nodes", "lost", "braked"),
    [
        (1, 1, True),
        (2, 1, False),
        (2, 2, True),
        (3, 1, False),
        (3, 2, True),
        (5, 2, False),
        (5, 3, True),
        (10, 6, True),
    ],
)
def test_it_holds_when_most_nodes_vanish_together(nodes: int, lost: int, braked: bool):
    model = running(nodes)
    lose(model, lost)
    plans = [model.step() for _ in range(15)]
    assert (plans[-1].brake is not None) is braked
    if braked:
        assert not any(plan.changes for plan in plans)


def test_it_says_how_many_and_which():
    model = running(5)
    lose(model, 4)
    for _ in range(12):
        plan = model.step()
    assert plan.brake is not None
    assert plan.brake.startswith("4 of 5 nodes fell silent together (n1, n2, n3, …)")


def test_it_holds_for_as_long_as_they_stay_away_and_all_are_back_without_action():
    model = running(5)
    lose(model, 3)
    for _ in range(300):
        assert not model.step().changes
    assert model.plan().brake is not None
    for node in model.nodes.values():
        node.up = True
    for _ in range(20):
        assert not model.step().changes
    assert model.plan().brake is None
    assert len(model.ready("chat")) == 5


def test_when_most_are_back_the_rest_is_replaced():
    model = running(5)
    lose(model, 3)
    for _ in range(30):
        model.step()
    model.nodes["n1"].up = model.nodes["n2"].up = True
    model.settle()
    assert len(model.ready("chat")) == 5
    assert {placement.node for placement in model.placed("chat")} == {"n1", "n2", "n4", "n5"}


def test_nodes_lost_one_after_another_are_replaced():
    model = running(4)
    for name in ("n1", "n2", "n3"):
        model.nodes[name].up = False
        for _ in range(100):
            model.step()
    assert model.plan().brake is None
    assert len(model.ready("chat")) == 4


def test_an_accepted_loss_releases_it():
    model = running(3)
    lose(model, 2)
    for _ in range(12):
        model.step()
    memory = replace(model.policy.memory, released=model.policy.memory.braked)
    model.policy = replace(model.policy, memory=memory)
    model.settle()
    assert len(model.ready("chat")) == 3


def test_a_new_leader_does_not_take_nodes_it_never_heard_of_for_lost_at_once():
    model = running(3)
    model.view = replace(model.view, reports=frozen_map())
    model.policy = replace(model.policy, memory=type(model.policy.memory)())
    for node in ("n2", "n3"):
        model.nodes[node].up = False
    for _ in range(10):
        assert not model.step().changes
    for _ in range(10):
        plan = model.step()
        assert not plan.changes
    assert plan.brake is not None


def test_a_node_that_has_been_dead_for_long_does_not_pull_it():
    """Its replicas were replaced long ago: a new leader finds nothing that should run there."""
    model = running(4, replicas=3)
    for name in ("n1", "n2", "n3"):
        model.nodes[name].up = False
        for _ in range(100):
            model.step()
    model.view = replace(model.view, reports=frozen_map())
    model.policy = replace(model.policy, memory=type(model.policy.memory)())
    for _ in range(30):
        plan = model.step()
    assert plan.brake is None


def two_models() -> ClusterModel:
    model = ClusterModel([make_node("n1", 8)])
    for name in ("chat", "code", "embed"):
        model.deploy(make_deployment(name, 2))
    model.settle()
    return model


def test_deployments_that_vanish_undeleted_keep_their_replicas():
    model = two_models()
    for name in ("chat", "code"):
        model._put("deployments", name, None)
    plan = model.step()
    assert plan.changes == ()
    assert plan.brake is not None
    assert "2 deployments are gone at once (chat, code) and nobody was seen deleting them" in plan.brake


def test_deployments_that_were_deleted_go():
    model = two_models()
    for name in ("chat", "code"):
        model.delete(name)
    model.settle()
    assert set(model.view.placements) == {"embed-r1", "embed-r2"}


@pytest.mark.parametrize("doubt", StoreDoubt)
def test_a_store_that_lost_its_memory_plans_nothing(doubt):
    model = two_models()
    model.policy = replace(model.policy, doubt=doubt)
    model.view = replace(model.view, deployments=frozen_map())
    plan = model.plan()
    assert plan.changes == ()
    assert plan.brake is not None


def begins_to_listen(replicas):
    """A cluster at rest whose leader has just begun to listen, and what is to be done for so many replicas of `chat`."""
    model = two_models()
    model.settle()
    model.policy = replace(model.policy, memory=Memory(listening_since=model.now))
    model.change("chat", replicas=replicas)
    changes = model.plan().changes
    assert changes
    return model, changes


def test_a_leader_that_begins_to_listen_takes_nothing_away():
    model, changes = begins_to_listen(replicas=1)
    assert allowed_yet(changes, model.policy, model.now + 2.9) == ()
    assert allowed_yet(changes, model.policy, model.now + 3.0) == changes
    assert allowed_yet(changes, replace(model.policy, memory=Memory()), model.now) == (), "it has not begun yet"


def test_a_leader_that_begins_to_listen_starts_what_is_missing():
    model, changes = begins_to_listen(replicas=3)
    assert allowed_yet(changes, model.policy, model.now) == changes
