"""The parent of `run --role all`: N data workers that share the port, and one control process.

It binds the ports, hands each child its listening sockets and its settings, starts whoever ends unasked again (at once the
first time, then with a pause that doubles), and ends everybody when it is told to. It serves nothing itself. As it holds
the sockets, connections wait in the kernel while a worker is started anew: none is refused.

*Reload* (SIGHUP): new settings, or a new version of the program, without a connection lost.

    settings read and judged by a process of the new program ──no──► said, and nothing else happens
      │ yes
      ▼
    exec: the new program in our own place, sockets and old children handed to it (`handover`)
      ▼
    new children on the same sockets ──all ready──► old children: SIGTERM, their streams go on to the end
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from nebula_core.runtime.processes import NotifySocket
from nebula_proxy.handover import Inheritance, Legacy, inherit, leave, sealed_settings, worker_command
from nebula_proxy.listening import CONTROL, DATA, activated, is_at, listen, more, shares
from nebula_proxy.settings import ProxySettings

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
#: A child that lived this long starts again at once, and then with the first pause.
HEALTHY_SECONDS = 5.0
#: What a child gets beyond the drain before it is killed.
MARGIN_SECONDS = 10.0
#: Judging new settings takes a start of the program.
JUDGE_SECONDS = 30.0
#: The control process gives its calls this long, whatever the data plane's drain is.
CONTROL_SECONDS = 20.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PID_FILE = "proxy.pid"


@dataclass(frozen=True)
class ChildSpec:
    name: str
    role: str
    listeners: tuple[socket.socket, ...]


class Supervisor:
    """`inheritance` is what the supervisor before left, when this one takes its place."""

    def __init__(
        self,
        settings: ProxySettings,
        config: Path | None,
        *,
        control: bool = True,
        inheritance: Inheritance | None = None,
        notify: NotifySocket | None = None,
    ) -> None:
        self._settings = settings
        self._config = config
        self._control = control
        self._inherited = inheritance
        self._notify = notify or NotifySocket(None)
        self._stopping = asyncio.Event()
        #: Told a second time.
        self._hurried = asyncio.Event()
        self._listeners: dict[str, list[socket.socket]] = {}
        #: Children of the supervisor before, by name, until they have ended.
        self._old: dict[str, list[int]] = {} if inheritance is None else inheritance.children
        #: Children that were told to end: told twice, they would not wait for their streams.
        self._told: set[int] = set() if inheritance is None else set(inheritance.told)
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._ready: dict[str, asyncio.Event] = {}
        self._reloading: asyncio.Task[None] | None = None

    # --- from the first socket to the last child

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises PortTaken before anything is started."""
        self._listeners = self._listen()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        # Blocked across `exec`: until here they would have killed us.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        with self._pid_file():
            async with asyncio.TaskGroup() as group:
                for spec in self._specs():
                    self._ready[spec.name] = asyncio.Event()
                    group.create_task(self._keep(spec), name=spec.name)
                group.create_task(self._settle(), name="settle")
                group.create_task(self._watchdog(), name="watchdog")
        if self._reloading is not None:
            self._reloading.cancel()
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.close()

    def _listen(self) -> dict[str, list[socket.socket]]:
        """The sockets of each port: handed over ones where they are still wanted, new ones where they are not."""
        settings = self._settings
        given = activated(os.environ)
        if self._inherited is not None:
            given |= self._inherited.listeners
        else:
            for what, names in given.items():
                log.info("sockets_handed_over", by="systemd", what=what, count=len(names))
        wanted = [(DATA, settings.host, settings.port, settings.workers)]
        if self._control:
            wanted.append((CONTROL, settings.control.host, settings.control.port, 1))
        found: dict[str, list[socket.socket]] = {}
        for what, host, port, count in reversed(wanted):
            known = [one for one in given.get(what, ()) if self._inherited is None or is_at(one, host, port)]
            if not known:
                known = listen(host, port, count, what=what)
            elif self._inherited is not None and len(known) < count and not _is_from_systemd(known):
                known += more(host, known[0].getsockname()[1], count - len(known), what=what)
            found[what] = known
        return found

    def _specs(self) -> list[ChildSpec]:
        workers = [
            ChildSpec(f"data-{number}", "data", tuple(mine))
            for number, mine in enumerate(shares(self._listeners[DATA], self._settings.workers))
        ]
        if not self._control:
            return workers
        return [*workers, ChildSpec("control", "control", tuple(self._listeners[CONTROL]))]

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._hurried.set()
        self._notify.stopping()
        self._stopping.set()

    # --- children

    async def _keep(self, spec: ChildSpec) -> None:
        """Runs one child, again and again until everything stops."""
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                process = self._running[spec.name] = await self._start(spec)
            except OSError as error:
                # No process or memory to be had now: no reason to end the workers that serve.
                log.error("child_not_started", child=spec.name, error=str(error), pause_seconds=pause)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)
                pause = min(LONGEST_PAUSE_SECONDS, pause * 2)
                continue
            ended = asyncio.create_task(process.wait())
            stop = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if not ended.done():
                await self._end(spec.name, spec.role, process.pid, ended)
                return
            if self._stopping.is_set():
                return
            healthy = time.monotonic() - began > HEALTHY_SECONDS
            wait = 0.0 if healthy else pause
            pause = FIRST_PAUSE_SECONDS if healthy else min(LONGEST_PAUSE_SECONDS, pause * 2)
            log.error("child_ended", child=spec.name, pid=process.pid, status=process.returncode, pause_seconds=wait)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)

    async def _start(self, spec: ChildSpec) -> asyncio.subprocess.Process:
        told, ready = os.pipe()
        given = [ready]
        try:
            settings = sealed_settings(self._settings)
            given.append(settings)
            process = await asyncio.create_subprocess_exec(
                *worker_command(spec.role, settings, spec.listeners, ready=ready, supervised=True),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(settings, ready, *(listener.fileno() for listener in spec.listeners)),
                # Of its own, so that Ctrl-C at a terminal reaches it once, through us.
                start_new_session=True,
            )
        except OSError:
            os.close(told)
            raise
        finally:
            for descriptor in given:
                os.close(descriptor)
        log.info("child_started", child=spec.name, pid=process.pid)
        loop = asyncio.get_running_loop()

        def heard() -> None:
            loop.remove_reader(told)
            if os.read(told, 1):
                self._ready[spec.name].set()
            os.close(told)

        loop.add_reader(told, heard)
        return process

    async def _end(self, name: str, role: str, pid: int, ended: "asyncio.Future[Any]") -> None:
        """SIGTERM, the time to drain, and then no more; at once when we are told twice."""
        if pid not in self._told:
            self._told.add(pid)
            _signal(pid, signal.SIGTERM)
        limit = CONTROL_SECONDS if role == "control" else self._settings.drain_seconds + MARGIN_SECONDS
        limit += 0.0 if role == "control" else self._settings.lame_duck_seconds
        hurry = asyncio.create_task(self._hurried.wait())
        await asyncio.wait({ended, hurry}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done() and self._hurried.is_set():
            _signal(pid, signal.SIGTERM)
            await asyncio.wait({ended}, timeout=MARGIN_SECONDS)
        hurry.cancel()
        if not ended.done():
            log.error("child_killed", child=name, pid=pid)
            _signal(pid, signal.SIGKILL)
            await ended

    # --- taking over

    async def _settle(self) -> None:
        """Once the new workers serve, those of the supervisor before may go."""
        for name, ready in self._ready.items():
            if name == "control":
                continue  # the data plane must not hang on it
            await self._first(ready)
        if not self._stopping.is_set():
            self._notify.ready(f"{self._settings.workers} worker(s) on {self._settings.host}:{self._settings.port}")
            log.info("reloaded" if self._old else "all_workers_ready", workers=self._settings.workers)
        if self._old and self._control:
            await self._first(self._ready["control"], CONTROL_SECONDS)
        async with asyncio.TaskGroup() as group:
            for name, pids in self._old.items():
                for pid in pids:
                    group.create_task(self._retire(name, pid))
        self._old.clear()

    async def _first(self, event: asyncio.Event, seconds: float | None = None) -> None:
        """Waits for this, or for the end of everything, or so long."""
        tasks = {asyncio.create_task(event.wait()), asyncio.create_task(self._stopping.wait())}
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def _retire(self, name: str, pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def over() -> None:
            loop.remove_reader(descriptor)
            if not ended.done():
                ended.set_result(None)

        loop.add_reader(descriptor, over)
        try:
            await self._end(f"{name} (old)", name.partition("-")[0], pid, ended)
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it has ended
            self._told.discard(pid)
        log.info("old_child_ended", child=name, pid=pid)

    # --- reload

    def _hang_up(self) -> None:
        if self._reloading is not None and not self._reloading.done():
            log.warning("reload_refused", error="a reload is under way", hint="wait until it says `reloaded`")
        elif not all(ready.is_set() for ready in self._ready.values()):
            log.warning("reload_refused", error="not everything is started yet", hint="wait until it is")
        elif not self._stopping.is_set():
            self._reloading = asyncio.get_running_loop().create_task(self._reload(), name="reload")

    async def _reload(self) -> None:
        log.info("reload_asked")
        error = await self._judge()
        if error is not None:
            log.error("reload_refused", error=error, hint="nothing was changed; correct it and reload again")
            return
        # A signal that comes while nobody handles it waits for the one who will.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        # One that came just before is on its way through this loop, which takes three turns; `exec` would lose it.
        for _ in range(3):
            await asyncio.sleep(0)
        if self._stopping.is_set():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return
        self._notify.reloading()
        children = {name: list(pids) for name, pids in self._old.items()}
        for name, process in self._running.items():
            if process.returncode is None:
                children.setdefault(name, []).append(process.pid)
        descriptors = {what: [one.fileno() for one in found] for what, found in self._listeners.items()}
        # Nobody feeds the watchdog while the program starts: it gets the whole of the time for that.
        self._notify.watchdog()
        try:
            leave(
                Legacy(descriptors, children, sorted(self._told)),
                [*self._command(), "run", "--role", self._role(), *self._options()],
            )
        except OSError as failure:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            log.error("reload_refused", error=f"cannot run {sys.executable}: {failure.strerror}", hint="is it there?")

    async def _judge(self) -> str | None:
        """What a process of the program as it is now on disk says against the settings as they are now."""
        process = await asyncio.create_subprocess_exec(
            *self._command(), "check", "--settings-only", *self._options(),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            _, said = await asyncio.wait_for(process.communicate(), JUDGE_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"the settings could not be judged within {JUDGE_SECONDS:g} s"
        if process.returncode == 0:
            return None
        return said.decode(errors="replace").strip()[-1000:] or f"`check` ended with {process.returncode}"

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "nebula_proxy"]

    def _role(self) -> str:
        return "all" if self._control else "data"

    def _options(self) -> list[str]:
        return [] if self._config is None else ["--config", str(self._config)]

    # --- for others

    async def _watchdog(self) -> None:
        """Systemd hears that this loop turns."""
        if self._notify.ping_seconds is None:
            return
        while not self._stopping.is_set():
            self._notify.watchdog()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._notify.ping_seconds)

    @contextlib.contextmanager
    def _pid_file(self) -> Iterator[None]:
        """Where `nebula-proxy reload` finds us."""
        folder = self._settings.data_dir
        if folder is None or not folder.is_dir():
            yield
            return
        path = folder / PID_FILE
        path.write_text(f"{os.getpid()}\n", encoding="ascii")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _is_from_systemd(listeners: Sequence[socket.socket]) -> bool:
    """A socket we did not bind may not let others share its port."""
    return not all(one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for one in listeners)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def run_all(settings: ProxySettings, config: Path | None, *, control: bool = True) -> None:
    """A whole process; without `control`, data workers only."""

    async def main() -> None:
        supervisor = Supervisor(
            settings,
            config,
            control=control,
            inheritance=inherit(os.environ),
            notify=NotifySocket.from_environment(os.environ),
        )
        await supervisor.run()

    asyncio.run(main())
