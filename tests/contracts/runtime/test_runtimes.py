"""What the owner of a replica relies on, whichever way its engine is run."""

import asyncio
import inspect
import os
from pathlib import Path

import pytest

from nebula_agent.adapters.runtime import Ended
from nebula_agent.decisions.lifecycle import Life
from tests.support.agent import eventually
from tests.support.engine_process import gone

pytestmark = pytest.mark.timeout(90, func_only=True)

FOR_EVER = "echo ready; while true; do sleep 0.1; done"
OBSTINATE = "trap '' TERM; echo ready; while true; do sleep 0.1; done"


def text_of(started):
    return Path(started.log_file).read_text()


async def wrote(started, text):
    log = Path(started.log_file)
    await eventually(lambda: log.exists() and text in log.read_text()[started.log_offset :], f"{text!r} in its log")


async def test_a_start_runs_and_writes_its_log(bench):
    started = await bench.start(FOR_EVER)
    assert bench.runtime.look(started).life is Life.RUNNING
    assert started.pid is not None
    assert not gone(started.pid)
    assert (started.runtime, started.engine_epoch, started.port) == (bench.runtime.kind, "e1", bench.first_port + 1)
    await wrote(started, "ready")
    ended = await bench.runtime.stop(started, term_seconds=5)
    assert ended.survivors == ()
    assert ended.failed is None
    assert gone(started.pid)


async def test_an_end_is_noticed_at_once_with_its_status_and_its_last_words(bench):
    started = await bench.start("echo going; sleep 0.3; echo last words; exit 7")
    async with asyncio.timeout(60):
        await bench.runtime.ended(started, 600)
    look = await eventually(lambda: (seen := bench.runtime.look(started)).life is Life.ENDED and seen, "its end")
    assert look.status == 7
    await wrote(started, "last words")
    assert (await bench.runtime.stop(started, term_seconds=1)).survivors == ()


async def test_waiting_for_an_end_is_over_after_its_time(bench):
    started = await bench.start(FOR_EVER)
    async with asyncio.timeout(30):
        await bench.runtime.ended(started, 0.2)
    assert bench.runtime.look(started).life is Life.RUNNING
    await bench.runtime.stop(started, term_seconds=2)


async def test_who_ignores_sigterm_is_killed(bench):
    started = await bench.start(OBSTINATE)
    await wrote(started, "ready")
    ended = await bench.runtime.stop(started, term_seconds=0.5)
    assert ended.killed
    assert ended.survivors == ()
    assert gone(started.pid)
    assert bench.runtime.look(started).life is Life.ENDED


async def test_stopping_what_is_gone_is_no_error(bench):
    started = await bench.start(FOR_EVER)
    await bench.runtime.stop(started, term_seconds=2)
    assert await bench.runtime.stop(started, term_seconds=2) in (Ended(), Ended(status=0))
    assert await bench.runtime.members(started) == frozenset()


async def test_another_agent_process_finds_it_and_nothing_is_written_twice(bench):
    started = await bench.start("echo only once; n=0; while true; do sleep 0.1; n=$((n+1)); echo tick $n; done")
    await wrote(started, "tick 3")
    bench.runtime.let_go(started)
    other = bench.again()
    other = await other if inspect.isawaitable(other) else other
    await other.know(started, "chat-r1")
    assert other.look(started).life is Life.RUNNING
    last = max(int(line.split()[1]) for line in text_of(started).split("\n") if line.startswith("tick"))
    await wrote(started, f"tick {last + 3}")
    lines = text_of(started).splitlines()
    assert lines.count("only once") == 1
    ticks = [line for line in lines if line.startswith("tick ")]
    assert ticks == [f"tick {n}" for n in range(1, len(ticks) + 1)]
    stopping = asyncio.create_task(other.stop(started, term_seconds=1))
    while not stopping.done():
        bench.runtime.look(started)  # the parent of a process has to reap it
        await asyncio.sleep(0.02)
    assert stopping.result().survivors == ()
    assert gone(started.pid)


async def test_a_second_start_writes_behind_the_first(bench):
    first = await bench.start("echo first; exit 0")
    await bench.runtime.ended(first, 60)
    await wrote(first, "first")
    await bench.runtime.stop(first, term_seconds=1)
    second = await bench.start("echo second; exit 0")
    assert second.engine_epoch != first.engine_epoch
    await bench.runtime.ended(second, 60)
    await wrote(second, "second")
    assert "first" not in text_of(second)[second.log_offset :]
    await bench.runtime.stop(second, term_seconds=1)


async def test_a_flood_of_lines_is_kept_whole(bench):
    started = await bench.start("n=0; while [ $n -lt 3000 ]; do n=$((n+1)); echo line $n; done; exit 0")
    await bench.runtime.ended(started, 80)
    await wrote(started, "line 3000\n")
    lines = text_of(started).splitlines()
    assert lines == [f"line {n}" for n in range(1, 3001)]
    await bench.runtime.stop(started, term_seconds=1)


async def test_two_at_once_are_kept_apart(bench):
    one, two = await bench.start(FOR_EVER, "a-r1"), await bench.start(FOR_EVER, "b-r1")
    await bench.runtime.stop(one, term_seconds=2)
    assert bench.runtime.look(two).life is Life.RUNNING
    assert os.path.samefile(two.log_file, bench.directory / "logs" / "b-r1.log")  # noqa: ASYNC240, PTH121
    await bench.runtime.stop(two, term_seconds=2)
