"""Docker dies, hangs, restarts: the agent goes on, engines that live are kept, those that died come back."""

import os
import signal
from collections.abc import Iterator

import pytest

from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from tests.agent.containers.test_life import ask, containers, policy, settings, spec
from tests.support.agent import eventually
from tests.support.docker import SIMULATOR, DockerDaemon, simulator_docker, why_no_docker

pytestmark = [pytest.mark.timeout(120, func_only=True), pytest.mark.fault]


@pytest.fixture(scope="module")
def docker() -> Iterator[DockerDaemon]:
    """With live-restore, until a test says otherwise."""
    reason = why_no_docker()
    if reason is not None:
        pytest.skip(reason)
    with simulator_docker(live_restore=True) as daemon:
        yield daemon


@pytest.fixture
async def serving(request, cluster, docker, tmp_path):
    """(agent, placement, status) of a replica that is ready. The parameter is how long Docker has for an answer."""
    # Not loopback: ports published there are served by a helper process that dies with the daemon.
    agent = cluster.agent(
        address="172.17.0.1",
        docker=settings(docker, call_seconds=getattr(request, "param", 10.0)),
        policy_file=policy(tmp_path, 'images = ["docker.io/library"]'),
    ).start()
    placement = await cluster.place(cluster.placement(spec=spec(SIMULATOR)))
    return agent, placement, await cluster.until(Phase.READY, seconds=60)


async def problem(cluster, code):
    report = await cluster.report()
    return next((one for one in report.problems if one.code == code), None)


async def test_with_live_restore_a_dead_daemon_costs_nothing(cluster, docker, serving):
    _, placement, ready = serving
    docker.kill()
    told = await eventually(lambda: problem(cluster, "docker_unavailable"), "Docker is told to be away")
    assert "systemctl start docker" in told.hint
    status = await cluster.status()
    assert (status.phase, status.container_id) == (Phase.READY, ready.container_id)
    assert ask(ready, cluster.key_of(ready)).status_code == 200
    docker.start()

    async def answers():
        return await problem(cluster, "docker_unavailable") is None

    await eventually(answers, "Docker answers again")
    assert (await cluster.status()).engine_epoch == ready.engine_epoch
    # The stream of events was taken up again: an end is noticed at once.
    os.kill(ready.pid, signal.SIGKILL)
    await cluster.failed()
    again = await cluster.until(Phase.READY)
    assert again.restarts == 1
    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    assert containers(docker) == []


@pytest.mark.parametrize("serving", [2.0], indirect=True)
async def test_a_daemon_that_hangs_stops_no_heartbeat_and_no_engine(cluster, docker, serving):
    _, placement, ready = serving
    docker.freeze()
    try:
        before = (await cluster.report()).sequence
        told = await eventually(lambda: problem(cluster, "docker_unavailable"), "Docker is told to hang")
        assert "did not answer" in told.message or "does not go on answering" in told.message

        async def reported():
            report = await cluster.report()
            return report.sequence > before + 3

        await eventually(reported, "reports go on")
        assert (await cluster.status()).phase is Phase.READY
        assert ask(ready, cluster.key_of(ready)).status_code == 200
        # An order that cannot be carried out now is not lost.
        await cluster.want(placement, Wanted.STOP)
        await eventually(lambda: problem(cluster, "stop_failed"), "the stop is told to wait")
    finally:
        docker.thaw()
    await cluster.until(Phase.STOPPED, seconds=60)
    assert containers(docker) == []


async def test_without_live_restore_engines_that_went_with_the_daemon_come_back(cluster, docker, serving):
    _, _, ready = serving
    docker.stop()
    docker.live_restore = False
    # Without it, a daemon ends what it finds running as it starts. Once: a second stop would catch the next start half made.
    docker.start()

    async def restarted():
        status = await cluster.status()
        return status if status.phase is Phase.READY and status.engine_epoch != ready.engine_epoch else None

    status = await eventually(restarted, "the engine came back")
    assert status.restarts == 1
    assert ask(status, cluster.key_of(status)).status_code == 200
    assert len([one for one in containers(docker) if one["State"] == "running"]) == 1
    advice = await eventually(lambda: problem(cluster, "no_live_restore"), "it is advised")
    assert "live-restore" in advice.hint
