"""Every runtime that starts something, on the real thing and on the fake that stands for it."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nebula_agent.adapters.docker_engine import ContainerEngine, DockerEngine
from nebula_agent.adapters.docker_runtime import DockerPlace, DockerRuntime
from nebula_agent.adapters.process_runtime import ProcessRuntime
from nebula_agent.adapters.runtime import Room, Runtime, Started, StartImage
from nebula_agent.decisions import containers as labels
from nebula_agent.decisions.container import ContainerSettings
from nebula_agent.decisions.policy import LocalPolicy
from nebula_agent.engines.base import Command
from nebula_core.runtime.clock import SystemClock
from tests.agent.engines.test_commands import launch
from tests.support.docker import DockerDaemon, make_small_image, short_directory, why_no_docker
from tests.support.fake_docker import FakeDocker
from tests.support.ports import free_ports

#: Of this test process alone: whoever has the same ends the other's processes as its own.
AGENT = secrets.token_hex(4)


@pytest.fixture(scope="module")
def docker() -> Iterator[DockerDaemon]:
    reason = why_no_docker()
    if reason is not None:
        pytest.skip(reason)
    daemon = DockerDaemon(short_directory()).start()
    try:
        make_small_image(daemon, "runtime:1")
        yield daemon
    finally:
        daemon.close()


@dataclass
class Bench:
    """One runtime with what a start needs; `again` is the runtime of another agent process on the same things."""

    runtime: Runtime
    again: Callable[[], Any]
    directory: Path
    image: StartImage | None
    number: int = 0
    first_port: int = field(default_factory=lambda: free_ports(10))

    async def start(self, script: str, replica: str = "chat-r1") -> Started:
        self.number += 1
        epoch = f"e{self.number}"
        room = Room(
            replica=replica,
            engine_epoch=epoch,
            log_file=self.directory / "logs" / f"{replica}.log",
            environment={"PATH": "/usr/bin:/bin"},
            image=self.image,
            labels={labels.REPLICA: replica, labels.EPOCH: epoch, labels.DIGEST: "d", labels.HOST: "127.0.0.1"},
        )
        seen = self.runtime.inside(replace(launch(gpus=(), key=None), ports=(self.first_port + self.number,)))
        return await self.runtime.start(seen, Command(("sh", "-c", script)), room)


def docker_runtime(engine: ContainerEngine, directory: Path) -> DockerRuntime:
    place = DockerPlace(AGENT, "n1", "boot", directory / "containers", (1, 65535))
    return DockerRuntime(engine, place, ContainerSettings(), LocalPolicy(), SystemClock())


@pytest.fixture(params=["process", "fake", "docker"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "process":

        def processes() -> ProcessRuntime:
            return ProcessRuntime(agent_id=AGENT, boot_id="boot", directory=tmp_path, clock=SystemClock())

        yield Bench(processes(), processes, tmp_path, None)
        return
    opened: list[DockerRuntime] = []
    if request.param == "fake":
        engine: Any = FakeDocker()
        image = StartImage("sha256:" + "a" * 64, "x")
    else:
        daemon: DockerDaemon = request.getfixturevalue("docker")
        engine = DockerEngine(daemon.address)
        [found] = [one for one in await engine.images() if "runtime:1" in one.tags]
        image = StartImage(found.id, "runtime:1")

    async def another() -> DockerRuntime:
        made = docker_runtime(engine, tmp_path)
        opened.append(made)
        await made.open()
        return made

    yield Bench(await another(), another, tmp_path, image)
    for runtime in opened:
        for container in await engine.containers(f"nebula.agent={AGENT}"):
            await engine.remove(container.id)
        await runtime.close()
    if isinstance(engine, FakeDocker):
        engine.end()
