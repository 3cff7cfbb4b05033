"""HTTP/1.1 for the simulated engine: httptools for the framing, one task per request, the client's leaving cancels it.

Uvicorn in miniature, with its manners (lower-case headers, idle connections closed after 5 s, "Invalid HTTP request
received."), because importing uvicorn and Starlette would cost more start-up time than all the rest together. Requests
of one connection are served one after the other.
"""

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast

import httptools

_KEEP_ALIVE_SECONDS = 5.0
_MAX_BODY_BYTES = 64 << 20
_MAX_PIPELINED = 8


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: str
    #: Names in lower case; of a repeated header the last one.
    headers: dict[str, str]
    body: bytes
    client: str


@functools.lru_cache(maxsize=1)
def _date_line(second: int) -> bytes:
    return b"date: " + formatdate(second, usegmt=True).encode() + b"\r\n"


def _head(status: int, headers: list[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode(), _date_line(int(time.time()))]
    lines.extend(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers)
    lines.append(b"\r\n")
    return b"".join(lines)


class Exchange:
    """One request and the way to answer it: `reply` once, or `start_stream`, `send`..., `end_stream`."""

    def __init__(self, connection: "_Connection", request: Request, *, keep_alive: bool) -> None:
        self.request = request
        self.keep_alive = keep_alive
        self.status = 0
        self.response_bytes = 0
        self.complete = False
        self._connection = connection
        #: Headers every reply gets.
        self.headers: list[tuple[str, str]] = []

    def reply(
        self,
        status: int,
        body: bytes = b"",
        content_type: str | None = "application/json",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.status = status
        self.response_bytes = len(body)
        lines = [*self.headers, *headers, ("content-length", str(len(body)))]
        if content_type is not None:
            lines.append(("content-type", content_type))
        if not self.keep_alive:
            lines.append(("connection", "close"))
        self._connection.write(_head(status, lines) + (b"" if self.request.method == "HEAD" else body))
        self.complete = True

    def start_stream(self, content_type: str = "text/event-stream; charset=utf-8") -> None:
        self.status = 200
        lines = [*self.headers, ("content-type", content_type), ("transfer-encoding", "chunked")]
        if not self.keep_alive:
            lines.append(("connection", "close"))
        self._connection.write(_head(200, lines))

    async def send(self, data: bytes) -> None:
        """One chunk; waits while the client reads more slowly than this."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._connection.drained()

    def end_stream(self) -> None:
        self._connection.write(b"0\r\n\r\n")
        self.complete = True


Application = Callable[[Exchange], Awaitable[None]]


@dataclass(eq=False)
class HttpServer:
    """Listens and keeps track of its connections."""

    application: Application
    _server: asyncio.Server | None = None
    _connections: set["_Connection"] = field(default_factory=set)
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self, host: str, port: int) -> int:
        """Opens the port (0: a free one) and returns it; OSError if it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, port, backlog=2048)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def close_listener(self) -> None:
        if self._server is not None:
            self._server.close()

    def close_idle(self) -> None:
        for connection in list(self._connections):
            connection.close_when_idle()

    async def wait_closed(self, timeout: float) -> None:
        """Lets running replies end, at most so long, then cuts them."""
        self.close_idle()
        if self._connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout)
        for connection in list(self._connections):
            connection.abort()

    def opened(self, connection: "_Connection") -> None:
        self._connections.add(connection)

    def closed(self, connection: "_Connection") -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()


class _Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[Exchange] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = self._transport.get_extra_info("peername") or ("", 0)
        self._client = f"{peer[0]}:{peer[1]}"
        self._server.opened(self)
        self._wait_idle()

    def data_received(self, data: bytes) -> None:
        self._stop_waiting()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(b"Unsupported upgrade request.")
        except httptools.HttpParserError:
            self._refuse(b"Invalid HTTP request received.")

    def connection_lost(self, _error: Exception | None) -> None:
        self._closing = True
        self._stop_waiting()
        self._queue.clear()
        self._writable.set()
        self._server.closed(self)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # -- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > _MAX_BODY_BYTES:
            self._refuse(b"Request body too large.", 413)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._closing or self._transport is None:
            return
        url = httptools.parse_url(self._url)
        request = Request(
            self._parser.get_method().decode(),
            url.path.decode("latin-1"),
            (url.query or b"").decode("latin-1"),
            self._headers,
            b"".join(self._body),
            self._client,
        )
        self._queue.append(Exchange(self, request, keep_alive=self._parser.should_keep_alive()))
        if len(self._queue) >= _MAX_PIPELINED:
            self._transport.pause_reading()
        self._serve_next()

    # -- serving ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        await self._writable.wait()

    def close_when_idle(self) -> None:
        self._closing = True
        if self._task is None and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _serve_next(self) -> None:
        if self._task is not None or self._transport is None:
            return
        if not self._queue:
            if self._closing:
                self._transport.close()
            else:
                self._wait_idle()
            return
        exchange = self._queue.popleft()
        self._transport.resume_reading()
        self._task = asyncio.get_running_loop().create_task(self._serve(exchange))

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await self._server.application(exchange)
        finally:
            self._task = None
            if not exchange.complete or not exchange.keep_alive:
                # An answer that was begun and not ended must not look like a whole one.
                self._closing = True
                self._queue.clear()
            self._serve_next()

    def _refuse(self, message: bytes, status: int = 400) -> None:
        self._closing = True
        lines = [("content-type", "text/plain; charset=utf-8"), ("connection", "close")]
        self.write(_head(status, lines) + message)
        if self._transport is not None:
            self._transport.close()

    def _wait_idle(self) -> None:
        self._stop_waiting()
        if self._transport is not None:
            self._idle_timer = asyncio.get_running_loop().call_later(_KEEP_ALIVE_SECONDS, self._transport.close)

    def _stop_waiting(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
