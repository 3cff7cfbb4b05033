"""The lease as one candidate holds it: what it believes never outlasts what the store granted."""

import pytest

from nebula_core.errors import StoreUnavailable
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.store import keys
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from nebula_proxy.control.leader import Lease, LeaseSettings, highest_obeyed_epoch
from tests.support.clock import FakeClock
from tests.support.records import a_report
from tests.support.store import StoreServer


def end_of_lease(server: StoreServer) -> None:
    """Its time is over by the store's own clock."""
    assert server.command("PEXPIRE", keys.LEASE, "0") == b":1\r\n"


async def test_the_first_leader_may_write_at_once(store: Store) -> None:
    lease = Lease(store, FakeClock(), "a")
    assert not lease.may_write()
    assert await lease.hold() == 1
    assert lease.may_write()
    assert lease.leader == ("a", 1)


async def test_the_second_sees_who_leads_and_waits(store: Store) -> None:
    first, second = Lease(store, FakeClock(), "a"), Lease(store, FakeClock(), "b")
    await first.hold()
    assert await second.hold() is None
    assert second.leader == ("a", 1)
    assert not second.may_write()


async def test_its_own_deadline_ends_before_the_stores(store: Store) -> None:
    clock = FakeClock()
    lease = Lease(store, clock, "a", LeaseSettings(ttl_seconds=10, margin_seconds=1))
    await lease.hold()
    await clock.advance(8.9)
    assert lease.may_write()
    await clock.advance(0.2)
    assert not lease.may_write()
    assert lease.epoch is None


async def test_renewal_moves_the_deadline_and_keeps_the_epoch(store: Store) -> None:
    clock = FakeClock()
    lease = Lease(store, clock, "a")
    for _ in range(10):
        assert await lease.hold() == 1
        await clock.advance(2.0)
    assert lease.may_write()


async def test_a_leader_whose_time_was_over_comes_back_with_a_new_epoch(store: Store) -> None:
    clock = FakeClock()
    lease = Lease(store, clock, "a")
    await lease.hold()
    await clock.advance(20)
    assert await lease.hold() == 2


async def test_after_anothers_death_nothing_is_written_for_the_lock_delay(
    store: Store, store_server: StoreServer
) -> None:
    clock = FakeClock()
    dead = Lease(store, FakeClock(), "dead")
    heir = Lease(store, clock, "heir", LeaseSettings(lock_delay_seconds=4.0))
    await dead.hold()
    assert await heir.hold() is None
    end_of_lease(store_server)
    await clock.advance(1.0)
    assert await heir.hold() == 2
    assert heir.leader == ("heir", 2)
    assert not heir.may_write()
    await clock.advance(4.0)
    assert heir.may_write()


async def test_a_leader_that_was_replaced_unnoticed_finds_out_when_it_renews(
    store: Store, store_server: StoreServer
) -> None:
    frozen_clock = FakeClock()
    frozen = Lease(store, frozen_clock, "frozen")
    await frozen.hold()
    other = Lease(store, FakeClock(), "other")
    end_of_lease(store_server)
    assert await other.hold() == 2
    assert frozen.may_write(), "its clock stood still: it cannot know"
    await frozen_clock.advance(frozen.settings.renew_seconds)
    assert await frozen.hold() is None
    assert frozen.leader == ("other", 2)


async def test_a_lost_answer_does_not_end_a_lease_that_still_runs(own_store) -> None:
    server = own_store()
    clock = FakeClock()
    async with await connect(server.settings(lease_timeout_seconds=30)) as store:
        lease = Lease(store, clock, "a")
        assert await lease.hold() == 1
        server.freeze()
        store._lease.timeout_seconds = 0.2
        await clock.advance(3.0)
        assert await lease.hold() == 1
        await clock.advance(6.5)
        with pytest.raises(StoreUnavailable):
            await lease.hold()
        assert lease.epoch is None
        server.thaw()


async def test_it_rises_above_what_agents_have_obeyed_also_while_it_leads(store: Store) -> None:
    lease = Lease(store, FakeClock(), "a")
    assert await lease.hold(above=41) == 42
    assert await lease.hold(above=42) == 42
    assert await lease.hold(above=50) == 51


async def test_released_it_is_free_at_once(store: Store) -> None:
    first, second = Lease(store, FakeClock(), "a"), Lease(store, FakeClock(), "b")
    await first.hold()
    await first.release()
    assert first.leader is None
    assert await second.hold() == 2
    assert second.may_write()


def test_a_forged_epoch_does_not_use_up_the_numbers() -> None:
    view = ClusterSnapshot().with_reports([a_report("n1", max_epoch=7), a_report("n2", max_epoch=1 << 60)], at=0.0)
    assert highest_obeyed_epoch(view) == 7
