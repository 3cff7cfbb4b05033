"""The control process: store, view, planner and Control API, from the taken port to the last open stream.

It starts while the store is away and then answers 503 to all but health checks until it has seen the store once; a
store that must not be used as it is ends it with the line to change. On SIGTERM the streams are ended, the calls under way are
finished and the lease is given back, so that another process leads at once.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from nebula_core.errors import StoreUnavailable, StoreUnfit
from nebula_core.runtime.clock import Clock, SystemClock
from nebula_core.runtime.tasks import TaskSupervisor
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher
from nebula_proxy.adapters.vitals import calm_collector
from nebula_proxy.control.api import build_api
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.planner import PlannerLoop, PlannerSettings
from nebula_proxy.control.signing import SigningKeys
from nebula_proxy.listening import BACKLOG, CONTROL, listen
from nebula_proxy.serving import OrderlyServer
from nebula_proxy.settings import ProxySettings
from nebula_proxy.traffic.connection import StrictProtocol
from nebula_proxy.traffic.plane import Limits, Plane

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 1.0
#: How often the store's settings are looked at; somebody may change them while we run.
CHECK_SECONDS = 60.0
#: Calls under way get so long when the process ends.
FINISH_SECONDS = 5.0


class ControlServer(OrderlyServer):
    """uvicorn's server; ends the streams first, for they would never end by themselves."""

    def __init__(self, config: uvicorn.Config, plane: Plane, desk: Desk) -> None:
        super().__init__(config, plane, drain_seconds=FINISH_SECONDS)
        self._desk = desk

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("control_stopping", streams=self._desk.hub.open_streams)
        self._desk.hub.close()
        await super().shutdown(sockets)


class ControlProcess:
    """Everything of one control process. `store` must be usable by the time its loops run."""

    def __init__(
        self,
        settings: ProxySettings,
        store: Store,
        keys: SigningKeys,
        *,
        clock: Clock | None = None,
        planner_settings: PlannerSettings | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.store = store
        self.watcher = Watcher(store, self.clock)
        # A name people can read, of one process: the same machine may start another while this one ends.
        holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.planner = PlannerLoop(
            store, self.watcher, keys.current, self.clock, planner_settings, holder=holder, trusted=keys.trusted
        )
        self.desk = Desk(
            store,
            self.watcher,
            self.planner,
            self.clock,
            keys,
            public_url=settings.public_url,
            data_dir=settings.data_dir,
        )
        own = (settings.control.host,) if settings.control.host not in {"0.0.0.0", "::"} else ()
        app = build_api(
            self.desk,
            lifespan=self._lifespan,
            allowed_hosts=(*own, *settings.control.allowed_hosts),
            allowed_origins=settings.control.allowed_origins,
            max_body_bytes=settings.control.max_body_bytes,
        )
        # The data plane's strict framing and deadlines, with bounds of our own.
        plane = Plane(proxy=holder, limits=Limits(max_body_bytes=settings.control.max_body_bytes))
        self.server = ControlServer(
            uvicorn.Config(
                app,
                http=StrictProtocol.bound_to(plane),
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                backlog=BACKLOG,
            ),
            plane,
            self.desk,
        )

    async def serve(self, listeners: list[socket.socket]) -> None:
        """Runs until SIGTERM or SIGINT."""
        await self.server.serve(sockets=listeners)

    async def _sweep(self) -> None:
        self.server.sweep()

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        hub = self.desk.hub
        async with TaskSupervisor("control", self.clock) as tasks:
            self.watcher.add_listener(hub.heard)
            await self.watcher.start()
            tasks.eternal("planner", self.planner.run)
            tasks.repeat("watch", hub.turn)
            tasks.repeat("events", hub.follow_events_quietly)
            tasks.every("sweep", SWEEP_SECONDS, self._sweep)
            tasks.every("store-check", CHECK_SECONDS, self._check)
            calm_collector()
            log.info("control_started", pid=os.getpid(), holder=self.planner.holder)
            try:
                yield
            finally:
                hub.close()
                await tasks.stop()
                await self.watcher.stop()
        log.info("control_stopped")

    async def _check(self) -> None:
        try:
            await self.store.check()
        except StoreUnavailable:
            return  # the watcher tells that
        except StoreUnfit as error:
            log.error("store_unfit", error=error.message, hint=error.hint)


def run_control(
    settings: ProxySettings, listeners: list[socket.socket] | None = None, *, ready: Callable[[], None] | None = None
) -> None:
    """A whole process; without `listeners` it binds its port. Raises SettingsError, PortTaken or StoreUnfit before it serves.

    `ready` is called once it listens.
    """
    keys = SigningKeys.load(settings)
    if listeners is None:
        listeners = listen(settings.control.host, settings.control.port, what=CONTROL)

    async def main() -> None:
        async with await connect(settings.store) as store:
            try:
                await store.check()
                await store.ensure_meta()
            except StoreUnavailable as error:
                log.warning("started_without_store", error=str(error))
            process = ControlProcess(settings, store, keys)
            process.server.on_started = ready
            await process.serve(listeners)

    with asyncio.Runner(loop_factory=_loop_factory) as runner:
        try:
            runner.run(main())
        finally:
            for listener in listeners:
                listener.close()


def _loop_factory() -> Any:
    import uvloop  # noqa: PLC0415 - only a server process needs it

    return uvloop.new_event_loop()
