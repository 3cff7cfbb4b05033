"""One leader may act, and none but the newest may write."""

import asyncio
import random

import pytest

from nebula_core.errors import Fenced
from nebula_core.records.event import ChangeKind
from nebula_core.records.placement import Placement, SignedPlacement
from nebula_core.security.envelope import SigningKey, sign_placement
from nebula_core.store import keys
from nebula_core.store.leadership import Leader
from nebula_core.store.store import Store
from tests.support.records import a_placement

KEY = SigningKey.generate()


def signed(replica: str, epoch: int, revision: int = 0) -> SignedPlacement:
    return sign_placement(KEY, a_placement(replica, epoch=epoch, revision=revision))


async def stored_epoch(store: Store, replica: str) -> int | None:
    raw = await store.get(ChangeKind.PLACEMENT, replica)
    return None if raw is None else Placement.from_json(SignedPlacement.from_json(raw).payload).epoch


async def test_one_holds_the_lease_and_each_grant_has_a_higher_epoch(store: Store) -> None:
    assert await store.leader() is None
    assert await store.acquire_lease("a", 10) == 1
    assert await store.acquire_lease("b", 10) is None
    assert await store.leader() == Leader("a", 1)
    assert await store.renew_lease("a", 1, 10)
    assert not await store.renew_lease("b", 1, 10)
    assert not await store.release_lease("b")
    assert await store.release_lease("a")
    assert not await store.renew_lease("a", 1, 10)
    assert await store.acquire_lease("b", 10) == 2


async def test_of_many_candidates_one_is_granted(store: Store) -> None:
    granted = await asyncio.gather(*(store.acquire_lease(f"holder:{n}", 10) for n in range(20)))
    assert [epoch for epoch in granted if epoch is not None] == [1]


async def test_a_lease_ends_by_itself_but_its_epoch_stays(store: Store) -> None:
    assert await store.acquire_lease("a", 0.05) == 1
    async with asyncio.timeout(5):
        while (epoch := await store.acquire_lease("b", 10)) is None:
            await asyncio.sleep(0.005)
    assert epoch == 2
    assert not await store.renew_lease("a", 1, 10)


async def test_a_holder_that_asks_again_gets_a_newer_epoch(store: Store) -> None:
    """Its first answer may have been lost; the old epoch is fenced like any other."""
    assert await store.acquire_lease("a", 10) == 1
    assert await store.acquire_lease("a", 10) == 2
    assert not await store.renew_lease("a", 1, 10)
    with pytest.raises(Fenced):
        await store.apply_placements(1, [("chat-r1", signed("chat-r1", 1))])


async def test_a_leader_rises_above_what_agents_remember(store: Store) -> None:
    """The store came back empty; the agents have obeyed epoch 41."""
    assert await store.acquire_lease("a", 10, above=41) == 42
    await store.release_lease("a")
    assert await store.acquire_lease("a", 10, above=7) == 43


async def test_a_batch_is_applied_whole_or_not_at_all(store: Store) -> None:
    await store.acquire_lease("a", 10)
    revision = await store.apply_placements(1, [(f"chat-r{n}", signed(f"chat-r{n}", 1)) for n in range(5)])
    assert revision == 5
    assert await store.apply_placements(1, [("chat-r0", signed("chat-r0", 1)), ("chat-r9", None)]) == 5
    await store.release_lease("a")
    await store.acquire_lease("b", 10)
    before = await store.get_all(ChangeKind.PLACEMENT)
    with pytest.raises(Fenced, match="epoch 2"):
        await store.apply_placements(
            1, [(f"chat-r{n}", signed(f"chat-r{n}", 1, 9)) for n in range(9)] + [("chat-r1", None)]
        )
    assert await store.get_all(ChangeKind.PLACEMENT) == before
    assert await store.revision() == 5
    assert await store.apply_placements(2, [("chat-r0", None), ("chat-r1", signed("chat-r1", 2))]) == 7
    assert [entry_id for entry_id, _ in await store._commands.ask("XRANGE", keys.CHANGES, "-", "+")] == [
        f"{n}-0" for n in range(1, 8)
    ]


async def test_an_old_leader_never_writes_again_in_a_thousand_rounds(store: Store) -> None:
    """Fault row 18: leaders that sleep through their lease and wake at the worst moment."""
    dice = random.Random(18)
    epochs: dict[str, int] = {}
    highest = 0
    applied: dict[str, int] = {}
    refused = 0
    for round_number in range(1000):
        leader = dice.choice("abcd")
        if leader not in epochs or dice.random() < 0.2:
            # Somebody's lease ends, whoever has it, and this one is granted the next.
            await store._commands.ask("DEL", keys.LEASE)
            granted = await store.acquire_lease(leader, 10)
            assert granted is not None
            assert granted > highest
            highest = epochs[leader] = granted
            continue
        replica = f"chat-r{dice.randrange(3)}"
        work = store.apply_placements(epochs[leader], [(replica, signed(replica, epochs[leader], round_number))])
        if epochs[leader] < highest:
            with pytest.raises(Fenced):
                await work
            refused += 1
        else:
            await work
            applied[replica] = epochs[leader]
        assert await stored_epoch(store, replica) == applied.get(replica)
    assert refused > 200


async def test_two_leaders_at_once_never_go_back(store: Store) -> None:
    """The same with both really running: what stands in the store only ever rises."""
    first = await store.acquire_lease("a", 10)
    await store._commands.ask("DEL", keys.LEASE)
    assert first is not None
    taken_over = asyncio.Event()

    async def old() -> int:
        written = 0
        try:
            while True:
                await store.apply_placements(first, [("chat-r1", signed("chat-r1", first, written))])
                written += 1
                if written == 20:
                    taken_over.set()
        except Fenced:
            return written

    async def new() -> int:
        await taken_over.wait()
        second = await store.acquire_lease("b", 10)
        assert second is not None
        for number in range(50):
            await store.apply_placements(second, [("chat-r1", signed("chat-r1", second, number))])
            assert await stored_epoch(store, "chat-r1") == second
        return second

    async with asyncio.timeout(20):
        written, second = await asyncio.gather(old(), new())
    assert written >= 20
    assert await stored_epoch(store, "chat-r1") == second


async def test_a_full_store_lets_the_leader_keep_its_lease(own_store) -> None:
    """M11: renewal goes on under OOM, writes fail visibly."""
    from nebula_core.errors import StoreUnavailable
    from nebula_core.records.event import Event
    from nebula_core.store.connection import connect

    server = own_store()
    async with await connect(server.settings()) as store:
        epoch = await store.acquire_lease("a", 10)
        assert epoch is not None
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="out of memory"):
            await store.append_event(Event(kind="k", object="o/o", message="m", actor="a", at=1))
        with pytest.raises(StoreUnavailable, match="out of memory"):
            await store.apply_placements(epoch, [("chat-r1", signed("chat-r1", epoch))])
        assert await store.renew_lease("a", epoch, 10)
        assert await store.revision() == 0


async def test_an_epoch_that_was_granted_twice_writes_for_the_later_one_alone(store: Store) -> None:
    """Redis was killed before it had written the first grant down."""
    assert await store.acquire_lease("a", 30) == 1
    await store._commands.ask("DEL", keys.LEASE, keys.EPOCH)
    assert await store.acquire_lease("b", 30) == 1
    with pytest.raises(Fenced):
        await store.apply_placements(1, [("chat-r1", signed("chat-r1", 1))], holder="a")
    assert await store.apply_placements(1, [("chat-r1", signed("chat-r1", 1))], holder="b") == 1
