"""Docker of this node, looked at every few seconds: whether it answers, which containers are ours, which images there are.

Until the containers of an earlier agent were sorted, nothing is started: an engine that was made and not written down must
be found before a second one takes its place. What runs without any order is reported and left alone.
"""

import structlog

from nebula_agent.adapters.docker_runtime import DockerRuntime
from nebula_agent.decisions.containers import Container, ContainerState, Sorted
from nebula_agent.loops.context import Context
from nebula_agent.loops.image_keeper import LOOK_SECONDS as IMAGES_SECONDS
from nebula_agent.loops.replicas import Replicas
from nebula_core.errors import NebulaError
from nebula_core.records.report import Problem

log = structlog.get_logger(__name__)

EVERY_SECONDS = 5.0
#: One that was created and never started by then is a leftover of a lost answer.
CREATED_SECONDS = 120.0


class ContainerKeeper:
    """`iterate` is one look."""

    def __init__(self, runtime: DockerRuntime, context: Context, replicas: Replicas) -> None:
        self._runtime = runtime
        self._context = context
        self._replicas = replicas
        self._images_at: float | None = None
        self._containers: frozenset[str] = frozenset()
        self._strays: set[str] = set()

    async def iterate(self) -> None:
        context, runtime = self._context, self._runtime
        answered = runtime.unavailable is None
        try:
            await runtime.look_around()
            found = self._sort()
            if not runtime.sorted:
                await self._take_in(found)
                runtime.sorted = True
                self._wake()
            await self._clear(found)
            await self._look_at_images()
        except NebulaError as error:
            problem = Problem(code=error.code, message=error.message, severity="crit", hint=error.hint)
            if context.problems.set("docker", problem):
                log.error("docker_unavailable", error=error.message)
            context.changed()
            return
        self._report(found)
        if context.problems.set("docker", self._advice()) or not answered:
            context.changed()
            self._wake()

    def _sort(self) -> Sorted:
        kept = {
            name: None if owner.started is None else owner.started.engine_epoch
            for name, owner in self._replicas.owners.items()
        }
        return self._runtime.find(self._runtime.listed, kept)

    async def _take_in(self, found: Sorted) -> None:
        for replica, listed in found.adopted.items():
            container = await self._runtime.engine.inspect(listed.id)
            made = None if container is None else self._runtime.started_from(container)
            if made is not None:
                await self._replicas.owners[replica].take_in(*made)
        for container in found.doubles:
            log.warning("double_container", container=container.name, action_taken="stopped")
            await self._runtime.remove(container)

    async def _clear(self, found: Sorted) -> None:
        """What holds nothing and belongs to nobody. An owner may be about to start what it has just created."""
        for container in found.cleared:
            age = self._context.clock.wall() - (container.started_at or 0.0)
            if container.state is ContainerState.CREATED and age < CREATED_SECONDS:
                continue
            if self._runtime.is_known(container.id):
                continue
            log.info("container_cleared", container=container.name, state=container.state.value)
            await self._runtime.remove(container)

    async def _look_at_images(self) -> None:
        """Now and then, and at once when our containers are others: they say which images are in use."""
        now = self._context.clock.monotonic()
        containers = frozenset(container.id for container in self._runtime.listed)
        due = self._images_at is None or now - self._images_at >= IMAGES_SECONDS or containers != self._containers
        if self._context.images is None or not due:
            return
        await self._context.images.look()
        self._images_at, self._containers = now, containers

    def _report(self, found: Sorted) -> None:
        running = {container.name: container for container in found.unexplained}
        for name in self._strays - running.keys():
            self._context.problems.set(f"stray:{name}", None)
        for name, container in running.items():
            if self._context.problems.set(f"stray:{name}", _stray(container)):
                log.warning("stray_container", container=name, id=container.id)
        self._strays = set(running)

    def _advice(self) -> Problem | None:
        facts = self._runtime.facts
        if facts is None or facts.live_restore:
            return None
        return Problem(
            code="no_live_restore",
            message="a restart of Docker ends the engines of this node: live-restore is off",
            severity="info",
            hint='Set "live-restore": true in /etc/docker/daemon.json and reload Docker',
        )

    def _wake(self) -> None:
        for owner in self._replicas.owners.values():
            owner.look_again()


def _stray(container: Container) -> Problem:
    return Problem(
        code="stray_container",
        message=f"container {container.name} was started by Nebula and has no order any more; it runs on and holds its GPUs",
        hint=f"Place its model again, or end it: docker rm -f {container.name}",
    )
