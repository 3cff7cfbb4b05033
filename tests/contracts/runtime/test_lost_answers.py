"""The docker runtime where the daemon loses answers, breaks streams, goes away: faults that only a fake can time."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from nebula_agent.adapters.docker_engine import DockerRefused, DockerUnavailable
from nebula_agent.adapters.docker_runtime import ContainerRefused
from nebula_agent.adapters.runtime import StartImage
from nebula_agent.decisions.containers import ContainerState
from nebula_agent.decisions.lifecycle import Life
from tests.contracts.runtime.conftest import Bench, docker_runtime
from tests.contracts.runtime.test_runtimes import FOR_EVER
from tests.support.agent import eventually
from tests.support.fake_docker import FakeDocker


@pytest.fixture
async def fake():
    made = FakeDocker()
    yield made
    made.end()


@pytest.fixture
async def bench(fake, tmp_path):
    runtime = docker_runtime(fake, tmp_path)
    await runtime.open()
    yield Bench(runtime, lambda: docker_runtime(fake, tmp_path), tmp_path, StartImage("sha256:" + "a" * 64, "x"))
    await runtime.close()


async def test_a_creation_whose_answer_was_lost_is_found_by_its_name(bench, fake):
    fake.lose_answers = 1
    started = await bench.start(FOR_EVER)
    assert len(fake.boxes) == 1
    assert started.container_id in fake.boxes
    assert bench.runtime.look(started).life is Life.RUNNING


async def test_a_creation_that_never_came_fails_and_leaves_nothing(bench, fake):
    fake.away = True
    with pytest.raises(DockerUnavailable):
        async with asyncio.timeout(60):
            await bench.start(FOR_EVER)
    assert fake.boxes == {}


async def test_a_start_that_is_refused_leaves_no_created_container(bench, fake):
    fake.refuse = "driver failed programming external connectivity: port is already allocated"
    with pytest.raises(DockerRefused, match="already allocated"):
        await bench.start(FOR_EVER)
    assert fake.boxes == {}
    assert not list((bench.directory / "containers").glob("*"))


async def test_an_order_outside_of_the_policy_never_reaches_docker(bench, fake):
    bench.image = StartImage("busybox:latest", "busybox:latest")
    with pytest.raises(ContainerRefused, match="not named by its id"):
        await bench.start(FOR_EVER)
    assert fake.boxes == {}


async def test_an_end_that_no_event_told_is_seen_by_the_next_look(bench, fake):
    started = await bench.start(FOR_EVER)
    fake.mute = True
    bench.runtime._known[started.container_id].lines.close()
    await fake.kill(started.container_id, "SIGKILL")
    await eventually(lambda: fake.boxes[started.container_id].container.state is ContainerState.EXITED, "its end")
    await bench.runtime.look_around()
    look = bench.runtime.look(started)
    assert (look.life, look.status) == (Life.ENDED, 137)


async def test_a_daemon_that_was_restarted_between_two_looks_or_reloaded_is_asked_anew_what_it_is(
    bench, fake, monkeypatch
):
    streams = []
    monkeypatch.setattr(
        fake, "follow_events", lambda _label, heard: streams.append(heard) or SimpleNamespace(close=int)
    )
    runtime = bench.again()
    await runtime.open()
    [heard] = streams
    fake.live_restore = False
    await runtime.look_around()
    assert runtime.facts.live_restore, "it is not asked with each look"
    heard(None)  # its events come over another stream
    await eventually(lambda: not runtime.facts.live_restore, "the restart is noticed")
    fake.live_restore = True
    monkeypatch.setattr("nebula_agent.adapters.docker_runtime.FACTS_SECONDS", 0)
    await runtime.look_around()
    assert runtime.facts.live_restore
    await runtime.close()


async def test_what_was_removed_by_hand_has_ended(bench, fake):
    started = await bench.start(FOR_EVER)
    fake.mute = True
    await fake.remove(started.container_id)
    await bench.runtime.look_around()
    look = await eventually(lambda: (seen := bench.runtime.look(started)).life is Life.ENDED and seen, "its end")
    assert "removed" in look.said


async def test_while_docker_is_away_nothing_is_concluded_and_a_stop_is_put_off(bench, fake):
    started = await bench.start(FOR_EVER)
    fake.away = True
    with pytest.raises(DockerUnavailable):
        await bench.runtime.look_around()
    assert bench.runtime.look(started).life is Life.RUNNING
    assert bench.runtime.unavailable is not None
    ended = await bench.runtime.stop(started, term_seconds=0.2)
    assert "away" in ended.failed
    fake.away = False
    assert (await bench.runtime.stop(started, term_seconds=1)).failed is None
    assert fake.boxes == {}


async def test_an_agent_that_starts_while_docker_is_away_takes_it_for_running(bench, fake):
    started = await bench.start(FOR_EVER)
    other = bench.again()
    fake.away = True
    await other.open()
    await other.know(started, "chat-r1")
    assert other.look(started).life is Life.RUNNING
    fake.away = False
    await fake.kill(started.container_id, "SIGKILL")
    await eventually(lambda: fake.boxes[started.container_id].container.state is ContainerState.EXITED, "its end")
    await other.look_around()
    await eventually(lambda: other.look(started).life is Life.ENDED, "its end is seen")
    await other.close()


async def test_a_log_that_was_written_and_not_noted_comes_once(bench, fake):
    """Killed between a line and its cursor: cut back, and read again."""
    started = await bench.start("echo one; echo two; while true; do sleep 0.1; done")
    log = Path(started.log_file)
    await eventually(lambda: log.exists() and "two" in log.read_text(), "its lines")
    lines = bench.runtime._known[started.container_id].lines
    bench.runtime.let_go(started)
    await eventually(lambda: not lines.following, "it is let go")
    log.write_text("one\ntwo\nthree, as if written and not noted\n")  # noqa: ASYNC240 - of a test
    other = bench.again()
    await other.know(started, "chat-r1")
    await eventually(lambda: log.read_text() == "one\ntwo\n", "it is cut back")
    await other.close()
    assert log.read_text() == "one\ntwo\n"  # noqa: ASYNC240 - the same


async def test_a_log_whose_disk_hangs_keeps_no_engine_from_starting_and_none_from_ending(bench, fake, monkeypatch):
    """A pipe stands for the log: to open it takes until somebody reads."""
    monkeypatch.setattr("nebula_agent.adapters.docker_runtime.DISK_SECONDS", 0.1)
    monkeypatch.setattr("nebula_agent.adapters.docker_runtime.LAST_LINES_SECONDS", 0.1)
    log = bench.directory / "logs" / "chat-r1.log"
    log.parent.mkdir()
    os.mkfifo(log)
    first = await bench.start(FOR_EVER)
    assert bench.runtime.look(first).life is Life.RUNNING
    assert (await bench.runtime.stop(first, term_seconds=5)).failed is None
    assert fake.boxes == {}
    second = await bench.start("echo second; " + FOR_EVER)
    assert bench.runtime.look(second).life is Life.RUNNING
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        # Its server is back: each writer has its turn, the first one with nothing to write any more.
        said = bytearray()
        await eventually(lambda: said.extend(read_now(reader)) or b"ready" in said, "its lines")
        assert said == b"second\nready\n"
    finally:
        os.close(reader)


def read_now(handle):
    try:
        return os.read(handle, 1 << 16)
    except BlockingIOError:
        return b""


async def test_an_agent_that_starts_while_docker_hangs_does_not_wait_for_each_replica(bench, fake, monkeypatch):
    monkeypatch.setattr("nebula_agent.adapters.docker_runtime.OPEN_SECONDS", 0.1)
    started = await bench.start(FOR_EVER)
    other = bench.again()
    fake.answering.clear()
    async with asyncio.timeout(60):
        await other.open()
        for _ in range(20):
            await other.know(started, "chat-r1")
    assert other.look(started).life is Life.RUNNING
    assert "did not answer" in other.unavailable.message
    fake.answering.set()
    await other.look_around()
    assert other.unavailable is None
    await other.close()
