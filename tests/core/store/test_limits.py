"""Budgets of keys in the store: never more than the limit is out, whatever workers do."""

import asyncio
import random
import time
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nebula_core.records.lease import Budget, Claim, Slice
from nebula_core.store import keys
from nebula_core.store.store import Store


@pytest.fixture(autouse=True)
def _patient(store: Store) -> None:
    """Where requests wait for it, it is given half a second; here it may be busy."""
    store._limits.timeout_seconds = 30.0


@dataclass
class Worker:
    """A worker as the store sees one; it may lose answers."""

    name: str
    store: Store
    request_limit: int | None = 100
    token_limit: int | None = None
    stream_limit: int | None = None
    spent: int = 0
    granted: int = 0
    spent_tokens: int = 0
    granted_tokens: int = 0
    open: int = 0
    slots: int = 0

    @property
    def held(self) -> int:
        return self.granted - self.spent

    async def ask(self, want: int = 0, *, tokens: int = 0, streams: int = 0, lost: bool = False) -> Slice:
        # What it will not keep it gives up before it says so.
        keep = max(0, min(self.held, want))
        self.granted = self.spent + keep
        keep_tokens = max(0, min(self.granted_tokens - self.spent_tokens, tokens))
        self.granted_tokens = self.spent_tokens + keep_tokens
        claim = Claim(
            "k",
            Budget(self.request_limit, self.spent, keep, want),
            Budget(self.token_limit, self.spent_tokens, keep_tokens, tokens),
            self.stream_limit,
            self.open,
            streams,
        )
        (found,) = await self.store.lease_limits(self.name, [claim], 10.0)
        if not lost:
            self.granted, self.granted_tokens, self.slots = found.granted_requests, found.granted_tokens, found.streams
        return found


async def test_a_slice_is_taken_from_the_budget_and_given_back(store: Store) -> None:
    one, two = Worker("one", store), Worker("two", store)
    first = await one.ask(30)
    assert first == Slice(30, 0, 0, 70, 0, 0)
    second = await two.ask(90)
    assert second.granted_requests == 70
    one.spent += 10
    assert (await one.ask(0)).granted_requests == 10
    assert (await two.ask(90)).granted_requests == 90, "what one gave back"
    assert (await one.ask(10)).requests_left == 0, "what came since is less than what nobody holds"


async def test_a_call_that_is_repeated_takes_nothing_twice(store: Store) -> None:
    one = Worker("one", store)
    for _ in range(5):
        assert (await one.ask(40, lost=True)).granted_requests == 40
    assert (await one.ask(40)).requests_left == 60


async def test_what_was_spent_beyond_the_grant_is_owed(store: Store) -> None:
    # So few that nothing comes back while the test runs: one in a minute.
    one = Worker("one", store, request_limit=None, token_limit=1)
    await one.ask(tokens=1)
    one.spent_tokens += 4
    found = await one.ask(tokens=1)
    assert found.granted_tokens == 4, "nothing on top"
    assert found.tokens_left == -3


async def test_a_bucket_is_refilled_evenly_and_never_above_its_limit(store: Store) -> None:
    one = Worker("one", store, request_limit=6000)
    began = time.monotonic()
    await one.ask(6000)
    one.spent = 6000
    await one.ask(0)
    async with asyncio.timeout(30):
        while (await one.ask(50)).granted_requests < 6050:
            await asyncio.sleep(0.01)
    took = time.monotonic() - began
    assert one.granted <= 6000 + 100 * took + 1
    other = Worker("other", store, request_limit=10)
    assert (await other.ask(100)).granted_requests <= 10, "a limit that was lowered holds at once"


async def test_a_worker_that_is_gone_holds_nothing_for_ever(store: Store) -> None:
    # One request a minute: none comes back by itself while the test runs.
    here = Worker("here", store, request_limit=1, stream_limit=3)
    claim = Claim("k", Budget(1, wanted=1), Budget(), 3, 2, 2)
    (taken,) = await store.lease_limits("gone", [claim], 0.05)
    assert taken.granted_requests == 1
    found = await here.ask(10, streams=3)
    async with asyncio.timeout(30):
        while found.streams < 3:
            await asyncio.sleep(0.01)
            found = await here.ask(10, streams=3)
    assert found.granted_requests == 0, "its slice counts as spent"


async def test_slots_are_never_leased_twice(store: Store) -> None:
    workers = [Worker(f"w{number}", store, None, None, 5) for number in range(3)]
    dice = random.Random(1)
    for _ in range(200):
        one = dice.choice(workers)
        one.open = min(one.open, one.slots)
        await one.ask(streams=dice.randrange(6))
        one.open = dice.randint(0, one.slots)
        assert sum(worker.slots for worker in workers) <= 5
    assert one.slots >= one.open


async def test_it_is_forgotten_when_it_says_nothing_any_more(store: Store) -> None:
    await Worker("one", store).ask(100)
    left = int(await store._commands.ask("PTTL", keys.limits("k")))
    assert 60_000 <= left <= 70_001


async def test_many_keys_go_in_one_call(store: Store) -> None:
    found = await store.lease_limits("w", [Claim(f"k{n}", Budget(n + 1, wanted=99)) for n in range(50)], 1)
    assert [one.granted_requests for one in found] == [n + 1 for n in range(50)]
    assert await store.lease_limits("w", [], 1) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(1, 200),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(0, 60), st.booleans()), max_size=25),
)
@pytest.mark.parametrize("what", ["requests", "tokens"])
async def test_never_more_than_the_limit_is_out(
    store: Store, what: str, limit: int, steps: list[tuple[int, int, int, bool]]
) -> None:
    """The law: spent by all <= limit * (1 + T / 60), with answers lost at random."""
    await store._commands.ask("DEL", keys.limits("k"))
    of = {"request_limit": limit} if what == "requests" else {"request_limit": None, "token_limit": limit}
    workers = [Worker(f"w{number}", store, **of) for number in range(3)]  # type: ignore[arg-type]
    began = time.monotonic()
    for number, want, spend, lost in steps:
        one = workers[number]
        if what == "requests":
            await one.ask(want, lost=lost)
            one.spent += min(spend, one.held)
            out = sum(worker.spent for worker in workers)
        else:
            await one.ask(tokens=want, lost=lost)
            one.spent_tokens += min(spend, one.granted_tokens - one.spent_tokens)
            out = sum(worker.spent_tokens for worker in workers)
        assert out <= limit * (1 + (time.monotonic() - began) / 60)
