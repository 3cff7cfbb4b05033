"""Supervised tasks: an iteration may fail, the loop goes on; nothing outlives its supervisor unseen."""

import asyncio
from itertools import pairwise

import pytest

from nebula_core.runtime.tasks import LONGEST_PAUSE_SECONDS, TaskSupervisor, pause_after
from tests.support.clock import FakeClock, settle


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_an_iteration_is_called_at_its_pace(clock: FakeClock) -> None:
    began: list[float] = []

    async def iteration() -> None:
        began.append(clock.monotonic())
        await clock.sleep(0.3)

    async with TaskSupervisor("test", clock) as tasks:
        tasks.every("tick", 1.0, iteration)
        await clock.advance(3.5)
    assert began == pytest.approx([1000.0, 1001.0, 1002.0, 1003.0])


async def test_a_late_iteration_is_not_made_up_for(clock: FakeClock) -> None:
    began: list[float] = []

    async def iteration() -> None:
        began.append(clock.monotonic())
        await clock.sleep(2.5 if len(began) == 1 else 0.0)

    async with TaskSupervisor("test", clock) as tasks:
        tasks.every("tick", 1.0, iteration)
        await clock.advance(5.0)
    assert began == pytest.approx([1000.0, 1002.5, 1003.5, 1004.5])


async def test_failures_pause_longer_and_are_forgotten_after_a_success(clock: FakeClock) -> None:
    began: list[float] = []
    healthy = False

    async def iteration() -> None:
        began.append(clock.monotonic() - 1000.0)
        if not healthy:
            raise ConnectionError("away")

    async with TaskSupervisor("test", clock) as tasks:
        tasks.every("tick", 1.0, iteration)
        await clock.advance(1.5)
        assert began == pytest.approx([0.0, 0.1, 0.3, 0.7, 1.5])
        state = tasks.states["tick"]
        assert (state.failures, state.failing, state.runs) == (5, 5, 0)
        assert state.last_error == "ConnectionError('away')"
        healthy = True
        await clock.advance(2.0)
        assert (state.failures, state.failing) == (5, 0)
        healthy = False
        del began[:]
        await clock.advance(0.75)
        await clock.advance(0.3)
        assert began[1] - began[0] == pytest.approx(0.1)


def test_pauses_are_bounded() -> None:
    pauses = [pause_after(failing) for failing in range(1, 200)]
    assert pauses == sorted(pauses)
    assert pauses[0] == 0.1
    assert max(pauses) == LONGEST_PAUSE_SECONDS


async def test_an_eternal_task_that_returns_is_begun_again(clock: FakeClock) -> None:
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1

    async with TaskSupervisor("test", clock) as tasks:
        tasks.eternal("loop", run)
        await clock.advance(0.35)
        assert runs == 3
        assert tasks.states["loop"].failures == 3


async def test_an_eternal_task_that_was_healthy_begins_with_the_first_pause(clock: FakeClock) -> None:
    began: list[float] = []

    async def run() -> None:
        began.append(clock.monotonic())
        await clock.sleep(100.0)
        raise RuntimeError("died")

    async with TaskSupervisor("test", clock) as tasks:
        tasks.eternal("loop", run)
        await clock.advance(350.0)
    assert [later - earlier for earlier, later in pairwise(began)] == pytest.approx([100.1] * 3)


async def test_a_task_that_may_end_is_logged_not_raised(clock: FakeClock) -> None:
    async def fail() -> None:
        raise ValueError("bad")

    async def work() -> int:
        return 7

    async with TaskSupervisor("test", clock) as tasks:
        tasks.once("bad", fail())
        tasks.once("good", work())
        await settle()
        assert tasks.states["bad"].last_error == "ValueError('bad')"
        assert tasks.states["good"].runs == 1


async def test_an_iteration_that_never_waits_does_not_starve_the_others() -> None:
    count = 0

    async def busy() -> None:
        nonlocal count
        count += 1

    async with TaskSupervisor("test") as tasks:
        tasks.repeat("busy", busy)
        await settle(50)
        assert count > 10


async def test_stopping_names_what_is_stuck(clock: FakeClock) -> None:
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async def good() -> None:
        await clock.sleep(1000)

    tasks = TaskSupervisor("test", clock)
    task = tasks.once("stubborn", stubborn())
    tasks.repeat("good", good)
    await settle()
    assert await tasks.stop(grace_seconds=0.01) == ("test:stubborn",)
    assert tasks.stuck == ("test:stubborn",)
    release.set()
    await task
    assert await tasks.stop() == ()


async def test_nothing_starts_after_the_end(clock: FakeClock) -> None:
    async def iteration() -> None:
        await clock.sleep(1)

    tasks = TaskSupervisor("test", clock)
    await tasks.stop()
    with pytest.raises(RuntimeError, match="is stopping"):
        tasks.repeat("late", iteration)


async def test_leaving_the_context_by_an_error_stops_all(clock: FakeClock) -> None:
    ended = asyncio.Event()

    async def iteration() -> None:
        try:
            await clock.sleep(1000)
        finally:
            ended.set()

    async def owner() -> None:
        async with TaskSupervisor("test", clock) as tasks:
            tasks.repeat("loop", iteration)
            await settle()
            raise KeyError("x")

    with pytest.raises(KeyError):
        await owner()
    assert ended.is_set()
