"""Durable records: compare-and-set, revisions, and a stream in which no change is missing."""

import asyncio

import pytest

from nebula_core.errors import Conflict
from nebula_core.records.access import ApiKey, Role
from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.event import ChangeKind
from nebula_core.records.node import NodeIntent
from nebula_core.store import keys
from nebula_core.store.store import Store


def deployment(name: str = "chat", generation: int = 1, **spec: object) -> Deployment:
    return Deployment(name=name, generation=generation, spec=DeploymentSpec.model_validate({"source": "m", **spec}))


async def test_what_is_put_is_got_and_each_change_has_the_next_revision(store: Store) -> None:
    first = await store.put(ChangeKind.DEPLOYMENT, "chat", deployment())
    second = await store.put(ChangeKind.DEPLOYMENT, "chat", deployment(generation=2, replicas=3))
    third = await store.remove(ChangeKind.DEPLOYMENT, "chat")
    assert [first, second, third] == [1, 2, 3]
    assert await store.get(ChangeKind.DEPLOYMENT, "chat") is None
    stream = await store._commands.ask("XRANGE", keys.CHANGES, "-", "+")
    assert [entry_id for entry_id, _ in stream] == ["1-0", "2-0", "3-0"]
    assert Deployment.from_json(stream[1][1]["value"]) == deployment(generation=2, replicas=3)
    assert stream[2][1] == {"kind": "deployment", "id": "chat"}


async def test_the_expected_generation_guards(store: Store) -> None:
    await store.put(ChangeKind.DEPLOYMENT, "chat", deployment(generation=4), expected_generation=0)
    with pytest.raises(Conflict, match="is at generation 4, none was expected"):
        await store.put(ChangeKind.DEPLOYMENT, "chat", deployment(generation=1), expected_generation=0)
    with pytest.raises(Conflict, match="generation 3 was expected"):
        await store.put(ChangeKind.DEPLOYMENT, "chat", deployment(generation=5), expected_generation=3)
    with pytest.raises(Conflict, match="does not exist"):
        await store.put(ChangeKind.DEPLOYMENT, "other", deployment("other"), expected_generation=1)
    with pytest.raises(Conflict):
        await store.remove(ChangeKind.DEPLOYMENT, "chat", expected_generation=3)
    await store.put(ChangeKind.DEPLOYMENT, "chat", deployment(generation=5), expected_generation=4)
    assert await store.remove(ChangeKind.DEPLOYMENT, "chat", expected_generation=5) == 3
    assert await store.revision() == 3


async def test_generations_that_records_leave_unsaid_are_known(store: Store) -> None:
    """Records travel without default fields: a key of generation 1 says none."""
    key = ApiKey(id="abcd", name="n", role=Role.VIEWER, secret_sha256="x", created_at=1, created_by="me")
    await store.put(ChangeKind.KEY, "abcd", key)
    await store.put(
        ChangeKind.KEY, "abcd", key.model_copy(update={"generation": 2, "revoked": True}), expected_generation=1
    )
    with pytest.raises(Conflict):
        await store.put(ChangeKind.KEY, "abcd", key, expected_generation=1)


async def test_of_many_writers_one_wins_each_generation(store: Store) -> None:
    await store.put(ChangeKind.DEPLOYMENT, "chat", deployment(generation=1))

    async def write(writer: int, generation: int) -> int | None:
        try:
            await store.put(
                ChangeKind.DEPLOYMENT,
                "chat",
                deployment(generation=generation + 1, replicas=writer),
                expected_generation=generation,
            )
        except Conflict:
            return None
        return writer

    for generation in range(1, 20):
        winners = [won for won in await asyncio.gather(*(write(n, generation) for n in range(8))) if won is not None]
        assert len(winners) == 1
        kept = await store.get(ChangeKind.DEPLOYMENT, "chat")
        assert kept is not None
        assert Deployment.from_json(kept).spec.replicas == winners[0]
    assert await store.revision() == 20


async def test_repeating_a_write_changes_nothing(store: Store) -> None:
    """A call whose answer was lost may be repeated without waking anybody."""
    assert await store.put(ChangeKind.INTENT, "n1", NodeIntent(node="n1", generation=1, cordoned=True)) == 1
    assert await store.put(ChangeKind.INTENT, "n1", NodeIntent(node="n1", generation=1, cordoned=True)) == 1
    assert await store.remove(ChangeKind.INTENT, "n2") == 1
    assert int(await store._commands.ask("XLEN", keys.CHANGES)) == 1


async def test_an_unreadable_record_conflicts_but_can_be_overwritten(store: Store) -> None:
    for garbage in ("{", "7", "[]", '{"generation":"x"}', ""):
        await store._commands.ask("HSET", keys.DURABLE[ChangeKind.DEPLOYMENT], "chat", garbage)
        with pytest.raises(Conflict):
            await store.put(ChangeKind.DEPLOYMENT, "chat", deployment(), expected_generation=1)
        await store.put(ChangeKind.DEPLOYMENT, "chat", deployment())


async def test_placements_have_no_way_round_the_fence(store: Store) -> None:
    with pytest.raises(TypeError):
        await store.put(ChangeKind.PLACEMENT, "r", deployment())
    with pytest.raises(TypeError):
        await store.remove(ChangeKind.PLACEMENT, "r")
    with pytest.raises(TypeError):
        await store.put(ChangeKind.NODE, "r", deployment())


async def test_the_stream_is_trimmed(store: Store) -> None:
    for number in range(1, 400):
        await store.put(ChangeKind.INTENT, "n", NodeIntent(node="n", generation=number))
    kept = int(await store._commands.ask("XLEN", keys.CHANGES))
    assert kept == 399
    await store._commands.ask("XTRIM", keys.CHANGES, "MAXLEN", 0)
    assert await store.put(ChangeKind.INTENT, "n", NodeIntent(node="n", generation=400)) == 400


async def test_the_incarnation_is_minted_once(store: Store) -> None:
    first, second = await asyncio.gather(store.ensure_meta(), store.ensure_meta())
    assert first == second
    await store._commands.ask("FLUSHALL")
    assert await store.ensure_meta() != first
