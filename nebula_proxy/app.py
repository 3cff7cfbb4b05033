"""One data-plane worker: its parts put together, its tasks, its life from the listening socket to the last stream."""

import asyncio
import gc
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette

from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.runtime.tasks import TaskSupervisor
from nebula_core.security.sealing import SealingKeyPair
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from nebula_core.store.watcher import Changed, Watcher
from nebula_proxy.adapters.engine_keys import EngineKeys
from nebula_proxy.endpoints.application import application
from nebula_proxy.listening import BACKLOG
from nebula_proxy.serving import OrderlyServer
from nebula_proxy.settings import ProxySettings
from nebula_proxy.traffic.connection import StrictProtocol
from nebula_proxy.traffic.hot_path import HotPathProtocol
from nebula_proxy.traffic.plane import Plane
from nebula_proxy.traffic.reporting import Reporter
from nebula_proxy.traffic.request_log import RequestLog

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
#: Changes of telemetry reach the table at most this often: a batch comes every 100 ms whoever needs it.
TABLE_SECONDS = 0.1
#: How often telemetry is asked for. Each time costs 0.3 ms, and a figure is a second old anyway.
POLL_SECONDS = 0.2


class DataServer(OrderlyServer):
    """uvicorn's server for one plane: knows when it is draining, and gives its connections to the sweep."""

    def __init__(self, config: uvicorn.Config, plane: Plane) -> None:
        super().__init__(config)
        self._plane = plane
        self._told = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._told.set()

    def stop(self) -> None:
        """The same as SIGTERM."""
        self.should_exit = True
        self._told.set()

    async def main_loop(self) -> None:
        """Uvicorn's wakes ten times a second to look whether it shall exit; here it is told."""
        while not await self.on_tick(0):  # makes the Date header of the next second
            try:
                await asyncio.wait_for(self._told.wait(), TICK_SECONDS)
            except TimeoutError:
                continue

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._plane.draining = True
        log.info("draining", inflight=len(self._plane.ledger), connections=len(self.server_state.connections))
        await super().shutdown(sockets)

    @property
    def connections(self) -> int:
        return len(self.server_state.connections)


def server(app: Starlette, plane: Plane, *, hot_path: bool = True, drain_seconds: float = 600.0) -> DataServer:
    """Uvicorn around a plane, as it is used everywhere: in workers, tests and benchmarks."""
    protocol: type[StrictProtocol] = HotPathProtocol if hot_path else StrictProtocol
    config = uvicorn.Config(
        app,
        http=protocol.bound_to(plane),
        loop="uvloop",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    return DataServer(config, plane)


class TableFeeder:
    """Takes snapshots to the routing table, at most every `TABLE_SECONDS`, and keys at once."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._timer: asyncio.TimerHandle | None = None
        self._snapshot: ClusterSnapshot | None = None
        self._last = float("-inf")

    def take(self, snapshot: ClusterSnapshot, changed: Changed) -> None:
        """The watcher's listener."""
        self._snapshot = snapshot
        self._plane.authenticator.update(snapshot.keys)
        loop = asyncio.get_running_loop()
        due = self._last + TABLE_SECONDS
        if changed.durable or changed.resynced or loop.time() >= due:
            self._feed()
        elif self._timer is None:
            self._timer = loop.call_at(due, self._feed)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _feed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._last = asyncio.get_running_loop().time()
        if self._snapshot is not None:
            self._plane.table.follow(self._snapshot, time.monotonic())


class Worker:
    """Everything of one data-plane process."""

    def __init__(self, settings: ProxySettings) -> None:
        self.settings = settings
        pair = None if settings.sealing_key_file is None else SealingKeyPair.load(settings.sealing_key_file)
        self.plane = Plane(
            proxy=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}",
            limits=settings.limits.plain(),
            require_auth=settings.require_auth,
            engine_keys=EngineKeys(pair),
            log=RequestLog(sys.stderr.fileno() if settings.request_log else None),
        )
        self._store: Store | None = None
        self._watcher: Watcher | None = None
        self.app = application(
            self.plane,
            store_reachable=lambda: self._watcher is not None and self._watcher.reachable,
            snapshot_age=self._snapshot_age,
            lifespan=self._lifespan,
        )
        self.server = server(self.app, self.plane, hot_path=settings.hot_path, drain_seconds=settings.drain_seconds)
        self._parent = os.getppid()

    async def serve(self, sockets: list[socket.socket], *, supervised: bool = False) -> None:
        """Runs until SIGTERM or SIGINT and the last stream has ended, or its time is over."""
        self._supervised = supervised
        await self.server.serve(sockets=sockets)

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        store = self._store = await connect(self.settings.store)
        watcher = self._watcher = Watcher(store, poll_seconds=POLL_SECONDS)
        feeder = TableFeeder(self.plane)
        reporter = Reporter(self.plane, store, lambda: self.server.connections)
        watcher.add_listener(feeder.take)
        async with TaskSupervisor("data") as tasks:
            await watcher.start()
            tasks.every("sweep", TICK_SECONDS, self._tick)
            tasks.every("report", TICK_SECONDS, reporter.publish)
            # What is here now stays: the collector need not walk through it again with every new object.
            gc.collect()
            gc.freeze()
            log.info("data_worker_started", proxy=self.plane.proxy, pid=os.getpid())
            try:
                yield
            finally:
                await self.plane.aclose()
                await reporter.withdraw()
                feeder.stop()
                await watcher.stop()
        await store.aclose()
        log.info("data_worker_stopped", proxy=self.plane.proxy)

    async def _tick(self) -> None:
        now = time.monotonic()
        self.plane.sweep(now)
        self.server.sweep()
        watcher = self._watcher
        self.plane.table.hear(now, reachable=watcher is not None and watcher.reachable)
        if self._supervised and os.getppid() != self._parent and not self.server.should_exit:
            log.warning("supervisor_gone", hint="nobody restarts this worker any more: it drains and ends")
            os.kill(os.getpid(), signal.SIGTERM)

    def _snapshot_age(self) -> float | None:
        return None if self._watcher is None else self._watcher.snapshot_age(time.monotonic())

    _supervised = False


def run_worker(settings: ProxySettings, sockets: list[socket.socket], *, supervised: bool = False) -> None:
    """A whole process."""
    worker = Worker(settings)

    async def main() -> None:
        await worker.serve(sockets, supervised=supervised)

    with asyncio.Runner(loop_factory=_loop_factory) as runner:
        runner.run(main())


def _loop_factory() -> Any:
    import uvloop  # noqa: PLC0415 - only a worker needs it

    return uvloop.new_event_loop()
