"""What each call makes of a record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.planning.revision import spec_of_generation
from nebula_core.records.deployment import Autoscale, Deployment
from nebula_core.records.node import NodeIntent
from nebula_proxy.control import changes
from nebula_proxy.control.refusals import CallRefused
from tests.support.cluster_model import make_deployment

WHO = {"by": "li", "at": 5.0}


def test_saying_it_twice_changes_nothing() -> None:
    former = make_deployment("chat", 2)
    assert changes.scale(former, 2, **WHO) is former
    assert changes.apply_spec(former, "chat", former.spec, **WHO) is former
    intent = changes.cordon(None, "n1", by="li")
    assert changes.cordon(intent, "n1", by="bo") is intent
    drained = changes.drain(intent, "n1", 60.0, None, **WHO)
    assert changes.drain(drained, "n1", 60.0, None, by="li", at=99.0) is drained
    opened = changes.uncordon(drained, "n1", by="li")
    assert not opened.closed
    assert changes.uncordon(opened, "n1", by="bo") is opened
    assert (intent.generation, drained.generation, opened.generation) == (1, 2, 3)


def test_a_drain_said_again_keeps_its_beginning() -> None:
    first = changes.drain(None, "n1", 60.0, None, by="li", at=5.0)
    again = changes.drain(first, "n1", 10.0, "hurry", by="bo", at=9.0)
    assert again.drain is not None
    assert (again.drain.since, again.drain.grace_seconds, again.drain.by) == (5.0, 10.0, "bo")


def test_gpus_are_cordoned_one_by_one() -> None:
    one = changes.cordon_gpu(None, "n1", "a", by="li")
    two = changes.cordon_gpu(one, "n1", "b", by="li")
    assert two.cordoned_gpus == ("a", "b")
    assert changes.cordon_gpu(two, "n1", "a", by="li") is two
    assert changes.uncordon_gpu(two, "n1", "a", by="li").cordoned_gpus == ("b",)
    # Opening the node says nothing of its GPUs.
    assert changes.uncordon(changes.cordon(two, "n1", by="li"), "n1", by="li").cordoned_gpus == ("a", "b")


EDITS = st.lists(st.sampled_from(["scale", "args", "restart", "undo", "rollback", "move"]), max_size=30)


@given(EDITS, st.lists(st.integers(0, 4), min_size=30, max_size=30))
def test_generations_and_history_stay_in_step(edits: list[str], numbers: list[int]) -> None:
    """Whatever is done, the history has the spec of each of the last generations at its place."""
    current = make_deployment("chat", 1)
    specs = {1: current.spec}
    for edit, number in zip(edits, numbers, strict=False):
        try:
            following = edited(current, edit, number)
        except CallRefused:
            continue
        assert (following is current) or following.generation == current.generation + 1
        current = following
        specs[current.generation] = current.spec
        assert len(current.history) <= changes.HISTORY_KEPT
        for generation in range(max(1, current.generation - len(current.history)), current.generation + 1):
            assert spec_of_generation(current, generation) == specs[generation]
        assert Deployment.from_json(current.to_json()) == current


def edited(current: Deployment, edit: str, number: int) -> Deployment:
    match edit:
        case "scale":
            return changes.scale(current, number, **WHO)
        case "args":
            spec = current.spec.model_copy(update={"args": {"n": number}})
            return changes.apply_spec(current, "chat", spec, **WHO)
        case "restart":
            return changes.restart(current, **WHO)
        case "undo":
            return changes.undo(current, **WHO)
        case "rollback":
            return changes.rollback(current, None, **WHO)
        case _:
            return changes.move(current, f"chat-r{number}", "why", {f"chat-r{number}"}, **WHO)


def test_rollback_keeps_the_number_of_replicas() -> None:
    first = make_deployment("chat", 1, args={"n": 1})
    second = changes.apply_spec(first, "chat", first.spec.model_copy(update={"args": {"n": 2}}), **WHO)
    third = changes.scale(second, 5, **WHO)
    back = changes.rollback(third, None, **WHO)
    assert (back.spec.args, back.spec.replicas) == ({"n": 1}, 5)
    assert changes.rollback(third, 3, **WHO) is third


def test_what_scales_itself_is_held_to_its_bounds() -> None:
    former = make_deployment("chat", 2, autoscale=Autoscale(min=1, max=3))
    assert changes.scale(former, 3, **WHO).spec.replicas == 3
    with pytest.raises(CallRefused, match="between 1 and 3"):
        changes.scale(former, 4, **WHO)


def test_orders_for_replicas_that_are_gone_are_dropped() -> None:
    one = changes.move(make_deployment("chat", 2), "chat-r1", "why", {"chat-r1", "chat-r2"}, **WHO)
    two = changes.move(one, "chat-r2", "why", {"chat-r2", "chat-r3"}, **WHO)
    assert [(move.replica, move.generation) for move in two.moves] == [("chat-r2", 3)]


@pytest.mark.parametrize(
    ("expected", "found", "good"),
    [
        *((None, 0, True), (None, 7, True)),
        *((0, 0, True), (0, 1, False), (3, 3, True), (3, 4, False), (3, 0, False)),
        *((changes.ANY_GENERATION, 2, True), (changes.ANY_GENERATION, 0, False)),
    ],
)
def test_expected_generations(expected: int | None, found: int, good: bool) -> None:
    if good:
        changes.expect_generation("x", expected, found)
        return
    with pytest.raises(CallRefused) as caught:
        changes.expect_generation("x", expected, found)
    assert caught.value.status == 409
    assert caught.value.headers["etag"] == f'"{found}"'


def test_an_intent_begins_at_generation_one() -> None:
    assert changes.cordon(NodeIntent(node="n1"), "n1", by="li").generation == 1


def with_adapters(name: str, *adapters: str) -> Deployment:
    return make_deployment(name, 1, adapters=[{"name": adapter, "source": "s"} for adapter in adapters])


@pytest.mark.parametrize(
    ("following", "what"),
    [
        (with_adapters("new", "chat"), "the adapter 'chat' cannot be: a deployment has that name"),
        (with_adapters("new", "sql"), "the adapter 'sql' cannot be: an adapter of chat has that name"),
        (with_adapters("sql"), "the deployment 'sql' cannot be: an adapter of chat has that name"),
        (with_adapters("new", "new"), "new has an adapter of its own name"),
    ],
)
def test_a_model_name_is_one_models(following: Deployment, what: str) -> None:
    others = {"chat": with_adapters("chat", "sql")}
    with pytest.raises(CallRefused, match=what) as refused:
        changes.with_free_names(following, others)
    assert refused.value.status == 409
    assert refused.value.hint


def test_a_deployment_may_keep_its_own_names() -> None:
    former = with_adapters("chat", "sql")
    following = with_adapters("chat", "sql", "poem")
    assert changes.with_free_names(following, {"chat": former, "other": with_adapters("other", "x")}) is following
