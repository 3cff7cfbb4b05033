"""From a signed placement to an engine that answers, and away again, with real processes."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from nebula_core.records.event import ChangeKind
from nebula_core.records.node import Node
from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from nebula_core.security.envelope import SigningKey, sign_placement
from tests.support.agent import eventually
from tests.support.engine_process import gone

pytestmark = pytest.mark.timeout(90)


def ask(status, key, path="/v1/completions", **body):
    url = f"http://{status.endpoint.host}:{status.endpoint.port}{path}"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    content = {"model": status.model, "prompt": "Hello", "max_tokens": 3, **body}
    return httpx.post(url, json=content, headers=headers, timeout=60, trust_env=False)


def port_is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    return True


async def test_a_signed_placement_becomes_an_engine_that_answers(cluster):
    agent = cluster.agent().start()
    await cluster.place(cluster.placement())
    status = await cluster.until(Phase.READY)
    assert status.engine == "simulated"
    assert status.simulated
    assert status.pid is not None
    assert status.load_seconds is not None
    assert status.model == "chat"
    answer = ask(status, cluster.key_of(status))
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3
    # Its key is of this start, sealed, and nowhere to be read.
    assert ask(status, None).status_code == 401
    for process in agent.engines():
        assert cluster.key_of(status) not in " ".join(process.cmdline())
    node = Node.from_json(await eventually(lambda: cluster.store.get(ChangeKind.NODE, "n1"), "the inventory"))
    assert "simulated" in node.engines
    assert "process" in node.runtimes
    sampled = await eventually(lambda: sample_of(cluster), "a sample with rates")
    assert sampled.requests_running == 0
    assert sampled.missing == ()
    schema = (await cluster.status()).metrics_schema
    assert schema.expected == schema.found > 8
    assert (schema.missing, schema.renamed) == ((), ())


async def sample_of(cluster):
    status = await cluster.status()
    return status.sample if status.sample and status.sample.generation_tokens_per_second is not None else None


async def test_drain_serves_on_stop_leaves_nothing_and_the_replica_is_forgotten(cluster):
    agent = cluster.agent().start()
    placement = await cluster.place(cluster.placement())
    ready = await cluster.until(Phase.READY)
    await cluster.want(placement, Wanted.DRAIN)
    draining = await cluster.until(Phase.DRAINING)
    assert draining.pid == ready.pid
    assert ask(draining, cluster.key_of(draining)).status_code == 200
    await cluster.want(placement, Wanted.RUN)
    assert (await cluster.until(Phase.READY)).pid == ready.pid
    await cluster.want(placement, Wanted.STOP)
    stopped = await cluster.until(Phase.STOPPED)
    assert stopped.pid is None
    assert agent.engines() == []
    assert port_is_free(ready.endpoint.port)
    await eventually(lambda: list((agent.data / "keys").iterdir()) == [], "its key is gone")
    await cluster.remove("chat-r1")

    async def forgotten():
        report = await cluster.report()
        return report.replicas == ()

    await eventually(forgotten, "the replica is forgotten")
    await eventually(lambda: list((agent.data / "replicas").iterdir()) == [], "by the disk too")


async def test_absence_of_a_placement_stops_nothing(cluster):
    cluster.agent().start()
    await cluster.place(cluster.placement())
    ready = await cluster.until(Phase.READY)
    await cluster.remove("chat-r1")
    before = (await cluster.report()).sequence

    async def reported_twice():
        report = await cluster.report()
        return report.sequence > before + 2 and report

    report = await eventually(reported_twice, "two more reports")
    assert [(status.pid, status.phase) for status in report.replicas] == [(ready.pid, Phase.READY)]


async def test_a_killed_engine_is_told_and_started_again(cluster):
    agent = cluster.agent().start()
    await cluster.place(cluster.placement())
    ready = await cluster.until(Phase.READY)
    family = {process.pid for process in agent.engines()}
    assert len(family) == 2
    os.kill(ready.pid, signal.SIGKILL)
    failed = await cluster.failed()
    assert "SIGKILL" in failed.first_failure_reason
    again = await cluster.until(Phase.READY)
    assert again.pid != ready.pid
    assert again.engine_epoch != ready.engine_epoch
    assert again.restarts == 1
    assert ask(again, cluster.key_of(again)).status_code == 200
    assert not family & {process.pid for process in agent.engines()}


async def test_an_orphan_is_ended_before_the_engine_starts_again(cluster):
    agent = cluster.agent().start()
    await cluster.place(cluster.placement(spec={"args": {"preset": "instant", "fault": "orphan-child"}}))
    ready = await cluster.until(Phase.READY)
    child = next(process for process in agent.engines() if process.pid != ready.pid)
    os.kill(ready.pid, signal.SIGKILL)
    await cluster.failed()
    again = await cluster.until(Phase.READY)
    assert again.pid != ready.pid
    assert gone(child.pid)


def mapped_files(processes):
    lines = [line for process in processes for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()]
    return {line.split()[-1] for line in lines if "/dev/shm/" in line}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm here")
async def test_shared_memory_that_a_killed_engine_left_is_swept(cluster):
    agent = cluster.agent().start()
    placement = await cluster.place(cluster.placement(spec={"args": {"preset": "instant", "fault": "shm-leak"}}))
    ready = await cluster.until(Phase.READY)
    mapped = mapped_files(agent.engines())
    assert len(mapped) == 2
    os.killpg(ready.pid, signal.SIGKILL)
    await cluster.failed()
    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    assert not [path for path in mapped if os.path.exists(path)]  # noqa: ASYNC240, PTH110


async def test_a_start_that_fails_says_why_and_is_given_up_loudly(cluster):
    cluster.agent().start()
    placement = await cluster.place(cluster.placement(spec={"args": {"preset": "instant", "fault": "failed-start=0"}}))
    failed = await cluster.until(Phase.FAILED)
    assert "exit code 1" in failed.phase_reason
    assert "initialization failed" in failed.phase_reason
    assert any("initialization failed" in line for line in failed.failure_log)

    async def given_up():
        report = await cluster.report()
        return report.problems and report

    report = await eventually(given_up, "giving up", 60)
    (problem,), (status,) = report.problems, report.replicas
    assert (problem.code, problem.severity) == ("given_up", "crit")
    assert "Given up after 5 failures" in status.phase_reason
    assert "restart the deployment" in status.phase_reason
    assert status.first_failure_reason == failed.phase_reason
    # Another spec is another try.
    await cluster.place(placement.model_copy(update={"spec": cluster.placement().spec}))
    await cluster.until(Phase.READY)
    assert (await cluster.report()).problems == ()


async def test_a_start_that_takes_too_long_is_ended_with_the_step_it_had_reached(cluster):
    agent = cluster.agent().start()
    await cluster.place(
        cluster.placement(spec={"args": {"preset": "instant", "fault": "slow-start=60"}, "start_deadline_seconds": 2.0})
    )
    failed = await cluster.until(Phase.FAILED)
    assert "not ready within 2 s" in failed.phase_reason
    assert "nobody listens" in failed.phase_reason
    del agent


async def test_an_engine_that_ignores_sigterm_is_killed(cluster):
    agent = cluster.agent(term_seconds=1.0).start()
    placement = await cluster.place(cluster.placement(spec={"args": {"preset": "instant", "fault": "sigterm-hang"}}))
    await cluster.until(Phase.READY)
    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    assert agent.engines() == []


async def test_an_engine_that_hangs_is_restarted(cluster):
    cluster.agent(health={"frozen_seconds": 2.0}, term_seconds=1.0).start()
    await cluster.place(cluster.placement(spec={"args": {"preset": "tiny", "fault": "freeze-at-token=2"}}))
    ready = await cluster.until(Phase.READY)
    hanging = asyncio.create_task(asyncio.to_thread(ask, ready, cluster.key_of(ready), max_tokens=50))
    failed = await cluster.failed()
    assert "frozen" in failed.first_failure_reason
    again = await cluster.until(Phase.READY)
    assert again.pid != ready.pid
    await asyncio.gather(hanging, return_exceptions=True)


async def test_a_placement_signed_by_a_stranger_is_refused_and_named(cluster):
    agent = cluster.agent().start()
    await cluster.lead()
    forged = cluster.placement(epoch=cluster.epoch, revision=1)
    await cluster.write("chat-r1", sign_placement(SigningKey.generate(), forged))

    async def problem():
        report = await cluster.report()
        return report and next((p for p in report.problems if p.code == "placement_refused"), None)

    told = await eventually(problem, "the refusal is told")
    assert "unknown key" in told.message
    assert agent.engines() == []


async def test_what_the_node_refuses_is_told_as_a_failed_replica(cluster):
    cluster.agent().start()
    await cluster.place(cluster.placement(spec={"args": {"port": 80}}))
    failed = await cluster.until(Phase.FAILED)
    assert "args.port is set by the agent" in failed.phase_reason
    await cluster.place(cluster.placement("vl-r1", spec={"engine": "llamacpp", "source": "/nowhere/m.gguf"}))
    failed = await cluster.until(Phase.FAILED, "vl-r1")
    assert "this node has no llamacpp" in failed.phase_reason
