"""Engines as processes of this machine: own session, log in a file, found again after a restart of the agent.

The engine writes its log itself: nothing of it passes through the agent, so the engine neither waits for the agent nor dies
with it. Every process of a start is in one session and carries a marker in its environment, so that workers that left
the group, and whatever a killed agent left behind, are known as ours. Neither is enough alone: vLLM's workers write their
title over their environment, others make a session of their own. Two facts together name a process: its pid and when it
began.
"""

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import structlog

from nebula_agent.adapters import shm
from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.runtime import Ended, Look, Room, Started
from nebula_agent.adapters.start_folders import StartFolders
from nebula_agent.decisions.lifecycle import Life
from nebula_agent.engines.base import Command, Launch
from nebula_core.runtime.clock import Clock
from nebula_core.runtime.processes import Child, group_members, lives, spawn, started_at, stop_group
from nebula_core.security.files import write_secret

log = structlog.get_logger(__name__)

MARKER = "NEBULA_ENGINE"
#: What is left of a group whose leader died gets so long to end by itself.
_STRAY_TERM_SECONDS = 1.0
_POLL_SECONDS = 0.2
#: A start that nobody wants any more is awaited so long, to be ended.
_UNWANTED_SECONDS = 3.0
#: What an engine left in its folder is removed in a moment, or later.
_REMOVE_SECONDS = 5.0
#: Two readings of one process's beginning differ by less.
_SAME_SECONDS = 1.0


class ProcessRuntime:
    """Starts, finds, stops processes. `agent_id` tells our engines from those of another agent on this machine."""

    kind = "process"

    def __init__(self, *, agent_id: str, boot_id: str, directory: Path, clock: Clock) -> None:
        self._agent_id = agent_id
        self._boot_id = boot_id
        self._directory = directory
        self._clock = clock
        self._folders = StartFolders(directory, agent_id)
        self._disk = DiskThreads("starts")
        #: Those that this agent process started itself: only their exit status can be known.
        self._children: dict[int, Child] = {}
        self._shared_memory: dict[str, frozenset[Path]] = {}
        #: Replica by session, which is the leader's pid.
        self._sessions: dict[int, str] = {}
        #: Those that were started by hand: they may lead no session, so their descendants are known by their parents.
        self._taken_in: dict[int, str] = {}

    def inside(self, launch: Launch) -> Launch:
        return launch

    async def start(self, launch: Launch, command: Command, room: Room) -> Started:
        marker = f"{self._agent_id}/{room.replica}/{room.engine_epoch}"
        began = self._clock.wall()
        spawning = self._disk.begin(room.replica, self._spawn, launch.key_file, command, room, marker)
        try:
            child, offset = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            # Nobody would know of it: it must not outlive whoever wanted it.
            spawning.add_done_callback(self._end_unwanted)
            await asyncio.wait({spawning}, timeout=_UNWANTED_SECONDS)
            raise
        self._children[child.pid] = child
        self._sessions[child.pid] = room.replica
        return Started(
            runtime=self.kind,
            engine_epoch=room.engine_epoch,
            host=launch.host,
            probe_host=probe_host(launch.host),
            port=launch.port,
            ports=tuple(launch.ports),
            gpus=launch.gpus,
            log_file=str(room.log_file),
            log_offset=offset,
            started_at=began,
            boot_id=self._boot_id,
            pid=child.pid,
            pid_born=born(child.pid),
            marker=f"{MARKER}={marker}",
        )

    def _spawn(self, key_file: Path, command: Command, room: Room, marker: str) -> tuple[Child, int]:
        """In a thread: the process, and the bytes of its log that are of earlier starts."""
        if command.key_file_content is not None:
            write_secret(key_file, command.key_file_content.encode())
        room.log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        offset = room.log_file.stat().st_size if room.log_file.exists() else 0
        temporary = self._folders.make(room.engine_epoch)
        try:
            child = spawn(
                command.argv,
                log_file=room.log_file,
                env={**room.environment, "TMPDIR": str(temporary), **command.env, MARKER: marker},
                cwd=self._directory,
            )
        except OSError:
            self._folders.remove(room.engine_epoch)
            raise
        return child, offset

    def _end_unwanted(self, spawning: "asyncio.Future[tuple[Child, int]]") -> None:
        if spawning.exception() is None:
            child, _ = spawning.result()
            child.kill()
            log.info("start_given_up", pid=child.pid)

    async def know(self, started: Started, replica: str) -> None:
        """An engine of an earlier agent process, found again."""
        if started.pid is not None and started.boot_id == self._boot_id:
            self._sessions[started.pid] = replica
            if started.taken_in:
                self._taken_in[started.pid] = replica

    def look(self, started: Started) -> Look:
        pid = started.pid
        if pid is None or started.boot_id != self._boot_id:
            return Look(Life.ENDED)
        child = self._children.get(pid)
        if child is not None:
            status = child.poll()
            return Look(Life.RUNNING) if status is None else Look(Life.ENDED, status)
        return Look(Life.RUNNING if _is_alive(pid, started.pid_born) else Life.ENDED)

    async def ended(self, started: Started, timeout: float) -> None:
        if started.pid is None or self.look(started).life is not Life.RUNNING:
            return
        try:
            handle = os.pidfd_open(started.pid)
        except OSError:
            await self._poll(started, timeout)
            return
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        try:
            loop.add_reader(handle, gone.set)
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await gone.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)

    async def _poll(self, started: Started, timeout: float) -> None:
        """Where the kernel has no pidfd."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while loop.time() < deadline and self.look(started).life is Life.RUNNING:  # noqa: ASYNC110 - no Event there
            await asyncio.sleep(min(_POLL_SECONDS, max(0.0, deadline - loop.time())))

    async def members(self, started: Started) -> frozenset[int]:
        if started.pid is None or started.boot_id != self._boot_id:
            return frozenset()
        return await asyncio.to_thread(self._members, started)

    def _members(self, started: Started) -> frozenset[int]:
        members = group_members(started.pid or 0, created=_created(started), marker=started.marker)
        return frozenset(process.pid for process in members)

    async def remember_shared_memory(self, started: Started) -> None:
        """Keeps in mind which files it maps, so that they can be swept even after a kill -9."""
        pids = await self.members(started)
        mapped = await asyncio.to_thread(shm.mapped_by, pids)
        if mapped:
            known = self._shared_memory.get(started.engine_epoch, frozenset())
            self._shared_memory[started.engine_epoch] = known | mapped

    async def stop(self, started: Started, *, term_seconds: float) -> Ended:
        pid = started.pid
        if pid is None or started.boot_id != self._boot_id:
            await self._remove_folder(started.engine_epoch)
            return Ended()
        look = self.look(started)
        child = self._children.get(pid)
        await self.remember_shared_memory(started)
        stopped = await stop_group(
            pid,
            kill_after=term_seconds if look.life is Life.RUNNING else min(term_seconds, _STRAY_TERM_SECONDS),
            created=_created(started),
            marker=started.marker,
            child=child,
        )
        status = child.poll() if child is not None else None
        if not stopped.survivors:
            self._children.pop(pid, None)
            self._sessions.pop(pid, None)
            self._taken_in.pop(pid, None)
            await self._remove_folder(started.engine_epoch)
        swept = await asyncio.to_thread(
            shm.sweep,
            self._shared_memory.pop(started.engine_epoch, frozenset()),
            made_between=(started.started_at - _SAME_SECONDS, self._clock.wall() + _SAME_SECONDS),
        )
        if swept:
            log.info("shm_swept", engine_epoch=started.engine_epoch, files=[path.name for path in swept])
        return Ended(stopped.killed, stopped.survivors, tuple(path.name for path in swept), status)

    def let_go(self, started: Started) -> None:
        child = self._children.pop(started.pid or 0, None)
        if child is not None:
            child.detach()

    def replica_of(self, pid: int) -> str | None:
        """The replica of this agent that a process belongs to. Reads /proc."""
        try:
            session = os.getsid(pid)
        except OSError:
            return None
        known = self._sessions.get(session) or self._below_taken_in(pid)
        if known is not None:
            return known
        try:
            marker = psutil.Process(pid).environ().get(MARKER, "")
        except (psutil.Error, OSError):
            return None
        agent, _, rest = marker.partition("/")
        return rest.rpartition("/")[0] or None if agent == self._agent_id else None

    def _below_taken_in(self, pid: int) -> str | None:
        if not self._taken_in:
            return None
        try:
            ancestry = [pid, *(parent.pid for parent in psutil.Process(pid).parents())]
        except (psutil.Error, OSError):
            return None
        return next((self._taken_in[one] for one in ancestry if one in self._taken_in), None)

    async def strays(self, known: Iterable[str]) -> list[Started]:
        """Processes of this agent that none of the `known` engine epochs explains: a start that was never written down."""
        return await asyncio.to_thread(self._strays, frozenset(known))

    async def forget_others(self, known: Iterable[str]) -> None:
        """Removes what starts left on the disk that are none of the `known` engine epochs."""
        await self._disk.do("sweep", self._folders.sweep, frozenset(known))

    async def _remove_folder(self, engine_epoch: str) -> None:
        """Its end does not wait for a disk that hangs: the folder goes when that answers."""
        await asyncio.wait(
            {self._disk.begin(f"remove {engine_epoch}", self._folders.remove, engine_epoch)}, timeout=_REMOVE_SECONDS
        )

    def _strays(self, known: frozenset[str]) -> list[Started]:
        found: dict[str, Started] = {}
        for process in psutil.process_iter():
            try:
                marker = process.environ().get(MARKER, "")
                created = process.create_time()
            except (psutil.Error, OSError):
                continue
            agent, _, rest = marker.partition("/")
            epoch = rest.rpartition("/")[2]
            if agent != self._agent_id or epoch in known or process.pid == os.getpid():
                continue
            if epoch in found:
                continue
            try:
                # The whole session: workers of this start may no longer show their marker.
                leader = os.getsid(process.pid)
            except OSError:
                leader = process.pid
            found[epoch] = Started(
                runtime=self.kind,
                engine_epoch=epoch,
                host="",
                probe_host="",
                port=0,
                log_file="",
                started_at=created,
                boot_id=self._boot_id,
                pid=leader,
                pid_born=born(leader),
                marker=f"{MARKER}={marker}",
            )
        return list(found.values())


def probe_host(host: str) -> str:
    """How this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def born(pid: int) -> float | None:
    """When a process began, in seconds since boot; None when there is none. Not psutil's, which moves with the clock."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        # The name in parentheses may hold anything; the 22nd field is the 20th after it.
        return int(line.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _created(started: Started) -> float | None:
    """The leader's beginning as the clock tells it now; one that nobody has when its pid was given to a stranger."""
    now = born(started.pid or 0)
    if now is None or started.pid_born is None:
        return None
    return started_at(started.pid or 0) if abs(now - started.pid_born) <= _SAME_SECONDS else _NOBODY


#: No process began in the year 1970.
_NOBODY = 0.0


def _is_alive(pid: int, begun: float | None) -> bool:
    now = born(pid)
    if now is None or (begun is not None and abs(now - begun) > _SAME_SECONDS):
        return False
    try:
        return lives(psutil.Process(pid))
    except psutil.Error:
        return False
