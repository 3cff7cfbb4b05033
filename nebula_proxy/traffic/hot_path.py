"""The hot path: inference calls are taken out of uvicorn before ASGI, and tokens are spliced from socket to socket.

uvicorn's own parser goes on reading the connection, so split heads, pipelining, `Expect`, HTTP/1.0 and keep-alive are
its business for hot and cold requests alike. A hot request stands in uvicorn's books as a *cycle* like any other
(`HotCycle` has the attributes uvicorn looks at), which is what keeps a request pipelined behind it from being
answered out of turn. When it is complete it becomes an `Exchange`; what the exchange hands over is framed and
written here: one write per read from the engine, no task and no future.

A head that came before on the same connection goes past the parser (`decisions/known_head`): between two messages
that is idle, so it does not miss what it is not shown.
"""

from typing import Any

from nebula_proxy.decisions.calls import CALLS, Call
from nebula_proxy.decisions.known_head import KnownHead, known_head
from nebula_proxy.decisions.refusal import too_large
from nebula_proxy.traffic.connection import PIPELINE, STATUS_LINES, Phase, StrictProtocol, status_line
from nebula_proxy.traffic.cors import CorsDownstream, cors_lines
from nebula_proxy.traffic.downstream import Downstream
from nebula_proxy.traffic.exchange import Exchange

_IDLE, _BODY, _BUSY = Phase.IDLE, Phase.BODY, Phase.BUSY
#: Heads that are remembered for one connection before it is seen that its heads differ each time.
_LESSONS = 4


class _NobodyWaits:
    """Stands for the event on which uvicorn's cycles wait."""

    def set(self) -> None:
        """Nobody waits."""


_NOBODY = _NobodyWaits()


class HotCycle:
    """One hot request on a connection, from its head to the end of its answer: the exchange's downstream."""

    __slots__ = (
        "_chunked",
        "_protocol",
        "_version",
        "_wants_continue",
        "body",
        "call",
        "complete",
        "disconnected",
        "exchange",
        "headers",
        "its_turn",
        "keep_alive",
        "response_complete",
        "response_started",
    )

    #: What uvicorn looks at.
    message_event = _NOBODY

    def __init__(
        self,
        protocol: "HotPathProtocol",
        call: Call,
        headers: dict[bytes, bytes],
        version: str,
        *,
        keep_alive: bool,
        wants_continue: bool,
    ) -> None:
        self._protocol = protocol
        self.call = call
        self.headers = headers
        self._version = version
        #: The request has come to its end; those before it on this connection are answered.
        self.complete = self.its_turn = False
        self.keep_alive = keep_alive
        self._wants_continue = wants_continue
        self.body: list[bytes] = []
        self.exchange: Exchange | None = None
        self.response_started = False
        self.response_complete = False
        self.disconnected = False
        self._chunked = False

    @property
    def can_come_again(self) -> bool:
        """Its head means the same whenever it comes (`decisions/known_head`)."""
        return self.keep_alive and self._version == "1.1"

    def take_turn(self) -> None:
        """All requests before it are answered."""
        self.its_turn = True
        if self.complete:
            self.start()
        elif self._wants_continue:
            self._protocol.outbox.write(self._protocol.transport, b"HTTP/1.1 100 Continue\r\n\r\n")

    def start(self) -> None:
        """The request is complete and it is its turn."""
        body = self.body
        whole = body[0] if len(body) == 1 else b"".join(body)
        self.body = []
        self.response_started = True
        protocol = self._protocol
        plane = protocol.plane
        downstream: Downstream = self
        if plane.allowed_origins and (origin := self.headers.get(b"origin")) is not None:
            downstream = CorsDownstream(self, cors_lines(plane.allowed_origins, origin))
        self.exchange = exchange = Exchange(plane, downstream, self.call, self.headers, whole)
        protocol.active = self
        exchange.start()

    # Downstream

    @property
    def peer(self) -> str | None:
        client = self._protocol.client
        return client[0] if client else None

    def respond(self, status: int, head: bytes, body: bytes, *, close: bool = False) -> None:
        if close:
            self.keep_alive = False
        protocol = self._protocol
        protocol.outbox.write(
            protocol.transport,
            b"%b%b%bcontent-length: %d\r\n%b\r\n%b"
            % (
                STATUS_LINES.get(status) or status_line(status),
                protocol.default_head(),
                head,
                len(body),
                b"" if self.keep_alive else b"connection: close\r\n",
                body,
            ),
        )
        self.response_complete = True
        protocol.hot_done(self)

    def begin(self, status: int, head: bytes, body: bytes) -> None:
        protocol = self._protocol
        self._chunked = self._version == "1.1"
        if not self._chunked:
            self.keep_alive = False  # its end is the end of the connection
        protocol.outbox.write(
            protocol.transport,
            b"%b%b%b%b%b\r\n%b"
            % (
                status_line(status),
                protocol.default_head(),
                head,
                b"" if self.keep_alive else b"connection: close\r\n",
                b"transfer-encoding: chunked\r\n" if self._chunked else b"",
                b"%x\r\n%b\r\n" % (len(body), body) if self._chunked and body else body,
            ),
        )

    def write(self, body: bytes) -> None:
        protocol = self._protocol
        protocol.outbox.write(protocol.transport, b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body)

    def end(self, body: bytes = b"", *, close: bool = False) -> None:
        if close:
            self.keep_alive = False
        if self._chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        if body:
            self._protocol.outbox.write(self._protocol.transport, body)
        self._complete()

    def cut(self) -> None:
        self.keep_alive = False
        self._protocol.abort(reset=not self._chunked)
        self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self._protocol.hot_done(self)


class HotPathProtocol(StrictProtocol):
    """A connection whose inference calls do not pass through ASGI."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The hot request that is being answered.
        self.active: HotCycle | None = None
        #: The hot request that is being received.
        self._receiving: HotCycle | None = None
        #: Requests that became complete in this read; started after the parser is through with it.
        self._ready: list[HotCycle] = []
        #: The head it sent before, and how many more may be remembered.
        self._known: KnownHead | None = None
        self._lessons = _LESSONS
        #: Bytes that are still to come of a body whose head was known.
        self._missing = 0
        self._default_headers: list[tuple[bytes, bytes]] | None = None
        self._default_head = b""

    def default_head(self) -> bytes:
        """The headers uvicorn adds to every answer (date), as lines; it makes a new list once a second."""
        headers = self.server_state.default_headers
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_head = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._default_head

    # From the socket

    def data_received(self, data: bytes) -> None:
        idle = self.phase is _IDLE
        if idle:
            if self._known is not None and self._receive_known(data, self._known):
                return
        elif self._missing:
            data = self._receive_rest(data)
        if data:
            super().data_received(data)
            if idle and self._lessons and self.phase is not _IDLE:
                self._learn(data)
        if self._ready:
            ready, self._ready = self._ready, []
            for cycle in ready:
                cycle.complete = True
                if cycle.its_turn:
                    cycle.start()

    def _receive_known(self, data: bytes, known: KnownHead) -> bool:
        """Takes a request with the known head; False: it is another one, or nothing to be short with."""
        found = known.found_in(data)
        if found is None:
            return False
        digits, at = found
        length = int(digits)
        body = data[at:]
        # What is too long is refused, and what came along is told apart, by the parser's way.
        if length > self.limits.max_body_bytes or len(body) > length:
            return False
        headers = {**known.headers, b"content-length": digits}
        keep_alive = not self.plane.draining
        cycle = HotCycle(self, known.call, headers, "1.1", keep_alive=keep_alive, wants_continue=False)
        cycle.its_turn = True  # nothing is open on an idle connection
        cycle.body.append(body)
        self.cycle = cycle  # type: ignore[assignment] # it has what uvicorn looks at
        self._behind = None
        if len(body) == length:
            self.phase = _BUSY
            cycle.complete = True
            cycle.start()
        else:
            self.phase, self.since, self._receiving = _BODY, self.loop.time(), cycle
            self._body_bytes = len(body)
            self._missing = length - len(body)
        return True

    def _receive_rest(self, data: bytes) -> bytes:
        """Takes what is missing of a body whose head was known; what is behind it is for the parser."""
        cycle = self._receiving
        if self.phase is not _BODY or cycle is None:
            self._missing = 0  # the request was refused meanwhile
            return data
        body = data[: self._missing]
        cycle.body.append(body)
        self._body_bytes += len(body)
        self._missing -= len(body)
        if not self._missing:
            self.phase, self._receiving = _BUSY, None
            self._ready.append(cycle)
        return data[len(body) :]

    def _learn(self, data: bytes) -> None:
        """The message that `data` begins with was parsed: remembers its head, if there is only one and it may come again."""
        begun = self._ready if self._receiving is None else [*self._ready, self._receiving]
        # Several in one read, or one behind a call that is not hot: whose head it is is not told apart here.
        if len(begun) != 1 or self._behind is not None or not begun[0].can_come_again:
            return
        cycle = begun[0]
        self._lessons -= 1
        known = known_head(data, self.url, cycle.call, cycle.headers)
        if known is not None:
            # Connections of one client share one copy.
            self._known = self.plane.remember(known)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pipeline.clear()
        active, self.active = self.active, None
        if active is not None and active.exchange is not None:
            active.exchange.client_gone()
            active.exchange = None
        # Which hold this connection: a thousand that are over would wait for the collector.
        self._receiving = None
        self._ready.clear()
        if isinstance(self.cycle, HotCycle):
            self.cycle = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.active is not None and self.active.exchange is not None:
            self.active.exchange.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.active is not None and self.active.exchange is not None:
            self.active.exchange.resume()

    # From the parser

    def take(self, method: bytes, version: str, headers: dict[bytes, bytes]) -> bool:
        if method != b"POST":
            return False
        url = self.url
        call = CALLS.get(url)
        if call is None:
            call = CALLS.get(url.partition(b"?")[0])
            if call is None:
                return False
        length = headers.get(b"content-length")
        most = self.limits.max_body_bytes
        if length is not None and int(length) > most:
            self._stop(too_large(most))
        cycle = HotCycle(
            self,
            call,
            headers,
            version,
            keep_alive=version != "1.0" and self.parser.should_keep_alive() and not self.plane.draining,
            wants_continue=b"expect" in headers and version == "1.1",
        )
        self.cycle = cycle  # type: ignore[assignment] # it has what uvicorn looks at
        self._receiving = cycle
        if self._behind is None:
            cycle.take_turn()
        else:
            # In uvicorn's queue at once, so that hot and cold requests keep their order.
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type] # see _start_asgi_task
            if len(self.pipeline) >= PIPELINE:
                self.flow.pause_reading()
        return True

    def on_body(self, body: bytes) -> None:
        cycle = self._receiving
        if cycle is None:
            super().on_body(body)
            return
        self._body_bytes += len(body)
        if self._body_bytes > self.limits.max_body_bytes:
            self._stop(too_large(self.limits.max_body_bytes))
        cycle.body.append(body)

    def on_message_complete(self) -> None:
        cycle = self._receiving
        if cycle is None:
            super().on_message_complete()
            return
        self.end_of_request()
        self._receiving = None
        self._ready.append(cycle)

    # uvicorn's books

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, HotCycle):
            cycle.take_turn()
        else:
            super()._start_asgi_task(cycle, app)

    def hot_done(self, cycle: HotCycle) -> None:
        """The answer of `cycle` has been written."""
        cycle.exchange = None  # which holds the cycle: left alone, every request would be work for the collector
        if self.active is cycle:
            self.active = None
        if not cycle.keep_alive:
            self.close()
        self.on_response_complete()
