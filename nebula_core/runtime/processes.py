"""Child processes: started in a session of their own, stopped with everything they started.

An engine forks workers, and some of those leave its process group; what stays behind holds its GPU memory and is
adopted by PID 1. So the members of a process are found anew at each step by every trace there is: parent links, the
process group, the session, and an environment marker (`NEBULA_REPLICA=chat-r1`) that children inherit. Each is
signalled by its own pid together with its start time, so a recycled number never hits a stranger.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

_POLL_SECONDS = 0.05
#: After SIGKILL only the kernel can delay the end (a driver call): that is reported, not waited for.
_AFTER_KILL_SECONDS = 5.0


class PortHolder(NamedTuple):
    """Who listens on a port; a field is None when this user may not see it."""

    pid: int | None
    program: str | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """How a group ended; `survivors` are processes that even SIGKILL did not end."""

    killed: bool
    survivors: tuple[int, ...] = ()


class Child:
    """A process we started. It may outlive us: nothing here kills it unasked."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs. Reaps it."""
        return self._process.poll()

    async def wait(self, timeout: float | None = None) -> int | None:
        """The exit status; None when `timeout` seconds passed first."""
        try:
            async with asyncio.timeout(timeout):
                while (status := self.poll()) is None:  # noqa: ASYNC110 - the kernel sets no Event
                    await asyncio.sleep(_POLL_SECONDS)
                return status
        except TimeoutError:
            return None

    def kill(self) -> None:
        """It and its whole group, at once; reaped here or by `poll`."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_POLL_SECONDS)

    def detach(self) -> None:
        """Leaves it running for good: without this, dropping the object while it runs is reported as a leak."""
        if self._process.returncode is None:
            self._process.returncode = 0


def spawn(
    argv: Sequence[str],
    *,
    log_file: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Starts a program in its own session, no stdin, both outputs appended to `log_file` (mode 0600; None: dropped).

    Raises OSError when the program cannot be started.
    """
    target = os.devnull if log_file is None else log_file
    output = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    finally:
        os.close(output)
    return Child(process)


def started_at(pid: int) -> float | None:
    """Unix seconds at which this process began: with the pid, its identity. None when there is no such process."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def group_members(pid: int, *, created: float | None = None, marker: str | None = None) -> list[psutil.Process]:
    """Every live process that belongs to `pid`, itself included; it may be gone already.

    `created` (see `started_at`) refuses a recycled pid; `marker` is `NAME=value` in the environment of its own.
    Reads all of /proc: call it in a thread.
    """
    leader_created = started_at(pid)
    recycled = created is not None and leader_created is not None and abs(leader_created - created) > 1.0
    found: dict[int, psutil.Process] = {}
    name, _, value = (marker or "").partition("=")
    me = os.getpid()
    everyone = [process for process in psutil.process_iter() if process.pid not in {me, 0, 1}]
    for process in everyone:
        try:
            mine = not recycled and (
                process.pid == pid or os.getpgid(process.pid) == pid or os.getsid(process.pid) == pid
            )
            if not mine and name:
                mine = process.environ().get(name) == value
        except (psutil.Error, OSError):
            continue
        if mine:
            found[process.pid] = process
    # Children of members, whatever session they made for themselves.
    parents: dict[int, list[psutil.Process]] = {}
    for process in everyone:
        try:
            parents.setdefault(process.ppid(), []).append(process)
        except psutil.Error:
            continue
    waiting = list(found)
    while waiting:
        for child in parents.get(waiting.pop(), []):
            if child.pid not in found:
                found[child.pid] = child
                waiting.append(child.pid)
    return [process for process in found.values() if lives(process)]


async def stop_group(
    pid: int,
    term_after: float = 0.0,
    kill_after: float = 15.0,
    *,
    created: float | None = None,
    marker: str | None = None,
    child: Child | None = None,
) -> Stopped:
    """Ends `pid` and everything it started: waits `term_after` s, SIGTERM, waits `kill_after` s, SIGKILL to the rest.

    SIGTERM goes to the leader alone, so that an engine ends its own workers in order and may finish its requests; the
    others get theirs once it is gone. Give `child` when this process is the parent, so that it is reaped.
    """
    known: dict[int, psutil.Process] = {}
    asked: set[int] = set()

    async def left() -> list[psutil.Process]:
        # Who was once seen stays known: a worker that was reparented to PID 1 has no other trace.
        for process in await asyncio.to_thread(group_members, pid, created=created, marker=marker):
            known.setdefault(process.pid, process)
        rest = [process for process in known.values() if lives(process)]
        if child is not None:
            child.poll()
        return rest

    def ask(rest: list[psutil.Process]) -> None:
        leader = [process for process in rest if process.pid == pid]
        for process in leader or rest:
            if process.pid not in asked:
                asked.add(process.pid)
                _signal(process, signal.SIGTERM)

    loop = asyncio.get_running_loop()

    async def gone_within(seconds: float, *, asking: bool) -> bool:
        deadline = loop.time() + seconds
        while rest := await left():
            if loop.time() >= deadline:
                return False
            if asking:
                ask(rest)
            await asyncio.sleep(_POLL_SECONDS)
        return True

    if term_after > 0 and await gone_within(term_after, asking=False):
        return Stopped(killed=False)
    if await gone_within(kill_after, asking=True):
        return Stopped(killed=False)
    deadline = loop.time() + _AFTER_KILL_SECONDS
    # Again and again: a process may fork between being listed and being killed.
    while (rest := await left()) and loop.time() < deadline:
        for process in rest:
            _signal(process, signal.SIGKILL)
        await asyncio.sleep(_POLL_SECONDS)
    return Stopped(killed=True, survivors=tuple(sorted(process.pid for process in rest)))


def lives(process: psutil.Process) -> bool:
    """Whether anything of it runs: a zombie with threads has not ended, nor let go of its memory, sockets and GPU."""
    try:
        return process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def free_port(host: str = "127.0.0.1", ports: Sequence[int] | None = None) -> int:
    """A port nobody listens on: the first free one of `ports`, or any. Raises OSError (EADDRINUSE) when none is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports if ports is not None else (0,):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return int(probe.getsockname()[1])
    raise OSError(errno.EADDRINUSE, f"no free port on {host} in the range given")


def port_holder(port: int) -> PortHolder | None:
    """Who listens on a TCP port of this machine; None when nobody does."""
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            return PortHolder(connection.pid, _program(connection.pid))
    return None


def _program(pid: int | None) -> str | None:
    if pid is None:
        return None
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return None


class NotifySocket:
    """systemd's notify protocol: ready, status, watchdog. Does nothing where there is no such socket."""

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self._address = None if not address else ("\0" + address[1:] if address.startswith("@") else address)
        #: Ping at least this often (half of what systemd waits); None when no watchdog is set.
        self.ping_seconds = None if watchdog_seconds is None else watchdog_seconds / 2

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "NotifySocket":
        """From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`."""
        microseconds = env.get("WATCHDOG_USEC", "")
        meant = env.get("WATCHDOG_PID") in {None, str(os.getpid())}
        return cls(env.get("NOTIFY_SOCKET"), int(microseconds) / 1e6 if meant and microseconds.isdecimal() else None)

    def ready(self, status: str = "") -> bool:
        return self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, text: str) -> bool:
        return self._send(f"STATUS={_one_line(text)}")

    def reloading(self) -> bool:
        """`ready` follows when it is done."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def watchdog(self) -> bool:
        return self._send("WATCHDOG=1")

    def stopping(self) -> bool:
        return self._send("STOPPING=1")

    def _send(self, message: str) -> bool:
        """Whether it was delivered; a full or missing socket never holds up the program."""
        if self._address is None:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sender:
            try:
                sender.sendto(message.encode(), self._address)
            except OSError:
                return False
        return True


def _one_line(text: str) -> str:
    return " ".join(text.split())
