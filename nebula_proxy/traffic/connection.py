"""A client's connection: uvicorn's httptools protocol, made strict.

uvicorn's class is internal to it, so its version is pinned and `tests/contracts` guard every way it is used here. What
is added: the head checks of `decisions/framing`, limits on the size of a head, errors in our envelope, deadlines for
head, body, idling and blocked writes (uvicorn has only one for idling after a request, reliability M1), and no
timer per request: the plane's sweep asks every connection once a second.

    idle ─first byte─► head ─head complete─► body ─complete─► busy ─answered─► idle
      │                  └──── deadline, bad framing ───► refused, then discarding until the client has read it
      └─ keep-alive over ─► closed
"""

import asyncio
import socket
import struct
from enum import IntEnum
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from nebula_core.runtime.outbox import Outbox
from nebula_proxy.decisions.framing import MAX_HEAD_BYTES, check_cold, check_head, too_many_bytes
from nebula_proxy.decisions.refusal import Refusal, bad_request, head_too_large, proxy_overloaded, too_slow
from nebula_proxy.traffic.plane import Limits, Plane

#: After a refusal the rest of the request is read and thrown away for so long, so that the client gets to read the
#: answer: a socket closed with unread bytes resets, and the reset overtakes the answer.
LINGER_SECONDS = 5.0
LINGER_BYTES = 64 * 1024 * 1024
#: So much may lie here that the client's socket does not take; beyond it the engine is not read any more. The kernel's buffer
#: (megabytes, where it has them) carries a fast client over any pause of ours; what lies here is a slow one's.
WRITE_BUFFER_BYTES = 16 * 1024
#: Requests that may wait behind one that is being answered.
PIPELINE = 16
#: The extension of the ASGI scope under which an application finds its connection.
CONNECTION = "nebula.connection"

STATUS_LINES = {
    status: f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")
    for status, phrase in {
        200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
        405: "Method Not Allowed", 408: "Request Timeout", 413: "Content Too Large", 415: "Unsupported Media Type",
        422: "Unprocessable Content", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
        500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
    }.items()
}  # fmt: skip


def status_line(status: int) -> bytes:
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


_FULL_BODY = proxy_overloaded("connections", 0.5).body()
#: To a connection that is closed as soon as it came.
_FULL = b"%bretry-after: 2\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
    STATUS_LINES[503],
    len(_FULL_BODY),
    _FULL_BODY,
)


class Phase(IntEnum):
    IDLE = 0
    HEAD = 1
    BODY = 2
    BUSY = 3
    DISCARDING = 4


#: Looked at several times per request; a member of an enumeration costs a lookup each time.
_IDLE, _HEAD, _BODY, _BUSY, _DISCARDING = Phase


class _Refused(Exception):
    """Stops the parser; the refusal is in `_refusal`."""


class StrictProtocol(HttpToolsProtocol):
    """One connection. `plane` is set by `bound_to`."""

    plane: Plane
    limits: Limits
    outbox: Outbox

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False  # the request log is ours
        self.phase = _IDLE
        self.since = self.loop.time()
        self.paused_since: float | None = None
        #: Bytes of the latest read, and of the head being received in the reads before it.
        self._read_bytes = self._head_bytes = 0
        self._body_bytes = 0
        self._refusal: Refusal | None = None
        #: The request before the one being received, when it was not answered yet at its head.
        self._behind: Any = None
        #: The cycle that uvicorn works on.
        self._running: Any = None
        #: While discarding: an answer is still being given, and what is to be said after it.
        self._answering = False
        self._due: Refusal | None = None
        #: Counted among the open connections, under this address.
        self.booked = False
        self.address: str | None = None

    @classmethod
    def bound_to(cls, plane: Plane) -> type["StrictProtocol"]:
        """A class of its own for this plane: uvicorn makes the instances."""
        return type(cls.__name__, (cls,), {"plane": plane, "limits": plane.limits, "outbox": plane.client.outbox})

    # From the socket

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self.address = None if self.client is None else self.client[0]
        self.booked = self.plane.guard.admits(self.address)
        if not self.booked:
            self.phase = _DISCARDING
            transport.write(_FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        running, self._running = self._running, None
        if running is not None and not running.response_complete:
            # uvicorn tells the latest request alone; the one being answered may stand before it.
            running.disconnected = True
            running.message_event.set()
        if self.booked:
            self.booked = False
            self.plane.guard.left(self.address)

    def data_received(self, data: bytes) -> None:
        if self.phase is _DISCARDING:
            self._discard(data)
            return
        self._read_bytes = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # `GET` with an Upgrade header: answered as a plain request. The parser takes the rest for another protocol,
            # so nothing on this connection could be told apart from here on.
            if self.cycle is not None:
                self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            self._refuse_framing(self._refusal or bad_request(f"This is not HTTP/1.1: {error}", hint="see RFC 9112"))
            return
        if self.phase is _HEAD:
            # One read is bounded by the loop (256 KiB), so a head is never much longer than its limit in memory.
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_framing(head_too_large(f"more than {MAX_HEAD_BYTES} bytes"))

    def pause_writing(self) -> None:
        self.paused_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.paused_since = None
        super().resume_writing()

    # From the parser

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.phase = _HEAD
        self.since = self.loop.time()
        self._head_bytes = self._body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        version = self.parser.get_http_version()
        headers = self.headers
        by_name = dict(headers)
        refusal = check_head(method, self.url, version, headers, by_name)
        if refusal is None and self._head_bytes + self._read_bytes > MAX_HEAD_BYTES:
            refusal = too_many_bytes(headers, self.url)
        if refusal is not None:
            self._stop(refusal)
        self.phase = _BODY
        before = self.cycle
        self._behind = None if before is None or before.response_complete else before
        if not self.take(method, version, by_name):
            if (refusal := check_cold(method)) is not None:
                self._stop(refusal)
            self._pass_on(b"expect" in by_name)
        # What the parser calls a header from here on is a trailer; uvicorn would take it for a header (M3).
        self.headers = []

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.end_of_request()
        super().on_message_complete()

    def end_of_request(self) -> None:
        """The request has come to its end."""
        if self.headers:
            self._stop(bad_request("Trailers are not accepted", hint="send everything in the head"))
        self.phase = _BUSY

    def take(self, method: bytes, version: str, headers: dict[bytes, bytes]) -> bool:  # noqa: ARG002 - for the hot path
        """Whether this request is handled here and not by the ASGI application."""
        return False

    def _pass_on(self, expects: bool) -> None:
        """Hands the request whose head is complete to uvicorn, which makes its scope late for that."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        extensions: dict[str, Any] = {CONNECTION: self}
        self.scope["extensions"] = extensions
        super().on_headers_complete()
        if self.plane.draining and self.cycle is not None:
            self.cycle.keep_alive = False
        if self.pipeline and len(self.pipeline) < PIPELINE:
            # uvicorn stops reading while a request waits; then nobody would notice that the client has gone.
            self.flow.resume_reading()

    # Answers

    def on_response_complete(self) -> None:
        """Called by uvicorn's cycles and by the hot path when an answer is complete."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.phase is _DISCARDING:
            due = self._due
            if self.pipeline:
                self.loop.call_soon(self._next)
            elif due is not None:
                self.refuse(due)
            else:
                self.close()
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            # Not from here: a long pipeline of refusals would nest as deep as it is long.
            self.loop.call_soon(self._next)
        elif self.phase is _BUSY:
            self.phase = _IDLE
            self.since = self.loop.time()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _next(self) -> None:
        if self.pipeline and not self.transport.is_closing():
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    def close_after_answer(self) -> None:
        """For the ASGI application: this connection shall end with the answer that is being given."""
        self.cycle.keep_alive = False

    def drain(self, idle_long_enough: bool) -> None:
        """The process goes away: nothing follows what is being answered; without it, the end when it was idle for a while."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.phase is _IDLE:
            if idle_long_enough:
                self.close()
        elif self.phase is _BUSY and not self.pipeline and self.cycle is not None:
            self.cycle.keep_alive = False

    def close(self) -> None:
        """Behind what is due of its answers."""
        self.outbox.flush()
        self.transport.close()

    def abort(self, *, reset: bool = False) -> None:
        """No proper end for the answer that is being given. `reset` where only that can be told from an end."""
        self.outbox.flush()
        raw = self.transport.get_extra_info("socket")
        if reset and raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _stop(self, refusal: Refusal) -> NoReturn:
        self._refusal = refusal
        raise _Refused

    def _refuse_framing(self, refusal: Refusal) -> None:
        """The bytes cannot be trusted any more: answer, after what was asked before, and close."""
        if self._may_answer():
            self.refuse(refusal)
            return
        received = self.cycle if self.phase is _BODY else None
        waits = self._waits_its_turn()
        if received is None or waits:
            # The answers due before it come first; on_response_complete goes on with them.
            self._due = refusal
            for waiting in [each for each in self.pipeline if each[0] is received]:
                self.pipeline.remove(waiting)
        self.phase = _DISCARDING
        self._answering = True

    def _may_answer(self) -> bool:
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return True
        # While a body comes, `cycle` is the request it belongs to; else it is an earlier one.
        return self.phase is _BODY and not self._waits_its_turn() and not cycle.response_started

    def refuse(self, refusal: Refusal) -> None:
        """An answer of our own on this connection, its last one."""
        self._due = None
        self._answering = False
        if self.cycle is not None and not self.cycle.response_complete:
            # Whoever works on the request that is refused here is told that its client is gone.
            self.cycle.disconnected = True
            self.cycle.response_complete = True
            if isinstance(self.cycle, RequestResponseCycle):
                self.cycle.waiting_for_100_continue = False  # its application may only begin to read now
            self.cycle.message_event.set()
        body = refusal.body()
        head = b"".join(b"%b: %b\r\n" % header for header in self.server_state.default_headers)
        self.outbox.flush()
        self.transport.write(
            b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status_line(refusal.status), head, len(body), body)
        )
        self.plane.meters.nobody.finished(refusal.status, 0.0)
        self._linger()

    def _linger(self) -> None:
        """The last answer is written: wait until the client has closed, at most a moment."""
        self.phase = _DISCARDING
        self.since = self.loop.time()
        self._body_bytes = 0
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _discard(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > LINGER_BYTES and not self._answering:
            self.transport.abort()

    # The clock

    def expire(self, now: float) -> None:
        """Ends a connection that is too slow. `now` is the loop's time."""
        if self.transport is None or self.transport.is_closing():
            return
        limits = self.limits
        waited = now - self.since
        if self.paused_since is not None and now - self.paused_since > limits.write_seconds:
            self.transport.abort()
        elif self.phase is _IDLE:
            if waited > limits.idle_seconds:
                self.transport.close()
        elif self.phase is _DISCARDING:
            if waited > LINGER_SECONDS and not self._answering:
                self.transport.abort()
        elif self.phase is _HEAD:
            if waited > limits.header_seconds:
                self._refuse_framing(too_slow("request head"))
        elif self.phase is _BODY and not self._waits_its_turn():
            allowed = limits.body_grace_seconds + self._body_bytes / limits.body_bytes_per_second
            if waited > allowed:
                self._refuse_framing(too_slow("request body"))

    def _waits_its_turn(self) -> bool:
        """The request being received stands behind one that is not answered yet."""
        return self._behind is not None and not self._behind.response_complete
