"""The agent comes and goes: engines stay and are adopted, or are stopped with it, and nobody is left behind."""

import asyncio
import os
import signal
import socket
import threading
from tempfile import TemporaryDirectory

import pytest

from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from tests.agent.loops.test_life import ask
from tests.support.agent import eventually
from tests.support.engine_process import gone

pytestmark = pytest.mark.timeout(120)


async def test_a_killed_agent_leaves_its_engine_and_the_next_one_adopts_it_as_ready(cluster):
    agent = cluster.agent().start()
    await cluster.place(cluster.placement())
    before = await cluster.until(Phase.READY)
    key = cluster.key_of(before)
    agent.kill()
    assert ask(before, key).status_code == 200
    agent.start()
    report = await cluster.returned(agent)
    # Its very first word already says ready, so no proxy drops the engine.
    assert [status.phase for status in report.replicas] == [Phase.READY]
    after = report.replicas[0]
    assert (after.pid, after.engine_epoch, after.restarts) == (before.pid, before.engine_epoch, 0)
    assert cluster.key_of(after) == key
    assert len(agent.engines()) == 2


async def test_an_agent_killed_again_and_again_under_traffic_restarts_nothing(cluster):
    agent = cluster.agent().start()
    await cluster.place(cluster.placement(spec={"args": {"preset": "tiny"}}))
    before = await cluster.until(Phase.READY)
    key, answers, over = cluster.key_of(before), [], threading.Event()

    def traffic():
        while not over.is_set():
            answers.append(ask(before, key, max_tokens=10).status_code)

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            agent.signal(number)
            agent.wait()
            agent.start()
            report = await cluster.returned(agent)
            assert [(status.pid, status.phase) for status in report.replicas] == [(before.pid, Phase.READY)]
        await eventually(lambda: len(answers) > 10, "many were answered")
    finally:
        over.set()
        thread.join(60)
    assert set(answers) == {200}


async def test_sigterm_says_that_it_leaves_and_leaves_the_engine(cluster):
    agent = cluster.agent().start()
    await cluster.place(cluster.placement())
    before = await cluster.until(Phase.READY)
    assert agent.stop() == 0
    report = await cluster.report()
    assert report.leaving
    assert report.replicas[0].phase is Phase.READY
    assert ask(before, cluster.key_of(before)).status_code == 200
    assert await cluster.store.node_holder("n1") is None


async def test_with_stop_engines_it_takes_them_along_and_starts_them_again(cluster):
    agent = cluster.agent(stop_engines=True).start()
    for name in ("chat-r1", "chat-r2"):
        await cluster.place(cluster.placement(name))
    first = await cluster.until(Phase.READY, "chat-r1")
    await cluster.until(Phase.READY, "chat-r2")
    assert agent.stop() == 0
    assert agent.engines() == []
    report = await cluster.report()
    assert report.leaving
    assert {status.phase for status in report.replicas} == {Phase.STOPPED}
    agent.start()
    again = await cluster.until(Phase.READY, "chat-r1")
    await cluster.until(Phase.READY, "chat-r2")
    assert again.pid != first.pid


async def test_an_engine_that_died_while_nobody_looked_is_told_and_started_again(cluster):
    agent = cluster.agent().start()
    await cluster.place(cluster.placement(spec={"args": {"preset": "instant", "fault": "orphan-child"}}))
    before = await cluster.until(Phase.READY)
    orphan = next(process for process in agent.engines() if process.pid != before.pid)
    agent.kill()
    os.kill(before.pid, signal.SIGKILL)
    agent.start()
    await cluster.returned(agent)
    again = await cluster.until(Phase.READY)
    assert again.pid != before.pid
    assert again.restarts == 1
    assert gone(orphan.pid)


async def test_a_start_that_was_never_written_down_is_ended(cluster):
    """Killed between the start of the engine and the note of it."""
    agent = cluster.agent().start()
    await cluster.place(cluster.placement())
    before = await cluster.until(Phase.READY)
    agent.kill()
    (agent.data / "replicas" / "chat-r1.json").unlink()
    agent.start()
    await cluster.returned(agent)
    again = await cluster.until(Phase.READY)
    assert again.pid != before.pid
    engines = agent.engines()
    assert len(engines) == 2
    assert before.pid not in {process.pid for process in engines}


async def test_without_a_store_engines_are_adopted_and_restarted(cluster, own_store):
    """Absence is no order: the last order on disk is obeyed."""
    agent = cluster.agent().start()
    await cluster.place(cluster.placement())
    before = await cluster.until(Phase.READY)
    agent.kill()
    agent.config.write_text(agent.config.read_text().replace(cluster.store.settings.url, "unix:///nowhere/store"))
    agent.start()
    os.kill(before.pid, signal.SIGKILL)

    def another():
        return [process for process in agent.engines() if session(process.pid) not in {None, before.pid}]

    await eventually(lambda: len(another()) == 2, "another engine")
    await eventually(lambda: "report_not_published" in agent.log, "no store is told")


def session(pid):
    """Each start has its own; None: the process has ended meanwhile."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


async def test_an_order_that_came_while_it_was_away_is_obeyed_on_return(cluster):
    agent = cluster.agent().start()
    placement = await cluster.place(cluster.placement())
    await cluster.until(Phase.READY)
    agent.kill()
    await cluster.lead()
    await cluster.want(placement, Wanted.STOP)
    await cluster.place(cluster.placement("chat-r2"))
    agent.start()
    await cluster.until(Phase.STOPPED, "chat-r1")
    await cluster.until(Phase.READY, "chat-r2")
    assert (await cluster.report()).max_epoch == cluster.epoch


async def test_a_second_agent_is_refused_by_folder_and_by_name(cluster):
    first = cluster.agent().start()
    await cluster.returned(first)
    same_folder = cluster.agent()
    same_folder.start()
    assert await asyncio.to_thread(same_folder.wait) == 1
    assert f"pid {first.pid}" in same_folder.log
    same_name = cluster.agent(data_dir=str(cluster.directory / "elsewhere"))
    same_name.start()
    assert await asyncio.to_thread(same_name.wait) == 1
    assert "has an agent already" in same_name.log
    assert first.process.poll() is None


async def test_the_claim_is_not_held_up_by_a_dead_agent(cluster):
    agent = cluster.agent().start()
    await cluster.returned(agent)
    agent.kill()
    assert await cluster.store.node_holder("n1") is not None
    agent.start()
    await cluster.returned(agent)


async def test_logs_flow_only_while_somebody_watches(cluster):
    cluster.agent().start()
    await cluster.place(cluster.placement())
    status = await cluster.until(Phase.READY)
    assert await cluster.store.read_logs("chat-r1") == []
    await cluster.store.watch_logs("chat-r1")
    first = await eventually(lambda: cluster.store.read_logs("chat-r1"), "the last lines there are")
    assert any("Starting simulated engine" in line.text for line in first)
    assert {line.source for line in first} == {"chat-r1"}
    ask(status, None, "/nowhere")

    async def followed():
        return [line for line in await cluster.store.read_logs("chat-r1", first[-1].id) if "nowhere" in line.text]

    assert await eventually(followed, "the line of the request")


async def test_the_store_may_go_and_come_back(tmp_path, own_store):
    from nebula_core.store.connection import connect
    from tests.support.agent import Cluster

    server = own_store()
    async with await connect(server.settings()) as store:
        cluster = Cluster(tmp_path, store)
        agent = cluster.agent().start()
        try:
            placement = await cluster.place(cluster.placement())
            before = await cluster.until(Phase.READY)
            server.kill()
            await eventually(lambda: "report_not_published" in agent.log, "the loss is noticed")
            assert ask(before, cluster.key_of(before)).status_code == 200
            server.lose_data()
            server.start()
            report = await cluster.returned(agent)
            assert [(status.pid, status.phase) for status in report.replicas] == [(before.pid, Phase.READY)]
            cluster.epoch = report.max_epoch
            await cluster.lead()
            await cluster.want(placement, Wanted.STOP)
            await cluster.until(Phase.STOPPED)
            assert agent.engines() == []
        finally:
            cluster.close()


async def test_systemd_hears_that_it_is_ready_that_it_lives_and_that_it_leaves(cluster, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, TemporaryDirectory(prefix="nbs") as short:
        address = f"{short}/notify"
        systemd.bind(address)
        systemd.setblocking(False)
        heard: list[str] = []

        def hears(word):
            def look():
                try:
                    while True:
                        heard.extend(systemd.recv(4096).decode().splitlines())
                except BlockingIOError:
                    return word in heard

            return look

        agent = cluster.agent(env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000000"}).start()
        await eventually(hears("READY=1"), "ready")
        await eventually(hears("WATCHDOG=1"), "a full tick")
        assert agent.stop() == 0
        await eventually(hears("STOPPING=1"), "leaving")
