"""The processes of a local cluster: started, watched, started again when they die, stopped in order.

Each child leads a session of its own (a Ctrl-C in the terminal must reach only us) and gets SIGTERM from the kernel
should we be killed, so that nothing outlives `nebula up`. Their output goes to files.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
#: Wait before a child that died is started again: doubles up to the last, and starts over after a quiet minute.
BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)
LOG_LIMIT_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One process; `log` takes both of its outputs, `env` comes on top of ours."""

    name: str
    command: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)


class Child:
    """Keeps one process running until `stop`."""

    def __init__(self, spec: ChildSpec, on_event: Callable[[str], None]) -> None:
        self.spec = spec
        self.pid: int | None = None
        self.restarts = 0
        self.last_exit: int | None = None
        self._say = on_event
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        await self._spawn()
        self._task = asyncio.create_task(self._keep(), name=f"child-{self.spec.name}")

    def mute(self) -> None:
        """The terminal has another owner from now on; deaths are still in the log and in the events."""
        self._say = lambda _: None

    def terminate(self) -> None:
        """Asks it to end; `stopped` waits for that."""
        self._stopping = True
        self._signal(signal.SIGTERM)

    async def stopped(self, seconds: float) -> None:
        """Waits, then kills its whole session."""
        process = self._process
        if process is not None and process.returncode is None:
            try:
                async with asyncio.timeout(seconds):
                    await process.wait()
            except TimeoutError:
                self._kill_group(process.pid)
                await process.wait()
        if process is not None:
            # What it started in its own session and left behind.
            self._kill_group(process.pid)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def last_lines(self, count: int = 15) -> str:
        """The end of its log, for an error message."""
        try:
            text = self.spec.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-count:])

    async def _spawn(self) -> None:
        log = self.spec.log
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".1.log"))
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.spec.env},
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        self.pid = self._process.pid

    async def _keep(self) -> None:
        attempt = 0
        while not self._stopping:
            process = self._process
            if process is None:
                return
            began = time.monotonic()
            self.last_exit = await process.wait()
            if self._stopping:
                return
            attempt = 0 if time.monotonic() - began > 60 else attempt
            wait = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            attempt += 1
            self._say(f"{self.spec.name} ended ({describe_exit(self.last_exit)}); starting it again")
            await asyncio.sleep(wait)
            if self._stopping:
                return
            self.restarts += 1
            await self._spawn()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _kill_group(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def describe_exit(code: int | None) -> str:
    """`exit 1`, or the signal's name."""
    if code is None:
        return "still running"
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit {code}"


def python(*arguments: str) -> tuple[str, ...]:
    """A command of our own interpreter, so that children come from the same installation."""
    return (sys.executable, *arguments)


def pids(children: Sequence[Child]) -> dict[str, int]:
    return {child.spec.name: child.pid for child in children if child.pid is not None}


def _die_with_parent() -> None:
    # prctl is in libc on Linux; without it a killed `up` would leave its children behind.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
