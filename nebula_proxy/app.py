"""One data-plane worker: its parts put together, its tasks, its life from the listening socket to the last stream."""

import asyncio
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette

from nebula_core.errors import NebulaError
from nebula_core.runtime.tasks import TaskSupervisor
from nebula_core.security.sealing import SealingKeyPair
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher
from nebula_proxy.adapters.engine_keys import EngineKeys
from nebula_proxy.adapters.strategy_plugins import load_strategies
from nebula_proxy.adapters.telemetry import Exporter, wanted
from nebula_proxy.adapters.vitals import MemoryGroup, calm_collector, raise_descriptor_limit
from nebula_proxy.decisions.overload_guard import GuardLimits
from nebula_proxy.endpoints.application import application
from nebula_proxy.listening import BACKLOG
from nebula_proxy.serving import OrderlyServer
from nebula_proxy.settings import GuardSettings, ProxySettings, RoutingSettings
from nebula_proxy.traffic.connection import StrictProtocol
from nebula_proxy.traffic.guard import Guard
from nebula_proxy.traffic.hot_path import HotPathProtocol
from nebula_proxy.traffic.inquiries import Inquiries
from nebula_proxy.traffic.keeping import Keeper
from nebula_proxy.traffic.plane import Plane, Routing
from nebula_proxy.traffic.recorder import Recorder
from nebula_proxy.traffic.reporting import Reporter
from nebula_proxy.traffic.request_log import RequestLog
from nebula_proxy.traffic.table_feeder import TableFeeder
from nebula_proxy.traffic.tracing import Tracer

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
#: A worker that starts waits so long for its first table.
TABLE_SECONDS = 5.0
#: How often it is asked whether the snapshot on disk must be written.
KEEP_SECONDS = 1.0
#: How long a record may wait for the others of its batch: shorter than a person needs to type `why`.
RECORDS_SECONDS = 0.5
#: How often telemetry is asked for. Each time costs 0.3 ms, and a figure is a second old anyway.
POLL_SECONDS = 0.2


def server(
    app: Starlette,
    plane: Plane,
    *,
    hot_path: bool = True,
    drain_seconds: float = 600.0,
    lame_duck_seconds: float = 0.0,
) -> OrderlyServer:
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
    )
    return OrderlyServer(config, plane, drain_seconds=drain_seconds, lame_duck_seconds=lame_duck_seconds)


def _routing(settings: RoutingSettings, pair: SealingKeyPair | None) -> Routing:
    strategies = load_strategies()
    for name, problem in strategies.broken.items():
        log.warning("routing_strategy_left_out", strategy=name, problem=problem)
    default = settings.default_strategy
    if default not in strategies.by_name:
        hint = f"There are: {', '.join(strategies.by_name)}"
        raise NebulaError(f"routing.default_strategy is {default!r}, which there is not", hint=hint)
    secret = 0 if pair is None else pair.seed(b"prompt digests")
    return Routing(strategies.by_name, default, settings.prefix_entries, settings.prefixes_shared, secret)


class Worker:
    """Everything of one data-plane process."""

    def __init__(self, settings: ProxySettings) -> None:
        self.settings = settings
        pair = None if settings.sealing_key_file is None else SealingKeyPair.load(settings.sealing_key_file)
        self.plane = Plane(
            proxy=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}",
            limits=settings.limits.plain(),
            routing=_routing(settings.routing, pair),
            require_auth=settings.require_auth,
            engine_keys=EngineKeys(pair),
            room=settings.waiting.plain(),
            parameters=settings.parameters.plain(),
            allowed_origins=settings.allowed_origins,
            log=RequestLog(sys.stderr.fileno() if settings.request_log else None),
            recorder=Recorder(settings.records.plain()),
            guard=_guard(settings.guards),
        )
        self._exporter: Exporter | None = None
        if wanted(settings.traces.endpoint):
            self._exporter = Exporter(settings.traces.endpoint, settings.traces.ratio, self.plane.proxy)
            self.plane.tracer = Tracer(self._exporter)
        self._store: Store | None = None
        self._watcher: Watcher | None = None
        self._feeder = TableFeeder(self.plane)
        self.app = application(
            self.plane,
            store_reachable=lambda: self._watcher is not None and self._watcher.reachable,
            snapshot_age=self._snapshot_age,
            lifespan=self._lifespan,
        )
        self.server = server(
            self.app,
            self.plane,
            hot_path=settings.hot_path,
            drain_seconds=settings.drain_seconds,
            lame_duck_seconds=settings.lame_duck_seconds,
        )
        self._parent = os.getppid()

    async def serve(
        self, sockets: list[socket.socket], *, supervised: bool = False, ready: Callable[[], None] | None = None
    ) -> None:
        """Runs until SIGTERM or SIGINT and the last stream has ended, or its time is over; `ready` is called once it serves."""
        self._supervised = supervised
        self.server.on_started = ready
        await self.server.serve(sockets=sockets)

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        store = self._store = await connect(self.settings.store)
        feeder = self._feeder
        watcher = self._watcher = Watcher(store, poll_seconds=POLL_SECONDS, reports=feeder.reports, block=False)
        reporter = Reporter(self.plane, store, lambda: self.server.connections)
        inquiries = Inquiries(self.plane, store)
        watcher.add_listener(feeder.take)
        keeper = self._keeper(watcher)
        if keeper is not None:
            keeper.load()
        async with TaskSupervisor("data") as tasks:
            await watcher.start()
            if keeper is not None:
                tasks.every("keep", KEEP_SECONDS, keeper.step)
            tasks.every("sweep", TICK_SECONDS, self._tick)
            tasks.every("report", TICK_SECONDS, reporter.publish)
            tasks.repeat("alarm", reporter.alarm)
            tasks.repeat("inbox", inquiries.listen)
            tasks.every("show", TICK_SECONDS, inquiries.show)
            tasks.repeat("limits", lambda: self.plane.key_limits.step(store))
            tasks.every("records", RECORDS_SECONDS, lambda: self.plane.recorder.flush(store))
            # Who connects meanwhile waits in the kernel; to be let in to an empty table would be worse.
            with suppress(TimeoutError):
                await watcher.tried(TABLE_SECONDS)
            calm_collector()
            log.info("data_worker_started", proxy=self.plane.proxy, pid=os.getpid())
            try:
                yield
            finally:
                await self.plane.aclose()
                await self.plane.key_limits.give_back(store)
                await self.plane.recorder.flush(store)
                if self._exporter is not None:
                    await asyncio.to_thread(self._exporter.close)
                await reporter.withdraw()
                feeder.stop()
                await watcher.stop()
        await store.aclose()
        log.info("data_worker_stopped", proxy=self.plane.proxy)

    async def _tick(self) -> None:
        now = time.monotonic()
        self.plane.guard.look(now, self.server.connections + self.plane.client.open_connections, TICK_SECONDS)
        self.plane.sweep(now)
        self.server.sweep()
        watcher = self._watcher
        self._feeder.tick(now)
        self.plane.table.hear(now, reachable=watcher is not None and watcher.reachable)
        if self._supervised and os.getppid() != self._parent and not self.server.should_exit:
            log.warning("supervisor_gone", hint="nobody restarts this worker any more: it drains and ends")
            os.kill(os.getpid(), signal.SIGTERM)

    def _keeper(self, watcher: Watcher) -> Keeper | None:
        folder, most = self.settings.data_dir, self.settings.snapshot_max_age_seconds
        return None if folder is None or not most else Keeper(folder, watcher, self._feeder, max_age_seconds=most)

    def _snapshot_age(self) -> float | None:
        return None if self._watcher is None else self._watcher.snapshot_age(time.monotonic())

    _supervised = False


def run_worker(
    settings: ProxySettings,
    sockets: list[socket.socket],
    *,
    supervised: bool = False,
    ready: Callable[[], None] | None = None,
) -> None:
    """A whole process."""
    worker = Worker(settings)

    async def main() -> None:
        await worker.serve(sockets, supervised=supervised, ready=ready)

    with asyncio.Runner(loop_factory=_loop_factory) as runner:
        runner.run(main())


def _guard(settings: GuardSettings) -> Guard:
    group = MemoryGroup()
    own = settings.memory_limit_bytes
    return Guard(
        GuardLimits(
            descriptors=raise_descriptor_limit(),
            memory_bytes=group.limit_bytes if own is None else own,
            connections=settings.max_connections,
            connections_per_client=settings.max_connections_per_client,
            loop_lag_seconds=settings.loop_lag_seconds,
        ),
        group=group if own is None and group.limit_bytes is not None else None,
    )


def _loop_factory() -> Any:
    import uvloop  # noqa: PLC0415 - only a worker needs it

    return uvloop.new_event_loop()
