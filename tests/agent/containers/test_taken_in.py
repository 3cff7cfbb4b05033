"""Containers started by hand and taken in: as they run, through everything that happens to a container, never removed."""

import os
import signal

import pytest

from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from tests.agent.containers.test_found import NODE_ADDRESS, answers, found, shown
from tests.agent.containers.test_life import ask, policy, settings
from tests.agent.loops.test_discovery import target_of
from tests.support.agent import eventually
from tests.support.by_hand import NEW_VLLM, ByHand, make_vllm_images
from tests.support.ports import free_ports

pytestmark = pytest.mark.timeout(120, func_only=True)


@pytest.fixture
def by_hand(docker):
    make_vllm_images(docker)
    return ByHand(docker)


@pytest.fixture
async def agent(cluster, docker, tmp_path):
    agent = cluster.agent(
        discovery={"enabled": True},
        docker=settings(docker),
        address=NODE_ADDRESS,
        policy_file=policy(tmp_path, 'images = ["docker.io/vllm"]', f'mounts = ["{tmp_path}"]'),
    ).start()
    await eventually(cluster.report, "the agent reports")
    return agent


async def taken_in(cluster, status, replica="chat-r1"):
    spec = status.found.spec.model_dump(exclude_defaults=True)
    target = target_of(status, container_id=status.container_id)
    placement = await cluster.place(cluster.placement(replica, spec=spec, adopt=target))
    return placement, await cluster.until(Phase.READY, replica)


async def test_it_is_taken_in_as_it_runs_and_stopped_without_being_removed(cluster, by_hand, agent):
    ports = free_ports(2)
    container = by_hand.run(NEW_VLLM, "tiny", options=("-p", f"{ports}:8000", "-e", "VLLM_API_KEY=sk-hand", "--init"))
    other = by_hand.run(NEW_VLLM, "tiny", options=("-p", f"{ports + 1}:8000"))
    status = await found(cluster, container, "127.0.0.1", ports)
    await found(cluster, other, "127.0.0.1", ports + 1)
    before = by_hand.state(container)
    placement, ready = await taken_in(cluster, status)
    assert (ready.managed, ready.container_id, ready.pid, ready.restarts) == (True, container, status.pid, 0)
    assert (ready.image, ready.runtime, ready.endpoint.port) == (NEW_VLLM, "docker", ports)
    assert ready.endpoint.served_model == "tiny"
    key = cluster.key_of(ready)
    assert key == "sk-hand"
    assert ask(ready.model_copy(update={"model": "tiny"}), key).status_code == 200
    rows = [one for one in (await cluster.report()).replicas if one.container_id == container]
    assert [one.managed for one in rows] == [True]
    log = agent.data / "logs" / "chat-r1.log"
    await eventually(lambda: "Starting simulated engine" in log.read_text(), "its log is followed")

    agent.kill()
    agent.start()
    await cluster.returned(agent)
    after = await cluster.until(Phase.READY)
    assert (after.pid, after.engine_epoch, after.restarts) == (ready.pid, ready.engine_epoch, 0)
    assert by_hand.state(container) == before
    assert log.read_text().count("Starting simulated engine") == 1

    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    stopped = by_hand.state(container)
    assert (stopped["Status"], stopped["StartedAt"]) == ("exited", before["StartedAt"]), (
        "it is who made it who removes it"
    )
    assert by_hand.state(other)["Running"]
    # Who made it may start it again: then it is one that was found, under its old id.
    await cluster.remove("chat-r1")
    by_hand("start", container)
    back = await eventually(lambda: shown(cluster, container), "it is found again")
    assert (back.id, back.managed) == (status.id, False)


async def test_what_docker_restarts_stays_the_replica_it_is(cluster, by_hand, agent):
    container = by_hand.run(NEW_VLLM, "tiny", options=("-p", "8000", "--restart", "always"))
    port = int(by_hand("port", container, "8000/tcp").splitlines()[0].rpartition(":")[2])
    status = await found(cluster, container, "127.0.0.1", port)
    placement, ready = await taken_in(cluster, status)

    async def anew(former):
        status = await cluster.status()
        other = status is not None and status.phase is Phase.READY and status.pid != former.pid
        return status if other else None

    os.kill(ready.pid, signal.SIGKILL)
    again = await eventually(lambda: anew(ready), "Docker has started it again")
    assert (again.container_id, again.restarts) == (container, 1)
    assert again.engine_epoch != ready.engine_epoch
    assert again.pid == by_hand.state(container)["Pid"]
    # Docker gives a port of its own choice anew with each start.
    port = int(by_hand("port", container, "8000/tcp").splitlines()[0].rpartition(":")[2])
    assert again.endpoint.port == port
    assert answers(again.endpoint.host, port)

    # By somebody's hand, and while no agent runs.
    agent.kill()
    by_hand("restart", "-t", "1", container)
    agent.start()
    third = await eventually(lambda: anew(again), "the next agent finds it started anew")
    assert (third.container_id, third.restarts) == (container, 2)

    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    found_after = by_hand.inspect(container)
    assert found_after["State"]["Status"] == "exited"
    assert found_after["HostConfig"]["RestartPolicy"]["Name"] == "no", "Docker must not bring it back"


async def test_one_that_ends_is_started_as_its_deployment_says(cluster, by_hand, agent, tmp_path):
    """On the node, the model lies elsewhere than in the container that somebody made."""
    models = tmp_path / "models"
    (models / "tiny").mkdir(parents=True)
    port = free_ports(1)
    container = by_hand.run(
        *(NEW_VLLM, "/weights/tiny", "--served-model-name", "tiny"),
        options=("-p", f"{port}:8000", "-v", f"{models}:/weights:ro"),
    )
    status = await found(cluster, container, "127.0.0.1", port)
    assert status.found.spec.source == str(models / "tiny")
    _, ready = await taken_in(cluster, status)
    os.kill(ready.pid, signal.SIGKILL)

    async def failed():
        status = await cluster.status()
        return status if status.failure_log or status.phase is Phase.FAILED else None

    await eventually(failed, "its end is noticed")

    async def other():
        status = await cluster.status()
        return status if status.container_id not in {None, container} else None

    try:
        following = await eventually(other, "another container is made")
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {await cluster.status()}") from None
    assert following.restarts == 1
    assert by_hand.state(container)["Status"] == "exited"
    made = by_hand.inspect(following.container_id)
    assert {mount["Destination"] for mount in made["Mounts"]} >= {str(models / "tiny")}


async def test_it_is_asked_at_its_own_address_while_docker_is_gone(cluster, docker, by_hand, agent):
    """What serves a published port on loopback dies with the daemon; the engine does not, and is not ended for it."""
    port = free_ports(1)
    container = by_hand.run(NEW_VLLM, "tiny", "--port", str(port), options=("-p", f"{port}:{port}"))
    status = await found(cluster, container, "127.0.0.1", port)
    _, ready = await taken_in(cluster, status)
    docker.kill()
    await eventually(lambda: not answers("127.0.0.1", port), "Docker's helper is gone")

    async def asked(after):
        report = await cluster.report()
        [status] = [one for one in report.replicas if one.managed]  # engines of other tests are found too
        return status if report.sequence >= after and status.sample_age_seconds < 4.0 else None

    silent = (await cluster.report()).sequence
    status = await eventually(lambda: asked(silent + 5), "five reports later its figures are new")
    assert (status.phase, status.engine_epoch, status.restarts) == (Phase.READY, ready.engine_epoch, 0)
