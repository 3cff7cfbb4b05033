"""Child processes end with everything they started, whatever it did to hide."""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nebula_core.runtime.processes import (
    Child,
    NotifySocket,
    free_port,
    group_members,
    port_holder,
    spawn,
    started_at,
    stop_group,
)

#: Starts a grandchild in one of several ways, writes its pid, and waits.
TREE = """
import os, signal, sys, time
how, pid_file = sys.argv[1:3]
def say(pid):
    with open(pid_file + ".new", "w") as file:
        file.write(str(pid))
    os.rename(pid_file + ".new", pid_file)
if how == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    if how in ("session", "orphan"):
        os.setsid()
    parent = os.getpid()
    if how == "orphan" and os.fork() != 0:
        os._exit(0)
    while how == "orphan" and os.getppid() == parent:
        time.sleep(0.005)
    if how in ("deaf", "session", "orphan"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(os.getpid())
    time.sleep(600)
    os._exit(0)
time.sleep(600)
"""


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Pids a test started; whatever it leaves is ended."""
    pids: list[int] = []
    yield pids
    for pid in filter(alive, pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def tree(tmp_path: Path, how: str, started: list[int], marker: str | None = None) -> tuple[Child, int]:
    pid_file = tmp_path / "pid"
    env = dict(os.environ)
    if marker is not None:
        name, _, value = marker.partition("=")
        env[name] = value
    child = spawn([sys.executable, "-c", TREE, how, str(pid_file)], log_file=tmp_path / "log", env=env)
    started.append(child.pid)
    async with asyncio.timeout(60):
        while not pid_file.exists():
            assert child.poll() is None, (tmp_path / "log").read_text()
            await asyncio.sleep(0.01)
    grandchild = int(pid_file.read_text())
    started.append(grandchild)
    return child, grandchild


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_child_has_its_own_session_and_a_private_log(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    child = spawn([sys.executable, "-c", "import os; print('hello', os.getsid(0) == os.getpid())"], log_file=log_file)
    assert await child.wait(60) == 0
    assert log_file.read_text() == "hello True\n"
    assert log_file.stat().st_mode & 0o777 == 0o600
    again = spawn([sys.executable, "-c", "print('more'); raise SystemExit(3)"], log_file=log_file)
    assert await again.wait(60) == 3
    assert log_file.read_text() == "hello True\nmore\n"


def test_a_program_that_is_not_there_says_so() -> None:
    with pytest.raises(FileNotFoundError):
        spawn(["/no/such/program"])


@pytest.mark.parametrize("how", ["plain", "deaf", "session"])
async def test_grandchildren_end_as_well(tmp_path: Path, started: list[int], how: str) -> None:
    child, grandchild = await tree(tmp_path, how, started)
    stopped = await stop_group(child.pid, kill_after=60 if how == "plain" else 0.5, child=child)
    assert not stopped.survivors
    assert stopped.killed is (how != "plain")
    assert not alive(child.pid)
    assert not alive(grandchild)
    assert child.poll() is not None


async def test_an_orphan_in_its_own_session_is_found_by_its_marker(tmp_path: Path, started: list[int]) -> None:
    """The EngineCore that PID 1 adopted: no parent link, no group, no session leads to it."""
    marker = f"NEBULA_REPLICA=test-{os.getpid()}"
    child, grandchild = await tree(tmp_path, "orphan", started, marker)
    assert psutil.Process(grandchild).ppid() != child.pid
    os.kill(child.pid, signal.SIGKILL)
    await child.wait(60)
    assert [process.pid for process in group_members(child.pid, marker=marker)] == [grandchild]
    stopped = await stop_group(child.pid, kill_after=0.2, marker=marker)
    assert stopped.killed
    assert not alive(grandchild)


async def test_a_group_without_its_leader_is_still_found(tmp_path: Path, started: list[int]) -> None:
    child, grandchild = await tree(tmp_path, "plain", started)
    os.kill(child.pid, signal.SIGKILL)
    await child.wait(60)
    assert alive(grandchild)
    assert not (await stop_group(child.pid, kill_after=60)).killed
    assert not alive(grandchild)


async def test_a_recycled_pid_is_a_stranger(tmp_path: Path, started: list[int]) -> None:
    child, grandchild = await tree(tmp_path, "plain", started)
    created = started_at(child.pid)
    assert created is not None
    stopped = await stop_group(child.pid, kill_after=0.1, created=created - 1000)
    assert not stopped.killed
    assert alive(child.pid)
    assert alive(grandchild)
    await stop_group(child.pid, kill_after=60, created=created, child=child)
    assert not alive(child.pid)


#: Its first thread has ended and is a zombie; another holds a lock until it is killed.
HEADLESS = """
import ctypes, fcntl, sys, threading, time
file = open(sys.argv[1], "w")
def hold():
    fcntl.flock(file, fcntl.LOCK_EX)
    open(sys.argv[1] + ".held", "w").close()
    time.sleep(600)
threading.Thread(target=hold).start()
ctypes.CDLL(None).pthread_exit(None)
"""


async def test_a_process_lives_as_long_as_any_thread_of_it(tmp_path: Path, started: list[int]) -> None:
    """The threads of an engine may take seconds to leave the driver, and hold its memory until then."""
    lock = tmp_path / "lock"
    child = spawn([sys.executable, "-c", HEADLESS, str(lock)], log_file=tmp_path / "log")
    started.append(child.pid)
    headless = psutil.Process(child.pid)
    async with asyncio.timeout(60):
        while not (tmp_path / "lock.held").exists() or headless.status() != psutil.STATUS_ZOMBIE:
            assert child.poll() is None, (tmp_path / "log").read_text()
            await asyncio.sleep(0.01)
    assert [process.pid for process in group_members(child.pid)] == [child.pid]
    stopped = await stop_group(child.pid, kill_after=0.2, child=child)
    assert not stopped.survivors
    assert child.poll() is not None
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_process_that_ends_by_itself_is_left_to(tmp_path: Path) -> None:
    child = spawn([sys.executable, "-c", "import time; time.sleep(0.2)"])
    stopped = await stop_group(child.pid, term_after=60, kill_after=1, child=child)
    assert not stopped.killed
    assert child.poll() == 0


async def test_stopping_what_is_gone_is_no_error() -> None:
    child = spawn([sys.executable, "-c", ""])
    await child.wait(60)
    assert not (await stop_group(child.pid)).killed


async def test_a_detached_child_runs_on(started: list[int]) -> None:
    child = spawn([sys.executable, "-c", "import time; time.sleep(600)"])
    started.append(child.pid)
    child.detach()
    pid = child.pid
    del child
    assert alive(pid)


def test_a_port_names_its_holder() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        # It is ours, so nobody else listens there either.
        assert port_holder(port) is None
        server.listen()
        holder = port_holder(port)
        assert holder is not None
        assert holder.pid == os.getpid()
        assert holder.program == psutil.Process().name()
        with pytest.raises(OSError, match="no free port"):
            free_port("127.0.0.1", [port])
        other = free_port("127.0.0.1", [port, *range(20000, 21000)])
        assert other != port
    assert 0 < free_port() < 65536


async def test_systemd_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(60)
        listener.bind(str(path))
        notify = NotifySocket.from_environment({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "10000000"})
        assert notify.ping_seconds == 5.0
        assert notify.ready("serving 3\nREADY=0")
        assert listener.recv(1000) == b"READY=1\nSTATUS=serving 3 READY=0"
        assert notify.watchdog()
        assert listener.recv(1000) == b"WATCHDOG=1"
        assert notify.status("x")
        assert notify.stopping()
    assert not notify.watchdog()
    silent = NotifySocket.from_environment({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
    assert silent.ping_seconds is None
    assert not silent.ready()


async def test_systemd_is_told_on_an_abstract_socket() -> None:
    name = f"nebula-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(60)
        listener.bind(f"\0{name}")
        assert NotifySocket(f"@{name}").stopping()
        assert listener.recv(100) == b"STOPPING=1"
