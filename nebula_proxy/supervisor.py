"""The parent of `run --role all`: N data workers that share the port, and one control process.

It binds the ports, hands each worker its listening socket, starts whoever ends unasked again (with a pause that
doubles), and ends everybody when it is told to. It serves nothing itself. As it holds the sockets, connections wait
in the kernel while a worker is started anew: none is refused.
"""

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from nebula_proxy.listening import listen, require_free
from nebula_proxy.settings import ProxySettings

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
#: A child that lived this long starts again with the first pause.
HEALTHY_SECONDS = 60.0
#: What a child gets beyond the drain before it is killed.
MARGIN_SECONDS = 10.0


@dataclass(frozen=True)
class ChildSpec:
    name: str
    arguments: tuple[str, ...]
    listener: socket.socket | None = None


class Supervisor:
    def __init__(self, settings: ProxySettings, config: Path | None, *, control: bool = True) -> None:
        self._settings = settings
        self._config = config
        self._control = control
        self._stopping = asyncio.Event()

    def children(self, listeners: Sequence[socket.socket]) -> list[ChildSpec]:
        config = () if self._config is None else ("--config", str(self._config))
        workers = [
            ChildSpec(f"data-{number}", ("run", "--role", "data", "--fd", str(listener.fileno()), *config), listener)
            for number, listener in enumerate(listeners)
        ]
        if not self._control:
            return workers
        return [*workers, ChildSpec("control", ("run", "--role", "control", *config))]

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises PortTaken before anything is started."""
        settings = self._settings
        if self._control:
            require_free(settings.control.host, settings.control.port, "the Control API")
        listeners = listen(settings.host, settings.port, settings.workers)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        try:
            async with asyncio.TaskGroup() as group:
                for spec in self.children(listeners):
                    group.create_task(self._keep(spec), name=spec.name)
        finally:
            for listener in listeners:
                listener.close()

    async def _keep(self, spec: ChildSpec) -> None:
        """Runs one child, again and again until everything stops."""
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            process = await self._start(spec)
            ended = asyncio.create_task(process.wait())
            stop = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if not ended.done():
                await self._end(spec, process, ended)
                return
            if self._stopping.is_set():
                return
            pause = FIRST_PAUSE_SECONDS if time.monotonic() - began > HEALTHY_SECONDS else pause
            log.error("child_ended", child=spec.name, pid=process.pid, status=process.returncode, pause_seconds=pause)
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                pause = min(LONGEST_PAUSE_SECONDS, pause * 2)

    async def _start(self, spec: ChildSpec) -> asyncio.subprocess.Process:
        descriptors = () if spec.listener is None else (spec.listener.fileno(),)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nebula_proxy",
            *spec.arguments,
            "--supervised",
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=descriptors,
            # Of its own, so that Ctrl-C at a terminal reaches it once, through us.
            start_new_session=True,
        )
        log.info("child_started", child=spec.name, pid=process.pid)
        return process

    async def _end(self, spec: ChildSpec, process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> None:
        process.terminate()
        try:
            await asyncio.wait_for(ended, self._settings.drain_seconds + MARGIN_SECONDS)
        except TimeoutError:
            log.error("child_killed", child=spec.name, pid=process.pid)
            process.kill()
            await process.wait()


def run_all(settings: ProxySettings, config: Path | None, *, control: bool = True) -> None:
    """A whole process; without `control`, data workers only."""

    async def main() -> None:
        await Supervisor(settings, config, control=control).run()

    asyncio.run(main())
