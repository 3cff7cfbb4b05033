"""Engines as containers: made from typed fields, watched by events, found again by their labels.

What is known of each container is kept here and brought up to date by three things: the daemon's events (at once), a look
at all of them (every few seconds, and whenever the stream of events was broken), and what this module does itself. So
`look` never asks anybody. A daemon that is away says nothing about its containers: with live-restore they go on, and
without it the look after its return tells.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import structlog

from nebula_agent.adapters.container_lines import ContainerLines, cursor_file
from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.docker_engine import ContainerEngine, DockerRefused, DockerUnavailable, EngineFacts, Stream
from nebula_agent.adapters.log_files import size
from nebula_agent.adapters.process_runtime import born, probe_host
from nebula_agent.adapters.runtime import Ended, Look, Room, Started, StartImage
from nebula_agent.decisions import containers as labels
from nebula_agent.decisions.container import (
    CACHE,
    SECRETS,
    ContainerHost,
    ContainerOrder,
    ContainerSettings,
    GpuShare,
    Mount,
    Refusal,
    container_body,
)
from nebula_agent.decisions.containers import Container, ContainerState, Sorted, read_labels, sort_containers
from nebula_agent.decisions.lifecycle import Life
from nebula_agent.decisions.policy import LocalPolicy
from nebula_agent.engines.base import Command, Launch, is_path
from nebula_core.errors import NebulaError
from nebula_core.runtime.clock import Clock
from nebula_core.security.files import write_secret

log = structlog.get_logger(__name__)

#: What the daemon is: a reload may change it, e.g. whether containers outlive it.
FACTS_SECONDS = 30.0
#: Longest that a start of the agent waits for a daemon that hangs.
OPEN_SECONDS = 3.0
#: After SIGKILL, until a container that is still there counts as unkillable.
KILL_SECONDS = 15.0
#: The last lines of a container that ended may come a moment after its end.
LAST_LINES_SECONDS = 2.0
#: One that was taken in and ended may be on its way up again by then: Docker or a person starts it anew.
AGAIN_SECONDS = 1.0
#: What is tidied up on the disk is awaited so long, and goes on by itself.
DISK_SECONDS = 5.0
#: Of what such a one wrote before it was taken in.
HISTORY_SECONDS = 600.0
#: A created container that nobody started by then is a leftover.
CREATED_SECONDS = 120.0
_KEY_FILE = "engine.yaml"
_TOKEN_FILE = "hub-token"  # noqa: S105 - a file's name
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
#: Of the agent's environment, what an engine may know in any container: no secret, nothing that loads code.
_PASSED_ON = frozenset(
    {*("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "HF_ENDPOINT", "TZ", "LANG")}
)


class ContainerRefused(NebulaError):
    """The policy of this node does not allow such a container; the message names the setting."""

    code = "container_refused"


@dataclass(slots=True)
class _Known:
    container: Container
    replica: str
    lines: ContainerLines | None = None
    #: Somebody started it by hand, and it was taken in.
    taken_in: bool = False
    #: Of this start: another one of the same container is another object.
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class DockerPlace:
    """What a docker runtime is told of its node once."""

    agent_id: str
    node: str
    boot_id: str
    #: Where the secrets of each start are kept, mode 0700.
    directory: Path
    port_range: tuple[int, int]
    #: Shared by engines for what they download; None: nothing is shared.
    cache_dir: Path | None = None
    #: The node's cache of models, of which engines may read entries; None: there is none.
    models_dir: Path | None = None


class DockerRuntime:
    """Starts, finds, stops containers of one daemon. Call `open` before anything else."""

    kind = "docker"

    def __init__(
        self,
        engine: ContainerEngine,
        place: DockerPlace,
        settings: ContainerSettings,
        policy: LocalPolicy,
        clock: Clock,
    ) -> None:
        self.engine = engine
        #: What the daemon is; None until it answered once.
        self.facts: EngineFacts | None = None
        self._facts_at: float | None = None
        #: Why the daemon does not answer; None: it does.
        self.unavailable: NebulaError | None = None
        #: Our containers at the last look, also those that ended.
        self.listed: list[Container] = []
        #: Whether those of an earlier agent were sorted: before, nothing may be started.
        self.sorted = False
        self._place = place
        self._settings = settings
        self._policy = policy
        self._clock = clock
        self._disk = DiskThreads("containers")
        self._known: dict[str, _Known] = {}
        self._events: Stream | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # --- life

    async def open(self) -> None:
        """Begins to follow the daemon, whether it answers yet or not: the first report must not wait for it."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._look_quietly()
        except TimeoutError:
            self.unavailable = DockerUnavailable(
                f"Docker did not answer within {OPEN_SECONDS:g} s", hint="Look why it hangs: journalctl -u docker"
            )
        self._events = self.engine.follow_events(self._label, self._heard)

    async def close(self) -> None:
        """The agent leaves; containers stay."""
        self._closed = True
        if self._events is not None:
            self._events.close()
        await asyncio.gather(*map(_close_lines, self._known.values()))
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.engine.close()

    async def look_around(self) -> None:
        """A look at all of our containers. Raises DockerUnavailable or DockerRefused."""
        try:
            await self._learn_facts()
            self.listed = await self.engine.containers(self._label)
        except NebulaError as error:
            self.unavailable = error
            raise
        self.unavailable = None
        found = {container.id: container for container in self.listed}
        for identity, known in list(self._known.items()):
            listed = found.get(identity)
            if listed is None or listed.state is not known.container.state:
                await self._refresh(identity)
            elif listed.state.alive:
                self._follow(known)

    async def _learn_facts(self) -> None:
        """Anew after a restart of the daemon, which may be over between two looks, and after a reload in a while."""
        now, at = self._clock.monotonic(), self._facts_at
        if at is None or self.unavailable is not None or now - at >= FACTS_SECONDS:
            self.facts = await self.engine.facts()
            self._facts_at = now

    def find(self, found: list[Container], kept: Mapping[str, str | None]) -> Sorted:
        """What the containers of this agent are, see `decisions/containers`."""
        return sort_containers(found, self._place.agent_id, kept)

    def is_known(self, container: str) -> bool:
        return container in self._known

    async def remove(self, container: Container) -> None:
        await self.engine.remove(container.id)

    def started_from(self, container: Container) -> tuple[Started, str] | None:
        """A start that was made and not written down, with the digest of what it was started from; by its labels."""
        said = read_labels(container, self._place.agent_id)
        if said is None:
            return None
        started = Started(
            runtime=self.kind,
            engine_epoch=said.engine_epoch,
            host=said.host,
            probe_host=_probe_host(container, said.host),
            port=said.port,
            ports=(said.port,),
            gpus=said.gpus,
            log_file=said.log_file,
            started_at=container.started_at or self._clock.wall(),
            boot_id=self._place.boot_id,
            pid=container.pid,
            container_id=container.id,
            image=said.image or None,
            image_digest=said.image_digest or None,
        )
        return started, said.digest

    # --- the seam

    def inside(self, launch: Launch) -> Launch:
        on_host = self._settings.network == "host"
        return replace(
            launch,
            host=launch.host if on_host else "0.0.0.0",
            key_file=Path(SECRETS) / _KEY_FILE,
            contained=True,
        )

    async def start(self, launch: Launch, command: Command, room: Room) -> Started:
        if room.image is None:
            raise ContainerRefused("the start has no image", hint="Set `image` in the deployment")
        host = room.labels.get(labels.HOST, launch.host)
        offset = await self._disk.do(room.replica, size, room.log_file)
        name = labels.name_of(self._place.agent_id, room.replica, room.engine_epoch)
        order = await self._disk.do(room.replica, self._order, launch, command, room, host)
        body = container_body(order, self._settings, self._policy, self._host())
        if isinstance(body, Refusal):
            await self._forget_secrets(room.replica)
            raise ContainerRefused(body.reason)
        began = self._clock.wall()
        identity = await self._create(name, body)
        try:
            await self._begin(identity, name)
        except BaseException:
            # A container that never ran is nothing to keep.
            with suppress(NebulaError):
                await asyncio.shield(self.engine.remove(identity))
            await asyncio.shield(self._forget_secrets(room.replica))
            raise
        container = await self.engine.inspect(identity)
        if container is None:
            raise DockerRefused("the container was removed while it started", hint="Look who else uses this Docker")
        lines = ContainerLines(identity, room.log_file)
        known = self._remember(container, room.replica, lines)
        self._follow(known)
        if not container.state.alive:
            await lines.over(LAST_LINES_SECONDS)
            self._settled(known, container)
        return Started(
            runtime=self.kind,
            engine_epoch=room.engine_epoch,
            host=host,
            probe_host=_probe_host(container, host),
            port=launch.port,
            ports=tuple(launch.ports),
            gpus=launch.gpus,
            log_file=str(room.log_file),
            log_offset=offset,
            started_at=began,
            boot_id=self._place.boot_id,
            pid=container.pid,
            pid_born=None if container.pid is None else born(container.pid),
            container_id=identity,
            image=room.image.reference,
            image_digest=room.image.digest,
        )

    async def know(self, started: Started, replica: str) -> None:
        identity = started.container_id
        if identity is None:
            return
        # Where nobody answers nothing speaks against it; many replicas must not wait one after the other.
        container: Container | None = Container(id=identity, state=ContainerState.RUNNING, pid=started.pid)
        if self.unavailable is None:
            try:
                container = await self.engine.inspect(identity)
            except NebulaError as error:
                self.unavailable = error
        if container is None:
            container = Container(id=identity, state=ContainerState.DEAD, error="it was removed")
        since = self._clock.wall() - HISTORY_SECONDS if started.taken_in else None
        former = self._known.get(identity)
        if former is not None and former.lines is not None:
            former.lines.close()
        lines = ContainerLines(identity, Path(started.log_file), since=since)
        known = self._remember(container, replica, lines, taken_in=started.taken_in)
        if container.state.alive:
            self._follow(known)
        else:
            known.ended.set()

    def seen(self, started: Started) -> Container | None:
        """Its container as it was last looked at; None: it is not known."""
        known = self._known.get(started.container_id or "")
        return None if known is None else known.container

    def look(self, started: Started) -> Look:
        known = self._known.get(started.container_id or "")
        if known is None:
            return Look(Life.ENDED)
        container = known.container
        if not known.ended.is_set():
            return Look(Life.RUNNING)
        return Look(Life.ENDED, container.exit_status, _said(container, self._host().memory_bytes))

    async def ended(self, started: Started, timeout: float) -> None:
        known = self._known.get(started.container_id or "")
        if known is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await known.ended.wait()

    async def members(self, started: Started) -> frozenset[int]:
        if started.container_id is None:
            return frozenset()
        return await asyncio.to_thread(_members, started.container_id)

    async def stop(self, started: Started, *, term_seconds: float) -> Ended:
        identity = started.container_id
        if identity is None:
            return Ended()
        known = self._known.get(identity)
        try:
            return await self._stop(identity, known, term_seconds, ours=not started.taken_in)
        except DockerUnavailable as error:
            return Ended(failed=str(error))

    def let_go(self, started: Started) -> None:
        known = self._known.get(started.container_id or "")
        if known is not None and known.lines is not None:
            known.lines.close()

    def replica_of(self, pid: int) -> str | None:
        """The replica of this agent whose container a process is in. Reads /proc."""
        identity = _container_of(pid)
        known = None if identity is None else self._known.get(identity)
        return None if known is None else known.replica

    # --- starting

    def _order(self, launch: Launch, command: Command, room: Room, host: str) -> ContainerOrder:
        image = room.image or StartImage("", "")
        secrets = self._write_secrets(command, room)
        env = dict(image.env) | dict(command.env)
        env |= {name: room.environment[name] for name in _PASSED_ON if name in room.environment}
        if any(mount.target.endswith(_TOKEN_FILE) for mount in secrets):
            env["HF_TOKEN_PATH"] = f"{SECRETS}/{_TOKEN_FILE}"
        cache = None
        if self._place.cache_dir is not None:
            path = str(self._place.cache_dir)
            self._place.cache_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
            cache = Mount(path, os.path.realpath(path), CACHE, read_only=False)
            env["HF_HOME"] = f"{CACHE}/huggingface"
        sources = [launch.spec.source, *(adapter.source for adapter in launch.spec.adapters)]
        paths = [source for source in dict.fromkeys(sources) if is_path(source)]
        real = [gpu for gpu in launch.gpus if not gpu.startswith("sim-")]
        return ContainerOrder(
            image_id=image.id,
            argv=command.argv,
            env=env,
            passed_env={
                name: value
                for name, value in room.environment.items()
                if name in self._policy.environment and name not in {"HF_TOKEN", "HF_TOKEN_PATH"}
            },
            host=host,
            port=launch.port,
            mounts=tuple(Mount(path, os.path.realpath(path), path) for path in paths),
            secrets=secrets,
            cache=cache,
            models=None if self._place.models_dir is None else os.path.realpath(self._place.models_dir / "models"),
            gpus=GpuShare(launch.vendor, tuple(real), launch.gpu_indexes if real else ()),
            labels=dict(room.labels)
            | {labels.AGENT: self._place.agent_id, labels.NODE: self._place.node}
            | {labels.IMAGE: image.reference, labels.DIGEST_OF_IMAGE: image.digest or ""},
            stop_seconds=launch.term_seconds,
        )

    def _write_secrets(self, command: Command, room: Room) -> tuple[Mount, ...]:
        """The files of this start: its key in the engine's own form, and the hub's token."""
        folder = self._secrets_of(room.replica)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        contents = {_KEY_FILE: command.key_file_content, _TOKEN_FILE: room.environment.get("HF_TOKEN")}
        mounts = []
        for name, content in contents.items():
            if content is None:
                continue
            path = folder / name
            write_secret(path, content.encode())
            if self._settings.user is not None and os.geteuid() == 0:
                uid, _, gid = self._settings.user.partition(":")
                os.chown(path, int(uid), int(gid or -1))
            elif os.geteuid() != 0 and self._settings.user is None:
                # Root of the container has lost its privilege to read what is not its own.
                path.chmod(0o644)
            mounts.append(Mount(str(path), os.path.realpath(path), f"{SECRETS}/{name}"))
        return tuple(mounts)

    def _secrets_of(self, replica: str) -> Path:
        return self._place.directory / replica

    async def _forget_secrets(self, replica: str) -> None:
        """An end does not wait for a disk that hangs: they go when it answers."""
        removing = self._disk.begin(replica, partial(shutil.rmtree, ignore_errors=True), self._secrets_of(replica))
        await asyncio.wait({removing}, timeout=DISK_SECONDS)

    async def _create(self, name: str, body: Mapping[str, Any]) -> str:
        try:
            return await self.engine.create(name, body)
        except DockerUnavailable:
            # The answer was lost; whether the container was made, its name tells.
            made = await self._by_name(name)
            if made is None:
                raise
            return made.id
        except DockerRefused as error:
            made = await self._by_name(name) if error.status == 409 else None
            if made is None or made.labels.get(labels.AGENT) != self._place.agent_id:
                raise
            return made.id

    async def _by_name(self, name: str) -> Container | None:
        for pause in (0.5, 1.0, 2.0, 4.0):
            try:
                return await self.engine.inspect(name)
            except DockerUnavailable:
                await self._clock.sleep(pause)
        return None

    async def _begin(self, identity: str, name: str) -> None:
        try:
            await self.engine.start(identity)
        except DockerUnavailable:
            made = await self._by_name(name)
            if made is None or not made.state.alive:
                raise

    def _host(self) -> ContainerHost:
        facts = self.facts
        if facts is None:
            return ContainerHost(port_range=self._place.port_range)
        return ContainerHost(
            memory_bytes=facts.memory_bytes,
            raises_limits=bool(facts.raises_limits),
            gpu_mode=facts.gpu_mode,
            port_range=self._place.port_range,
        )

    # --- stopping

    async def _stop(self, identity: str, known: _Known | None, term_seconds: float, *, ours: bool) -> Ended:
        container = await self.engine.inspect(identity)
        if container is not None and container.restarted_by_docker:
            # One master at a time: else it is back with Docker's next start, on GPUs that are another's by then.
            await self.engine.restart_no_more(identity)
        killed = False
        status = None if container is None else container.exit_status
        if container is not None and container.state.alive:
            await self.engine.kill(identity, "SIGTERM")
            container = await self._gone(identity, known, term_seconds)
            if container is not None and container.state.alive:
                killed = True
                await self.engine.kill(identity, "SIGKILL")
                container = await self._gone(identity, known, KILL_SECONDS)
            status = None if container is None else container.exit_status
        survivors = await asyncio.to_thread(_members, identity)
        if survivors and container is not None and container.state.alive:
            return Ended(killed, tuple(sorted(survivors)), status=status)
        if known is not None and known.lines is not None:
            await known.lines.over(LAST_LINES_SECONDS)
        if ours:
            await self.engine.remove(identity)
        # What the daemon says is gone must be gone from the process table too: it is what holds the device.
        survivors = await self._members_left(identity)
        if survivors:
            return Ended(killed, tuple(sorted(survivors)), status=status)
        self._known.pop(identity, None)
        if known is not None:
            known.ended.set()
            await self._forget_secrets(known.replica)
            await _close_lines(known)
        return Ended(killed, status=status)

    async def _gone(self, identity: str, known: _Known | None, seconds: float) -> Container | None:
        """The container once it ended, or as it is after so long."""
        deadline = self._clock.monotonic() + seconds
        while True:
            rest = deadline - self._clock.monotonic()
            if rest <= 0:
                return await self.engine.inspect(identity)
            if known is not None and not known.ended.is_set():
                # An event says so at once; should it be lost, a look now and then does.
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(rest, 1.0)):
                        await known.ended.wait()
            else:
                await self._clock.sleep(min(rest, 0.1))
            container = await self.engine.inspect(identity)
            if container is None or not container.state.alive:
                return container

    async def _members_left(self, identity: str) -> frozenset[int]:
        for _ in range(20):
            left = await asyncio.to_thread(_members, identity)
            if not left:
                return left
            await self._clock.sleep(0.1)
        return left

    # --- following

    @property
    def _label(self) -> str:
        return f"{labels.AGENT}={self._place.agent_id}"

    def _remember(
        self, container: Container, replica: str, lines: ContainerLines | None, *, taken_in: bool = False
    ) -> _Known:
        known = _Known(container, replica, lines, taken_in)
        self._known[container.id] = known
        return known

    def _follow(self, known: _Known) -> None:
        lines = known.lines
        if lines is None or self._closed or known.ended.is_set():
            return

        def over() -> None:
            # It ended, or the daemon did; the next look tells.
            if not self._closed:
                self._do(self._refresh(known.container.id))

        lines.begin(self.engine, over)

    def _heard(self, message: Mapping[str, Any] | None) -> None:
        if self._closed:
            return
        if message is None:
            # The stream of events was broken, or is the first.
            self._facts_at = None
            self._do(self._look_quietly())
            return
        actor = message.get("Actor") or {}
        identity = str(actor.get("ID") or message.get("id") or "")
        if identity in self._known:
            self._do(self._refresh(identity))

    def _do(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_quietly(self) -> None:
        with suppress(NebulaError):  # kept in `unavailable`
            await self.look_around()

    async def _refresh(self, identity: str) -> None:
        known = self._known.get(identity)
        if known is None or known.ended.is_set():
            return
        try:
            container = await self.engine.inspect(identity)
            if known.taken_in and container is not None and not container.state.alive:
                await self._clock.sleep(AGAIN_SECONDS)
                container = await self.engine.inspect(identity)
        except NebulaError as error:
            self.unavailable = error
            return
        if self._known.get(identity) is not known or known.ended.is_set():
            return
        if container is None:
            container = known.container.model_copy(update={"state": ContainerState.DEAD, "error": "it was removed"})
        if container.state.alive:
            if known.container.started_at not in {None, container.started_at}:
                # Another start of the same container: whoever waits for the end of the former one shall know.
                known.ended.set()
                known = self._remember(container, known.replica, known.lines, taken_in=known.taken_in)
            known.container = container
            self._follow(known)
            return
        if known.lines is not None:
            # Why it ended stands in its last lines.
            await known.lines.over(LAST_LINES_SECONDS)
        self._settled(known, container)

    def _settled(self, known: _Known, container: Container) -> None:
        known.container = container
        known.ended.set()


async def _close_lines(known: _Known) -> None:
    """Where the disk hangs its end is not awaited: whoever writes that log next does."""
    if known.lines is not None:
        known.lines.close()
        await known.lines.over(DISK_SECONDS)


def forget_lines(log_file: Path) -> None:
    """The cursor goes with its log."""
    cursor_file(log_file).unlink(missing_ok=True)


def _probe_host(container: Container, host: str) -> str:
    """Its own address, where it has one: a port published on loopback is served by a helper that dies with the daemon."""
    return container.address or probe_host(host)


def _said(container: Container, memory_bytes: int | None) -> str | None:
    if container.oom_killed:
        room = "" if memory_bytes is None else f" (the node has {memory_bytes / 1024**3:.1f} GiB)"
        return f"out of memory: the kernel ended it within the limit of its container{room}"
    return container.error[:300] or None


def _container_of(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = _CONTAINER_ID.search(text)
    return None if found is None else found[0]


def _members(container: str) -> frozenset[int]:
    """Pids of this machine in the cgroup of a container."""
    return frozenset(pid for pid in psutil.pids() if _container_of(pid) == container)
