"""uvicorn's server as both kinds of process run it: told, not polling; a stop that drops nobody; deadlines in a sweep.

The end of a process, from SIGTERM on:

    draining ──► (lame duck) ──► not listening ──► the last request answered, or its time over ──► closed
       │  `/readyz` says no; every answer closes its connection            │
       └── a second SIGTERM: those still open are told and ended now ──────┘

*Lame duck*: for a load balancer that asks `/readyz` every few seconds the port stays open for so long. Where somebody
else holds the listening socket (the supervisor, systemd), whoever connects after that waits for the successor.

A connection that is idle when draining begins may have a request on its way. It stays open for a moment, so that the
request is answered (with `connection: close`) instead of reset.
"""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import structlog
import uvicorn

from nebula_proxy.traffic.connection import StrictProtocol
from nebula_proxy.traffic.plane import Plane

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
#: How long an idle connection stays when draining begins.
IDLE_GRACE_SECONDS = 1.0
_LOOK_SECONDS = 0.05


class OrderlyServer(uvicorn.Server):
    """SIGTERM and SIGINT call `handle_exit` on the loop."""

    def __init__(
        self, config: uvicorn.Config, plane: Plane, *, drain_seconds: float, lame_duck_seconds: float = 0.0
    ) -> None:
        super().__init__(config)
        self._plane = plane
        self._drain_seconds = drain_seconds
        self._lame_duck_seconds = lame_duck_seconds
        self._told = asyncio.Event()
        #: Told a second time: those who still wait are ended.
        self._hurried = asyncio.Event()
        #: Called once it listens.
        self.on_started: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.on_started is not None and not self.should_exit:
            self.on_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a drained process ends with status 0 instead of dying by the signal after all."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        self.stop()

    def stop(self) -> None:
        """The same as SIGTERM; a second time it is in a hurry."""
        if self.should_exit:
            self._hurried.set()
        self.should_exit = True
        self._told.set()

    @property
    def connections(self) -> int:
        return len(self.server_state.connections)

    async def main_loop(self) -> None:
        """Uvicorn's wakes ten times a second to look whether it shall exit; here it is told."""
        while not await self.on_tick(0):  # makes the Date header of the next second
            try:
                await asyncio.wait_for(self._told.wait(), TICK_SECONDS)
            except TimeoutError:
                continue

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._plane.draining = True
        log.info("draining", inflight=len(self._plane.ledger), connections=self.connections)
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain_seconds
        if self._lame_duck_seconds:
            await self._until(loop.time() + self._lame_duck_seconds)
        for server in self.servers:
            server.close()
        for listening in sockets or ():
            listening.close()
        began = loop.time()
        while self.server_state.connections or self.server_state.tasks:
            self._close_idle(began)
            await asyncio.sleep(0)  # a closed connection takes its leave in the next turn
            if not self.server_state.connections and not self.server_state.tasks:
                break
            if not await self._until(min(end, loop.time() + _LOOK_SECONDS)) or loop.time() >= end:
                self._give_up()
                break
        await self.lifespan.shutdown()

    async def _until(self, at: float) -> bool:
        """False when somebody is in a hurry before."""
        try:
            async with asyncio.timeout_at(at):
                await self._hurried.wait()
        except TimeoutError:
            return True
        return False

    def _close_idle(self, began: float) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, StrictProtocol):
                connection.drain(now - max(began, connection.since) > IDLE_GRACE_SECONDS)

    def _give_up(self) -> None:
        """What is open is ended by the application, which tells each client (lifespan)."""
        log.warning(
            "drain_ended_early",
            inflight=len(self._plane.ledger),
            connections=self.connections,
            hurried=self._hurried.is_set(),
        )
        for task in self.server_state.tasks:
            task.cancel()

    def sweep(self) -> None:
        """Ends those that are slower than their deadlines allow, and when we are short of something, those that are idle."""
        now = asyncio.get_running_loop().time()
        short = self._plane.guard.shed is not None
        for connection in list(self.server_state.connections):
            if isinstance(connection, StrictProtocol):
                connection.expire(now)
                if short:
                    connection.drain(now - connection.since > IDLE_GRACE_SECONDS)
