"""A lean HTTP/1.1 client for calls to engines: keep-alive pool, push sink, httptools for framing.

**Theory.** The bytes of an answer go to a `Sink` from `data_received` itself: no queue, no task and no future per
piece. One read of the socket is at most one call of the sink, however many chunks it held: the parser's `on_body`
is the `append` of a list, and the list is handed over when the parser is through with the read. The sink is never
called from inside the parser, so an error in it is an ordinary exception.

A connection serves one request at a time and goes back to its pool only when the answer was framed, complete, and
nothing came after it. Idle connections are dropped after `idle_seconds`, below the keep-alive of common servers
(uvicorn: 5 s), because a request written into a connection that the other side is just closing is lost. When that
happens all the same, before any byte of the answer, the failure says `STALE`: a fresh connection may be tried.

Nothing here retries, routes or times answers out: that is its users' policy. `fetch` is the convenience for calls
that are not hot (scrapes, probes); it does have a time limit.
"""

import asyncio
import socket
from collections import deque
from enum import StrEnum
from typing import NamedTuple, Protocol

import httptools

from nebula_core.runtime.outbox import Outbox

Headers = list[tuple[bytes, bytes]]
Address = tuple[str, int]

#: No waiting for more to send; and a machine that was switched off is noticed in about 6 s, also where nothing is being
#: sent (a long prompt, a slow answer): its kernel answers the probes as long as it lives, whatever its engine does.
_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000),
)
MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100


class FailureKind(StrEnum):
    """How a call ended without an answer, or in the middle of one."""

    REFUSED = "refused"
    CONNECT_TIMEOUT = "connect_timeout"
    #: A kept connection was closed by the other side before any byte of the answer.
    STALE = "stale"
    #: EOF or reset on a fresh connection, or after the answer had begun.
    LOST = "lost"
    #: The answer is not HTTP as it should be.
    MALFORMED = "malformed"


class Failure(NamedTuple):
    kind: FailureKind
    detail: str
    #: Whether any byte of the answer had come.
    answered: bool = False


class Sink(Protocol):
    """Who takes an answer. After `ended`, or a failure, nothing more comes."""

    def response_started(self, status: int, headers: Headers) -> "Sink | None":
        """The head. What it returns takes all the rest in its place; None: it goes on itself."""

    def response_body(self, body: bytes, *, ended: bool) -> None: ...

    def response_failed(self, failure: Failure) -> None: ...


class Call(Protocol):
    """A request under way."""

    def cancel(self) -> None:
        """Closes the connection at once; the sink hears nothing more."""

    def pause(self) -> None:
        """Stops reading the answer: the taker is slow."""

    def resume(self) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to an engine."""

    __slots__ = (
        "_collected",
        "_head_bytes",
        "_parts",
        "_pool",
        "address",
        "answered",
        "begun",
        "complete",
        "fresh",
        "head_ready",
        "headers",
        "idle_since",
        "malformed",
        "on_body",
        "parser",
        "reusable",
        "sink",
        "status",
        "surplus",
        "transport",
        "until_close",
    )

    def __init__(self, pool: "UpstreamClient", address: Address) -> None:
        self._pool = pool
        self.address = address
        self._parts: list[bytes] = []
        # The parser calls the list itself: no Python frame per chunk.
        self.on_body = self._parts.append
        self.sink: Sink | None = None
        self.fresh = True
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self.headers: Headers = []
        self._collected: Headers = []
        self.status = 0
        self._head_bytes = 0
        self.answered = self.begun = self.head_ready = self.complete = self.surplus = self.until_close = (
            self.reusable
        ) = False
        self.malformed: str | None = None

    # The socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def send(self, request: bytes, sink: Sink) -> None:
        """Begins a request on this idle connection."""
        self._reset()
        self.sink = sink
        self._pool.outbox.write(self.transport, request)  # type: ignore[arg-type] # it is connected

    def data_received(self, data: bytes) -> None:
        sink = self.sink
        if sink is None:
            self._discard()  # bytes nobody asked for: framing can no longer be trusted
            return
        self.answered = True
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.surplus:
                self.malformed = self.malformed or str(error) or type(error).__name__
        if not self.begun:
            if self.head_ready:
                self.begun = True
                taker = sink.response_started(self.status, self.headers)
                if self.sink is not sink:
                    return  # cancelled from within
                if taker is not None:
                    self.sink = sink = taker
            elif self.malformed is None:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self.malformed = f"the head is longer than {MAX_HEAD_BYTES} bytes"
        parts = self._parts
        if parts:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            complete = self.complete
            if complete:
                self._finish()
            sink.response_body(body, ended=complete)
        elif self.complete:
            self._finish()
            sink.response_body(b"", ended=True)
        if self.malformed is not None and self.sink is sink:
            self._fail(FailureKind.MALFORMED, self.malformed)

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.forget(self)
        del self.parser  # it holds this connection's methods: a cycle
        if self.sink is None:
            return
        if self.until_close and self.begun and error is None:
            sink, self.sink = self.sink, None
            sink.response_body(b"", ended=True)
        else:
            stale = not self.fresh and not self.answered
            self._fail(
                FailureKind.STALE if stale else FailureKind.LOST, str(error) if error else "closed by the engine"
            )

    # The call

    def cancel(self) -> None:
        self.sink = None
        self._discard()

    def pause(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _finish(self) -> None:
        """The answer is complete; keep the connection when it is safe."""
        self.sink = None
        self.fresh = False
        if self.surplus or self.malformed is not None or not self.reusable:
            self._discard()
        else:
            self._pool.keep(self)

    def _fail(self, kind: FailureKind, detail: str) -> None:
        sink, self.sink = self.sink, None
        self._discard()
        if sink is not None:
            sink.response_failed(Failure(kind, detail, self.answered))

    def _discard(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # The parser

    def on_message_begin(self) -> None:
        if self.complete:
            self.surplus = True
            raise ValueError("bytes after the answer")  # stops the parser before it hands over their body

    def on_header(self, name: bytes, value: bytes) -> None:
        # After the head these are trailers, which nothing here needs: they end up in a list nobody reads.
        self._collected.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        headers, self._collected = self._collected, []
        if status < 200:
            if status == 101:
                self.malformed = "the engine switched protocols"
                raise ValueError(self.malformed)
            return
        if len(headers) > MAX_HEADERS:
            self.malformed = f"more than {MAX_HEADERS} headers"
            raise ValueError(self.malformed)
        self.headers = headers
        self.status = status
        self.head_ready = True
        # Asked here, because the parser forgets the framing when the message is complete.
        self.reusable = self.parser.should_keep_alive()
        if not self.reusable:
            framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
            self.until_close = not framed and status not in (204, 304)

    def on_message_complete(self) -> None:
        self.complete = self.head_ready  # a 1xx is no answer yet


class _Dial:
    """A request that waits for its connection."""

    __slots__ = ("_paused", "_task", "connection")

    def __init__(self) -> None:
        self.connection: UpstreamConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._paused = False

    def start(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def cancel(self) -> None:
        if self.connection is not None:
            self.connection.cancel()
        elif self._task is not None:
            self._task.cancel()

    def pause(self) -> None:
        self._paused = True
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        self._paused = False
        if self.connection is not None:
            self.connection.resume()

    def connected(self, connection: UpstreamConnection) -> None:
        self.connection = connection
        if self._paused:
            connection.pause()


class Response(NamedTuple):
    status: int
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)


class UpstreamError(Exception):
    """`fetch` got no answer."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind}: {failure.detail}")
        self.failure = failure


class UpstreamClient:
    """Connections to engines, kept by address."""

    def __init__(
        self, *, connect_timeout_seconds: float = 1.0, idle_seconds: float = 4.0, max_idle_per_address: int = 256
    ) -> None:
        #: For writes to engines and, where they are in one loop, to clients.
        self.outbox = Outbox()
        self._connect_timeout = connect_timeout_seconds
        self._idle_seconds = idle_seconds
        self._max_idle = max_idle_per_address
        self._idle: dict[Address, deque[UpstreamConnection]] = {}
        self._open: set[UpstreamConnection] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._all_gone = asyncio.Event()

    @property
    def open_connections(self) -> int:
        return len(self._open)

    @property
    def idle_connections(self) -> int:
        return sum(map(len, self._idle.values()))

    def request(self, address: Address, request: bytes, sink: Sink, *, fresh: bool = False) -> Call:
        """Sends `request` (head and body, framed) and pushes the answer to `sink`.

        On a kept connection it is written in this turn of the loop; else a connection is made, within the connect timeout. `fresh`
        asks for a new connection. The sink is never called before this returns.
        """
        loop = self._loop or self._bind()
        if not fresh:
            pool = self._idle.get(address)
            while pool:
                connection = pool.pop()
                transport = connection.transport
                if transport is None or transport.is_closing():
                    continue
                if loop.time() - connection.idle_since > self._idle_seconds:
                    transport.abort()
                    continue
                connection.send(request, sink)
                return connection
        dial = _Dial()
        task = loop.create_task(self._connect(address, request, sink, dial), name=f"connect {address[0]}:{address[1]}")
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)
        dial.start(task)
        return dial

    async def _connect(self, address: Address, request: bytes, sink: Sink, dial: _Dial) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                transport, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self, address), address[0], address[1]
                )
        except TimeoutError:
            detail = f"no connection to {address[0]}:{address[1]} within {self._connect_timeout} s"
            sink.response_failed(Failure(FailureKind.CONNECT_TIMEOUT, detail))
            return
        except OSError as error:
            sink.response_failed(Failure(FailureKind.REFUSED, f"{address[0]}:{address[1]}: {error}"))
            return
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            for level, option, value in _OPTIONS:
                raw.setsockopt(level, option, value)
        self._open.add(connection)
        dial.connected(connection)
        connection.send(request, sink)

    def keep(self, connection: UpstreamConnection) -> None:
        """Takes an idle connection back."""
        pool = self._idle.get(connection.address)
        if pool is None:
            pool = self._idle[connection.address] = deque()
        if self._closed or len(pool) >= self._max_idle:
            connection.cancel()
            return
        connection.idle_since = self._loop.time() if self._loop is not None else 0.0
        pool.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection is gone."""
        self._open.discard(connection)
        if self._closed and not self._open:
            self._all_gone.set()
        pool = self._idle.get(connection.address)
        if pool is None:
            return
        try:
            pool.remove(connection)
        except ValueError:
            return  # it was in use
        if not pool:
            del self._idle[connection.address]

    def sweep(self, now: float) -> int:
        """Closes connections idle for too long; returns how many. `now` is the loop's time."""
        expired = [
            connection
            for pool in self._idle.values()
            for connection in pool
            if now - connection.idle_since > self._idle_seconds
        ]
        for connection in expired:
            self._idle[connection.address].remove(connection)
            connection.cancel()
        return len(expired)

    async def aclose(self) -> None:
        """Closes every connection and gives up every one being made; returns when all are gone."""
        self._closed = True
        for task in list(self._dials):
            task.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        for connection in list(self._open):
            connection.cancel()
        if self._open:
            await self._all_gone.wait()
        self._idle.clear()

    async def fetch(
        self,
        method: str,
        host: str,
        port: int,
        path: str,
        *,
        headers: Headers | None = None,
        body: bytes = b"",
        timeout: float = 5.0,
        max_bytes: int = 16 * 1024 * 1024,
    ) -> Response:
        """One whole exchange. Raises UpstreamError, or TimeoutError after `timeout` seconds."""
        lines = [f"{method} {path} HTTP/1.1\r\nhost: {host}:{port}\r\n".encode("ascii")]
        lines += [b"%b: %b\r\n" % header for header in headers or ()]
        if body or method in ("POST", "PUT", "PATCH"):
            lines.append(b"content-length: %d\r\n" % len(body))
        request = b"".join([*lines, b"\r\n", body])
        async with asyncio.timeout(timeout):
            try:
                return await self._fetch_once((host, port), request, max_bytes, fresh=False)
            except UpstreamError as error:
                if error.failure.kind is not FailureKind.STALE:
                    raise
                return await self._fetch_once((host, port), request, max_bytes, fresh=True)

    async def _fetch_once(self, address: Address, request: bytes, max_bytes: int, *, fresh: bool) -> Response:
        collector = _Collector(asyncio.get_running_loop().create_future(), max_bytes)
        call = self.request(address, request, collector, fresh=fresh)
        try:
            return await collector.answer
        finally:
            if not collector.over:
                call.cancel()

    def _bind(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop


class _Collector:
    """The sink of `fetch`."""

    def __init__(self, answer: "asyncio.Future[Response]", max_bytes: int) -> None:
        self.answer = answer
        self.over = False
        self._max = max_bytes
        self._size = 0
        self._status = 0
        self._headers: Headers = []
        self._parts: list[bytes] = []

    def response_started(self, status: int, headers: Headers) -> None:
        self._status, self._headers = status, headers

    def response_body(self, body: bytes, *, ended: bool) -> None:
        if self.answer.done():
            return
        self._parts.append(body)
        self._size += len(body)
        if self._size > self._max:
            detail = f"the answer is longer than {self._max} bytes"
            self.answer.set_exception(UpstreamError(Failure(FailureKind.MALFORMED, detail, answered=True)))
        elif ended:
            self.over = True
            self.answer.set_result(Response(self._status, self._headers, b"".join(self._parts)))

    def response_failed(self, failure: Failure) -> None:
        self.over = True
        if not self.answer.done():
            self.answer.set_exception(UpstreamError(failure))


async def fetch(
    method: str,
    host: str,
    port: int,
    path: str,
    *,
    headers: Headers | None = None,
    body: bytes = b"",
    timeout: float = 5.0,
    max_bytes: int = 16 * 1024 * 1024,
) -> Response:
    """One exchange on a connection of its own. Raises UpstreamError or TimeoutError."""
    client = UpstreamClient(connect_timeout_seconds=timeout)
    try:
        return await client.fetch(
            method, host, port, path, headers=headers, body=body, timeout=timeout, max_bytes=max_bytes
        )
    finally:
        await client.aclose()
