"""Containers somebody started by hand: found once they answer, shown as they are, never touched.

How soon is a figure of GOALS (E3), measured by `benchmarks/found_by_hand.py`: a wall clock proves nothing on a machine that is busy.
"""

import os
import signal
import time

import httpx
import pytest

from nebula_core.records.replica import Phase
from tests.agent.containers.test_life import settings
from tests.support.agent import eventually
from tests.support.by_hand import NEW_VLLM, OLD_VLLM, ByHand, make_vllm_images
from tests.support.docker import SIMULATOR
from tests.support.nvml import StubNvml
from tests.support.ports import free_ports

pytestmark = pytest.mark.timeout(120, func_only=True)

NODE_ADDRESS = "127.0.0.1"
ENGINE = ("python3", "-m", "nebula_agent.simulator", "--preset", "instant", "--served-model-name", "mine")


@pytest.fixture
def by_hand(docker):
    make_vllm_images(docker)
    return ByHand(docker)


@pytest.fixture
async def agent(cluster, docker):
    agent = cluster.agent(discovery={"enabled": True}, docker=settings(docker), address=NODE_ADDRESS).start()
    await eventually(cluster.report, "the agent reports")
    return agent


def answers(host, port, key=None):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        said = httpx.get(f"http://{host}:{port}/v1/models", headers=headers, timeout=10, trust_env=False)
    except httpx.TransportError:
        return False
    return said.status_code in {200, 401}


async def shown(cluster, container, phase=Phase.READY, reason=None):
    """Its row in the node's report once it is there in this phase."""
    report = await cluster.report()
    rows = () if report is None else [one for one in report.replicas if one.container_id == container]
    assert len(rows) < 2, rows
    return rows[0] if rows and rows[0].phase is phase and (reason is None or reason in str(rows[0])) else None


async def found(cluster, container, host, port):
    """Its row, once it answers."""
    await eventually(lambda: answers(host, port), "the engine answers")
    return await eventually(lambda: shown(cluster, container), f"{container[:12]} is shown")


CASES = {
    "published": (SIMULATOR, (*ENGINE, "--host", "0.0.0.0", "--port", "8000"), True),
    "of the host": (SIMULATOR, (*ENGINE, "--host", "127.0.0.1", "--port", "{port}"), False),
    "vllm serve": (NEW_VLLM, ("tiny", "--served-model-name", "mine", "--max-model-len", "2048"), True),
    "api_server": (OLD_VLLM, ("--model", "tiny", "--served-model-name", "mine", "--port", "{port}"), False),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_container_started_by_hand_is_shown_once_it_answers(cluster, by_hand, agent, case):
    image, words, bridged = CASES[case]
    port = free_ports(1)
    network = ("-p", f"{port}:8000") if bridged else ("--network", "host")
    before_start = time.time()
    container = by_hand.run(
        image, *(word.format(port=port) for word in words), options=("--name", f"hand-{port}", *network)
    )
    status = await found(cluster, container, "127.0.0.1", port)
    before = by_hand.inspect(container)
    engine = "simulated" if image == SIMULATOR else "vllm"
    assert (status.managed, status.runtime, status.engine, status.model) == (False, "docker", engine, "mine")
    assert (status.image, status.found.container_name) == (image, f"hand-{port}")
    assert (status.endpoint.host, status.endpoint.port) == (NODE_ADDRESS, port)
    assert status.engine_version is not None
    assert status.sample is not None
    assert status.pid == before["State"]["Pid"]
    assert status.found.why_not is None
    assert status.found.spec.image == image
    assert status.found.spec.runtime == "docker"
    assert before_start - 5 < status.started_at < time.time() + 5
    assert agent.engines() == []

    agent.stop()
    agent.start()
    await cluster.returned(agent)
    again = await eventually(lambda: shown(cluster, container), "the next agent shows it")
    assert again.id == status.id
    after = by_hand.inspect(container)
    assert (after["State"], after["RestartCount"]) == (before["State"], 0), "nobody touched it"
    by_hand("rm", "-f", container)

    async def gone():
        return all(one.container_id != container for one in (await cluster.report()).replicas)

    await eventually(gone, "a container that ended is not shown")


async def test_what_is_not_published_is_shown_and_says_what_to_do(cluster, docker, by_hand):
    """Its address is of this node's own bridge: it can be asked, and no proxy of another machine could reach it."""
    elsewhere = "10.255.255.1"
    cluster.agent(discovery={"enabled": True}, docker=settings(docker), address=elsewhere).start()
    container = by_hand.run(NEW_VLLM, "tiny", "--served-model-name", "mine")
    address = by_hand.inspect(container)["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    status = await found(cluster, container, address, 8000)
    assert (status.model, status.endpoint.host, status.endpoint.port) == ("mine", address, 8000)
    assert status.sample is not None
    assert "does not publish port 8000" in status.found.why_not
    assert "-p 8000:8000" in status.found.why_not

    port = free_ports(1)
    loopback = by_hand.run(NEW_VLLM, "tiny", options=("-p", f"127.0.0.1:{port}:8000"))
    status = await found(cluster, loopback, "127.0.0.1", port)
    assert f"start it with -p {elsewhere}:{port}:8000" in status.found.why_not


async def test_what_listens_within_its_container_alone_says_so(cluster, by_hand, agent):
    port = free_ports(1)
    container = by_hand.run(NEW_VLLM, "tiny", "--host", "127.0.0.1", options=("-p", f"{port}:8000"))
    status = await eventually(
        lambda: shown(cluster, container, Phase.LOADING, "nobody reaches it"), "it is shown with its reason"
    )
    assert status.endpoint is None
    assert "--host 0.0.0.0" in status.found.why_not


async def test_a_key_of_its_own_is_found_in_the_container_or_asked_for(cluster, by_hand, agent, tmp_path):
    ports = free_ports(3)
    known = tmp_path / "keys"
    known.mkdir()
    (known / "key").write_text("sk-mounted\n")
    # Another file of that path is the node's own: a command line of a container must not make the agent read it.
    (tmp_path / "of-the-node").write_text("sk-of-the-node\n")
    by_file = by_hand.run(
        *(NEW_VLLM, "tiny", "--api-key-file", "/keys/key"),
        options=("-p", f"{ports}:8000", "-v", f"{known}:/keys:ro"),
    )
    status = await found(cluster, by_file, "127.0.0.1", ports)
    assert (status.found.needs_key, status.found.has_key, status.found.why_not) == (True, True, None)
    assert "sk-mounted" not in (await cluster.report()).to_json()

    hidden = by_hand.run(
        *(NEW_VLLM, "tiny", "--api-key-file", str(tmp_path / "of-the-node")),
        options=("-p", f"{ports + 1}:8000", "-v", f"{known / 'key'}:{tmp_path / 'of-the-node'}:ro"),
    )
    status = await found(cluster, hidden, "127.0.0.1", ports + 1)
    assert status.found.has_key, "read as the container sees it"

    link = by_hand(
        *("run", "-d", "-p", f"{ports + 2}:8000", "--entrypoint", "sh", SIMULATOR, "-c"),
        f"echo sk-hidden > /tmp/key; ln -s /tmp/key /tmp/link; exec {' '.join(ENGINE)}"
        " --host 0.0.0.0 --api-key-file /tmp/link",
    )
    status = await found(cluster, link, "127.0.0.1", ports + 2)
    assert (status.found.needs_key, status.found.has_key) == (True, False)
    assert "takes a key that this agent does not have" in status.phase_reason
    assert f'under "127.0.0.1:{ports + 2}"' in status.found.why_not


async def test_two_containers_of_which_one_is_paused_and_one_is_restarted_by_docker(cluster, docker, by_hand):
    ports = free_ports(2)
    pair = [
        by_hand.run(NEW_VLLM, "tiny", options=("-p", f"{ports + at}:8000", "--restart", "always")) for at in range(2)
    ]
    await eventually(lambda: answers("127.0.0.1", ports), "the engine answers")
    by_hand("pause", pair[0])
    cluster.agent(discovery={"enabled": True}, docker=settings(docker), address=NODE_ADDRESS).start()
    second = await found(cluster, pair[1], "127.0.0.1", ports + 1)
    name = by_hand.inspect(pair[0])["Name"].lstrip("/")
    paused = await eventually(lambda: shown(cluster, pair[0], Phase.LOADING, "is paused"), "it is paused")
    assert paused.phase_reason == paused.found.why_not == f"its container is paused: docker unpause {name}"
    by_hand("unpause", pair[0])
    first = await eventually(lambda: shown(cluster, pair[0]), "it is ready")
    assert (first.endpoint.port, second.endpoint.port) == (ports, ports + 1)
    assert first.id == paused.id != second.id

    os.kill(second.pid, signal.SIGKILL)

    async def anew():
        status = await shown(cluster, pair[1])
        return status if status is not None and status.pid != second.pid else None

    again = await eventually(anew, "its next start is shown")
    assert (again.id, again.found.container_name) == (second.id, second.found.container_name)
    assert again.engine_epoch != second.engine_epoch
    assert by_hand.state(pair[0])["Pid"] == first.pid


async def test_a_model_with_odd_characters_in_its_name_does_no_harm(cluster, by_hand, agent):
    port = free_ports(1)
    evil = "chat\x1b[2J\u202e\x07"
    container = by_hand.run(
        NEW_VLLM, "tiny", "--served-model-name", evil, options=("-p", f"{port}:8000", "--name", "odd_name.-1")
    )
    status = await found(cluster, container, "127.0.0.1", port)
    assert status.found.container_name == "odd_name.-1"
    report = (await cluster.report()).to_json()
    assert not [one for one in ("\x1b", "\u202e", "\x07", "\\u001b", "\\u202e", "\\u0007") if one in report]
    assert "start it with --served-model-name" in status.found.why_not


async def test_two_engines_in_one_container_are_shown_and_not_taken_in(cluster, by_hand, agent):
    port = free_ports(2)
    words = " ".join(ENGINE)
    container = by_hand(
        *("run", "-d", "--network", "host", "--entrypoint", "sh", SIMULATOR, "-c"),
        f"{words} --port {port} & {words} --port {port + 1} & wait",
    )

    async def both():
        rows = [one for one in (await cluster.report()).replicas if one.container_id == container]
        return rows if len(rows) == 2 and all(one.phase is Phase.READY for one in rows) else None

    first, second = await eventually(both, "both are shown")
    assert first.id != second.id
    assert first.found.why_not.startswith(f"it shares its container with {second.id}")


async def test_gpus_that_its_processes_use_are_named(cluster, docker, by_hand, tmp_path):
    stub = StubNvml(tmp_path)
    port = free_ports(1)
    container = by_hand.run(NEW_VLLM, "tiny", options=("-p", f"{port}:8000", "--init"))
    await eventually(lambda: answers("127.0.0.1", port), "the engine answers")
    members = by_hand("top", container, "-o", "pid,comm").splitlines()
    engine = next(int(line.split()[0]) for line in members if "SIM::" in line)
    cluster.agent(
        discovery={"enabled": True}, docker=settings(docker), gpus="nvidia", address=NODE_ADDRESS, env=stub.env(engine)
    ).start()

    async def named():
        status = await shown(cluster, container)
        return status if status is not None and status.gpus else None

    status = await eventually(named, "its GPU is named")
    assert len(status.gpus) == 1
    assert status.found.spec.gpus == 1
    assert status.pid != by_hand.state(container)["Pid"], "the engine, not the init that started it"
