"""Engines somebody started by hand: found within seconds, shown as unmanaged, never ours, never touched."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from nebula_core.records.adoption import AdoptTarget
from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from tests.agent.loops.test_life import ask
from tests.support.agent import eventually
from tests.support.engine_process import VLLM_MODEL, VLLM_VENV, gone, missing_vllm
from tests.support.ports import free_ports

pytestmark = pytest.mark.timeout(120)

DISCOVERY = {"enabled": True}


@pytest.fixture
def by_hand():
    """Starts engines as somebody at a shell would; all are gone afterwards."""
    processes = []

    def start(*words, env=None):
        process = subprocess.Popen(
            [*words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def simulator(port, *words):
    name = () if "--served-model-name" in words else ("--served-model-name", "mine")
    return (
        *(sys.executable, "-m", "nebula_agent.simulator", "--host", "127.0.0.1", "--port", str(port)),
        *("--preset", "instant", *name, *words),
    )


async def found(cluster, pid, seconds=45.0):
    async def look():
        report = await cluster.report()
        statuses = () if report is None else report.replicas
        return next((one for one in statuses if one.pid == pid and one.phase is Phase.READY), None)

    return await eventually(look, f"{pid} is found", seconds)


async def test_an_engine_started_by_hand_is_shown(cluster, by_hand):
    agent = cluster.agent(discovery=DISCOVERY).start()
    await eventually(cluster.report, "the agent reports")
    port = free_ports(1)
    before = time.time()
    engine = by_hand(*simulator(port, "--max-model-len", "2048"))
    status = await found(cluster, engine.pid)
    assert not status.managed
    assert (status.model, status.engine, status.runtime, status.simulated) == ("mine", "simulated", "process", True)
    assert (status.endpoint.host, status.endpoint.port) == ("127.0.0.1", port)
    assert status.deployment == status.id
    assert status.engine_version is not None
    assert status.sample is not None
    assert status.found.why_not is None
    assert dict(status.found.spec.args) == {"preset": "instant", "max-model-len": 2048}
    assert before - 5 < status.started_at < time.time() + 5

    assert agent.stop() == 0
    assert engine.poll() is None, "the agent leaves, the engine is none of its own"

    agent.start()
    await cluster.returned(agent)
    again = await found(cluster, engine.pid)
    assert again.id == status.id
    engine.terminate()
    engine.wait(60)

    async def gone():
        report = await cluster.report()
        return all(one.id != status.id for one in report.replicas)

    await eventually(gone, "an engine that ended is not shown")


async def test_engines_of_agents_are_not_found(cluster, by_hand):
    """Neither this agent's own nor those of another cluster on this machine, by their mark; nor what runs below one."""
    cluster.agent(discovery=DISCOVERY).start()
    await cluster.place(cluster.placement())
    ours = await cluster.until(Phase.READY)
    other = by_hand(*simulator(free_ports(1)), env={"NEBULA_ENGINE": "another/chat-r1/e1"})
    engine = by_hand(*simulator(free_ports(1)))
    await found(cluster, engine.pid)
    # A second one that came later was seen in a later look: the ones before it were all looked at.
    later = by_hand(*simulator(free_ports(1)))
    await found(cluster, later.pid)
    pids = {one.pid: one.managed for one in (await cluster.report()).replicas}
    assert pids[ours.pid]
    assert pids[engine.pid] is False
    assert other.pid not in pids


async def test_a_key_is_used_and_never_told(cluster, by_hand):
    cluster.agent(discovery=DISCOVERY).start()
    await eventually(cluster.report, "the agent reports")
    file = cluster.directory / "hand.key"
    file.write_text("sk-by-hand\n")
    file.chmod(0o600)
    engine = by_hand(*simulator(free_ports(1), "--api-key-file", str(file)))
    status = await found(cluster, engine.pid)
    assert status.found.needs_key
    assert status.found.has_key
    assert status.found.why_not is None
    assert "sk-by-hand" not in (await cluster.report()).to_json()


async def test_a_port_that_another_process_holds_is_not_asked(cluster, by_hand):
    """A command line is anybody's to write: what listens must be the process that was found."""
    cluster.agent(discovery=DISCOVERY).start()
    await eventually(cluster.report, "the agent reports")
    port = free_ports(1)
    real = by_hand(*simulator(port))
    await found(cluster, real.pid)
    script = cluster.directory / "vllm"
    script.write_text("import time; time.sleep(600)")
    liar = by_hand(sys.executable, str(script), "serve", "m", "--port", str(port))

    async def seen():
        report = await cluster.report()
        return next((one for one in report.replicas if one.pid == liar.pid and one.phase_reason), None)

    status = await eventually(seen, "the liar is seen")
    assert status.phase is Phase.LOADING
    assert status.phase_reason == f"port {port} is held by another process"
    assert status.found.why_not == status.phase_reason
    assert status.endpoint is None


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.skipif(missing_vllm() is not None, reason=str(missing_vllm()))
async def test_a_real_vllm_is_found_once_it_answers(cluster, by_hand):
    cluster.agent(discovery=DISCOVERY).start()
    port = free_ports(8)
    vllm = by_hand(
        *(str(VLLM_VENV / "bin" / "vllm"), "serve", str(VLLM_MODEL), "--port", str(port), "--enforce-eager"),
        *("--served-model-name", "tiny", "--max-model-len", "2048", "--max-num-seqs", "16"),
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
    )

    async def shown():
        report = await cluster.report()
        return next((one for one in report.replicas if one.pid == vllm.pid), None) if report else None

    status = await eventually(shown, "it is shown while it loads")
    status = await found(cluster, vllm.pid, 300)
    assert (status.engine, status.model, status.engine_version) == ("vllm", "tiny", "0.32.0")
    assert status.found.spec.source == str(VLLM_MODEL)
    unmanaged = [one for one in (await cluster.report()).replicas if not one.managed]
    below = {child.pid for child in psutil.Process(vllm.pid).children(recursive=True)}
    assert below
    assert not below & {one.pid for one in unmanaged}, "its workers are none of their own"


def target_of(status, **changes):
    values = {
        "found": status.id,
        "pid": status.pid,
        "pid_born": status.found.pid_born,
        "host": status.found.probe_host,
        "port": status.endpoint.port,
        "served_model": status.model,
    }
    return AdoptTarget.model_validate(values | changes)


async def test_a_found_engine_is_taken_in_without_a_restart(cluster, by_hand):
    agent = cluster.agent(discovery=DISCOVERY, term_seconds=3.0).start()
    await eventually(cluster.report, "the agent reports")
    file = cluster.directory / "hand.key"
    file.write_text("sk-by-hand\n")
    file.chmod(0o600)
    port = free_ports(1)
    engine = by_hand(*simulator(port, "--api-key-file", str(file)))
    status = await found(cluster, engine.pid)
    spec = status.found.spec.model_dump(exclude_defaults=True)
    placement = await cluster.place(cluster.placement("chat-r1", spec=spec, adopt=target_of(status)))
    ready = await cluster.until(Phase.READY)
    assert ready.managed
    assert (ready.pid, ready.endpoint.port, ready.restarts) == (engine.pid, port, 0)
    assert ready.endpoint.served_model == "mine"
    assert cluster.key_of(ready) == "sk-by-hand"
    asked = {"model": "mine", "prompt": "Hello", "max_tokens": 3}
    assert ask(ready, cluster.key_of(ready), **asked).status_code == 200
    assert [one.managed for one in (await cluster.report()).replicas if one.pid == engine.pid] == [True]

    # An agent that dies and returns finds it as it finds its own.
    agent.kill()
    agent.start()
    await cluster.returned(agent)
    ready = await cluster.until(Phase.READY)
    assert ready.pid == engine.pid

    # It ends: now it is started as its deployment says.
    engine.kill()
    engine.wait(60)

    async def anew():
        status = await cluster.status()
        return status if status.phase is Phase.READY and status.pid not in {None, engine.pid} else None

    ready = await eventually(anew, "it is started anew")
    assert ready.restarts == 1
    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    assert gone(ready.pid)


async def test_an_adopted_engine_is_stopped_and_nothing_else(cluster, by_hand):
    cluster.agent(discovery=DISCOVERY, term_seconds=3.0).start()
    await eventually(cluster.report, "the agent reports")
    # As from a shell script: the engine is no leader of a group, and its neighbour is none of its own.
    line = " ".join(simulator(free_ports(1)))
    shell = by_hand("/bin/bash", "-c", f"sleep 600 & {line} & wait")

    def child(program):
        # By the first word: until its `exec`, every child of the shell has the shell's own line, with both names in it.
        children = psutil.Process(shell.pid).children()
        return next((one for one in children if one.cmdline()[:1] == [program]), None)

    engine = await eventually(lambda: child(sys.executable), "the engine runs")
    neighbour = await eventually(lambda: child("sleep"), "its neighbour runs")
    status = await found(cluster, engine.pid)
    placement = await cluster.place(cluster.placement("chat-r1", adopt=target_of(status)))
    await cluster.until(Phase.READY)
    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    assert gone(engine.pid)
    assert neighbour.is_running()
    assert shell.poll() is None


@pytest.mark.parametrize(
    "change", [{"pid_born": 1.0}, {"port": 1}, {"served_model": "other"}, {"found": "vllm-1-none"}]
)
async def test_another_engine_than_the_one_meant_is_not_taken_in(cluster, by_hand, change):
    cluster.agent(discovery=DISCOVERY).start()
    await eventually(cluster.report, "the agent reports")
    engine = by_hand(*simulator(free_ports(1)))
    status = await found(cluster, engine.pid)
    await cluster.place(cluster.placement("chat-r1", adopt=target_of(status, **change)))
    failed = await cluster.until(Phase.FAILED)
    assert failed.phase_reason
    assert failed.pid is None
    assert engine.poll() is None
    assert [one.managed for one in (await cluster.report()).replicas if one.pid == engine.pid] == [False]
