"""From a placement to a container that answers, and away again: a real agent, a real Docker, a real registry."""

import json
import os
import signal

import httpx
import pytest

from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from tests.support.agent import eventually
from tests.support.disk_audit import asked
from tests.support.docker import SIMULATOR, add_layer, make_small_image
from tests.support.relay import Relay

pytestmark = pytest.mark.timeout(120, func_only=True)


def containers(docker):
    client = docker.client()
    try:
        return client.containers(all=True)
    finally:
        client.close()


def inspected(docker, identity):
    client = docker.client()
    try:
        return client.inspect_container(identity)
    finally:
        client.close()


def settings(docker, **changes):
    return {"enabled": True, "host": docker.address, "pull_stall_seconds": 30.0} | changes


def policy(tmp_path, *lines):
    path = tmp_path / "policy.toml"
    path.write_text("\n".join(lines))
    return str(path)


def ask(status, key):
    return httpx.post(
        f"http://{status.endpoint.host}:{status.endpoint.port}/v1/completions",
        json={"model": status.model, "prompt": "Hello", "max_tokens": 3},
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
        trust_env=False,
    )


def spec(image, **changes):
    return {"runtime": "docker", "image": image, "args": {"preset": "instant"}} | changes


@pytest.fixture
def pushed(docker, registry):
    """The simulated engine in the registry, with a layer of 8 MiB that is not on the node; (name, digest)."""
    add_layer(docker, SIMULATOR, "pushed:1", megabytes=8)
    name = "team/simulator:1"
    digest = registry.push(docker, "pushed:1", name)
    client = docker.client()
    client.remove_image("pushed:1", force=True)
    client.close()
    return name, digest


async def test_a_container_is_pulled_started_killed_restarted_and_leaves_nothing(
    cluster, docker, registry, pushed, tmp_path
):
    name, digest = pushed
    # Two seconds, however fast the machine: what a pull tells is seen.
    async with Relay("127.0.0.1", registry.port, bytes_per_second=4 * 1024**2) as line:
        image = f"127.0.0.1:{line.port}/{name}"
        agent = cluster.agent(
            docker=settings(docker),
            policy_file=policy(tmp_path, f'images = ["127.0.0.1:{line.port}/team"]'),
            audit=tmp_path / "audit",
        ).start()
        placement = await cluster.place(cluster.placement(spec=spec(image)))
        seen = set()

        async def ready():
            status = await cluster.status()
            if status is not None:
                seen.add((status.phase, status.phase_reason))
            return status if status is not None and status.phase is Phase.READY else None

        try:
            status = await eventually(ready, "the container is ready", 90)
        except AssertionError:
            raise AssertionError(f"{await cluster.status()}\n{agent.log[-5000:]}") from None
    pulling = [reason for phase, reason in seen if phase is Phase.PULLING]
    assert any("%" in reason and "MiB" in reason for reason in pulling), seen
    assert (status.runtime, status.image_digest) == ("docker", digest)
    assert status.container_id is not None
    key = cluster.key_of(status)
    assert ask(status, key).status_code == 200
    assert ask(status, "wrong").status_code == 401
    # The key lies in a file alone.
    found = inspected(docker, status.container_id)
    assert key not in str(found)
    assert found["HostConfig"]["CapDrop"] == ["ALL"]
    assert found["HostConfig"]["Privileged"] is False

    async def in_use():
        report = await cluster.report()
        return any(one.in_use and one.pinned and image in one.tags for one in report.images)

    await eventually(in_use, "the image is in use")

    os.kill(status.pid, signal.SIGKILL)
    failed = await cluster.failed()
    assert "SIGKILL" in failed.first_failure_reason
    again = await cluster.until(Phase.READY)
    assert again.container_id != status.container_id
    assert again.restarts == 1
    assert len(containers(docker)) == 1

    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    assert containers(docker) == []
    await eventually(lambda: not list((agent.data / "containers").iterdir()), "its folder is removed")
    assert agent.stop() == 0
    # Nor did its loop wait for a disk meanwhile.
    assert not asked(tmp_path / "audit")


async def test_its_lines_are_in_the_log_and_not_doubled_by_a_restart_of_the_agent(cluster, docker, tmp_path):
    agent = cluster.agent(
        docker=settings(docker), policy_file=policy(tmp_path, 'images = ["docker.io/library"]')
    ).start()
    await cluster.place(cluster.placement(spec=spec(SIMULATOR)))
    ready = await cluster.until(Phase.READY, seconds=60)
    log = agent.data / "logs" / "chat-r1.log"
    await eventually(lambda: "Starting simulated engine" in log.read_text(), "its log is followed")
    agent.kill()
    ask(ready, cluster.key_of(ready))
    agent.start()
    await cluster.returned(agent)
    status = await cluster.until(Phase.READY)
    assert (status.container_id, status.restarts, status.engine_epoch) == (
        ready.container_id,
        0,
        ready.engine_epoch,
    )
    assert ask(status, cluster.key_of(status)).status_code == 200
    lines = log.read_text().splitlines()
    assert len([line for line in lines if "Starting simulated engine" in line]) == 1


async def test_a_start_that_was_not_written_down_is_taken_in_by_its_labels(cluster, docker, tmp_path):
    agent = cluster.agent(
        docker=settings(docker), policy_file=policy(tmp_path, 'images = ["docker.io/library"]')
    ).start()
    await cluster.place(cluster.placement(spec=spec(SIMULATOR)))
    ready = await cluster.until(Phase.READY, seconds=60)
    agent.kill()
    kept = agent.data / "replicas" / "chat-r1.json"
    record = json.loads(kept.read_text())
    del record["started"]
    record["phase"] = "creating"
    kept.write_text(json.dumps(record))
    agent.start()
    await cluster.returned(agent)
    status = await cluster.until(Phase.READY)
    assert status.container_id == ready.container_id
    assert len(containers(docker)) == 1
    # Without its order it is reported and left alone.
    agent.kill()
    kept.unlink()
    await cluster.remove("chat-r1")
    agent.start()
    await cluster.returned(agent)

    async def reported():
        report = await cluster.report()
        return next((one for one in report.problems if one.code == "stray_container"), None)

    problem = await eventually(reported, "the stray is reported")
    assert "docker rm -f" in problem.hint
    assert [one["State"] for one in containers(docker)] == ["running"]


async def test_images_that_are_not_allowed_or_not_there_are_told(cluster, docker, registry, tmp_path):
    cluster.agent(docker=settings(docker), policy_file=policy(tmp_path, f'images = ["{registry.host}"]')).start()
    await cluster.place(cluster.placement(spec=spec("docker.io/evil/miner:latest")))
    failed = await cluster.until(Phase.FAILED)
    assert "does not allow image evil/miner:latest" in failed.phase_reason
    await cluster.place(cluster.placement("none-r1", spec=spec(f"{registry.host}/team/none:1")))
    failed = await cluster.until(Phase.FAILED, "none-r1")
    assert "the registry has no such image" in failed.phase_reason

    async def shown():
        report = await cluster.report()
        return any(pull.failed and "none" in pull.image for pull in report.pulls)

    await eventually(shown, "the pull that failed")


async def test_a_start_that_docker_refuses_leaves_no_container(cluster, docker, tmp_path):
    allowed = policy(tmp_path, 'images = ["docker.io/library"]')
    cluster.agent(docker=settings(docker, network="nowhere"), policy_file=allowed).start()
    await cluster.place(cluster.placement(spec=spec(SIMULATOR)))
    failed = await cluster.until(Phase.FAILED)
    assert "could not be started" in failed.phase_reason
    assert "network nowhere not found" in failed.phase_reason
    # It is tried again and again, and what was made for it is removed each time.
    await eventually(lambda: containers(docker) == [], "no container is left")


async def test_a_program_that_is_not_in_the_image_is_named(cluster, docker, tmp_path):
    make_small_image(docker, "small:1")
    cluster.agent(docker=settings(docker), policy_file=policy(tmp_path, 'images = ["docker.io/library/small"]')).start()
    await cluster.place(cluster.placement(spec=spec("small:1")))
    failed = await cluster.until(Phase.FAILED)
    assert "exit code 127" in failed.phase_reason
    assert "exec python3 failed" in failed.phase_reason


async def test_an_engine_that_is_too_large_for_its_limit_is_named(cluster, docker, tmp_path):
    allowed = policy(tmp_path, 'images = ["docker.io/library"]')
    cluster.agent(docker=settings(docker, memory_bytes=12 * 1024**2), policy_file=allowed).start()
    await cluster.place(cluster.placement(spec=spec(SIMULATOR)))
    failed = await cluster.until(Phase.FAILED)
    assert "out of memory" in failed.phase_reason
    assert "limit of its container" in failed.phase_reason


async def test_an_agent_that_is_killed_again_and_again_under_traffic_restarts_nothing(cluster, docker, tmp_path):
    """Twice here; `NEBULA_SOAK_RESTARTS=1000` for the figure R6."""
    allowed = policy(tmp_path, 'images = ["docker.io/library"]')
    agent = cluster.agent(docker=settings(docker), policy_file=allowed).start()
    await cluster.place(cluster.placement(spec=spec(SIMULATOR)))
    ready = await cluster.until(Phase.READY, seconds=60)
    key = cluster.key_of(ready)
    failures = 0
    for _ in range(int(os.environ.get("NEBULA_SOAK_RESTARTS", "2"))):
        agent.kill()
        failures += ask(ready, key).status_code != 200
        agent.start()
        await cluster.returned(agent)
        status = await cluster.until(Phase.READY)
        assert (status.container_id, status.restarts) == (ready.container_id, 0)
        failures += ask(ready, key).status_code != 200
    assert failures == 0
    log = (agent.data / "logs" / "chat-r1.log").read_text().splitlines()
    assert len([line for line in log if "Starting simulated engine" in line]) == 1
