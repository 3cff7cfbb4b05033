"""The memory of repeated calls: once per key, forgotten after ten minutes, never for a failure."""

import asyncio

import pytest

from nebula_core.records.views import WhoAmI
from nebula_proxy.control.refusals import CallRefused
from nebula_proxy.control.repeats import KEPT, KEPT_SECONDS, Repeats
from tests.support.clock import FakeClock


class Work:
    def __init__(self) -> None:
        self.runs = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False

    async def __call__(self) -> WhoAmI:
        self.runs += 1
        await self.gate.wait()
        if self.fails:
            raise CallRefused(409, "conflict", "no")
        return WhoAmI(name=str(self.runs), role="admin", key_id="k")


async def test_the_second_gets_the_answer_of_the_first() -> None:
    repeats, work = Repeats(FakeClock()), Work()
    first = await repeats.once("k", "a", "f", work)
    assert await repeats.once("k", "a", "f", work) == first
    assert work.runs == 1
    await repeats.once("k", None, "f", work)
    await repeats.once("other", "a", "f", work)
    assert work.runs == 3


async def test_both_at_once_wait_for_one() -> None:
    repeats, work = Repeats(FakeClock()), Work()
    work.gate.clear()
    calls = [asyncio.create_task(repeats.once("k", "a", "f", work)) for _ in range(3)]
    await asyncio.sleep(0)
    work.gate.set()
    answers = await asyncio.gather(*calls)
    assert (work.runs, len({answer.name for answer in answers})) == (1, 1)


async def test_a_failure_may_be_tried_again() -> None:
    repeats, work = Repeats(FakeClock()), Work()
    work.fails = True
    with pytest.raises(CallRefused):
        await repeats.once("k", "a", "f", work)
    work.fails = False
    assert (await repeats.once("k", "a", "f", work)).name == "2"


async def test_who_gives_up_waiting_cancels_nobody_else() -> None:
    repeats, work = Repeats(FakeClock()), Work()
    work.gate.clear()
    first = asyncio.create_task(repeats.once("k", "a", "f", work))
    await asyncio.sleep(0)
    second = asyncio.create_task(repeats.once("k", "a", "f", work))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    work.gate.set()
    assert (await first).name == "1"


async def test_it_is_bounded_in_time_and_number() -> None:
    clock, work = FakeClock(), Work()
    repeats = Repeats(clock)
    for number in range(KEPT + 50):
        await repeats.once("k", str(number), "f", work)
    assert len(repeats) <= KEPT
    await clock.advance(KEPT_SECONDS + 1)
    await repeats.once("k", "new", "f", work)
    assert len(repeats) == 1
