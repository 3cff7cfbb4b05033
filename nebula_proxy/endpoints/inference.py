"""The inference calls as a plain ASGI application: the same exchange behind the most ordinary server side.

Chosen by `hot_path = false`. It is the oracle of the tests (same bytes in, same bytes out as the hot path) and the way
out should a new uvicorn not fit the hot path any more. It costs a queue, a task and several awaits per chunk.
"""

import asyncio
from collections import deque

from starlette.types import Message, Receive, Scope, Send

from nebula_proxy.decisions.calls import CALLS, Call
from nebula_proxy.decisions.refusal import method_not_allowed, too_large, unknown_path
from nebula_proxy.endpoints.answers import refusal_answer
from nebula_proxy.traffic.connection import CONNECTION, StrictProtocol
from nebula_proxy.traffic.exchange import Exchange
from nebula_proxy.traffic.plane import Plane

#: Bytes that may wait for the client before the engine is paused.
HIGH_WATER = 64 * 1024


class Inference:
    """An ASGI application for the paths of `decisions/calls`."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: bytes = scope["raw_path"]
        call = CALLS.get(path)
        if call is None:
            await refusal_answer(unknown_path(scope["path"]))(scope, receive, send)
        elif scope["method"] != "POST":
            await refusal_answer(method_not_allowed(scope["method"], scope["path"]), "POST")(scope, receive, send)
        else:
            await self._serve(call, scope, receive, send)

    async def _serve(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._plane.limits.max_body_bytes
        connection: StrictProtocol | None = scope.get("extensions", {}).get(CONNECTION)
        headers = dict(scope["headers"])
        parts: list[bytes] = []
        size = int(headers.get(b"content-length", 0))
        more = True
        while more and size <= limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            size = max(size, sum(map(len, parts)))
            more = message.get("more_body", False)
        if size > limit:
            if connection is not None:
                connection.refuse(too_large(limit))
            else:
                await refusal_answer(too_large(limit))(scope, receive, send)
            return
        client = scope.get("client")
        downstream = _AsgiDownstream(
            whole_only=scope.get("http_version") == "1.0", peer=client[0] if client is not None else None
        )
        exchange = Exchange(self._plane, downstream, call, headers, b"".join(parts))
        watcher = asyncio.create_task(_watch(receive, exchange, downstream), name="client watch")
        try:
            exchange.start()
            await downstream.run(send, exchange, connection)
        finally:
            watcher.cancel()
            exchange.client_gone()


async def _watch(receive: Receive, exchange: Exchange, downstream: "_AsgiDownstream") -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            exchange.client_gone()
            downstream.stop()
            return


class _AsgiDownstream:
    """Takes what the exchange hands over and sends it at the client's pace."""

    def __init__(self, *, whole_only: bool, peer: str | None = None) -> None:
        self.peer = peer
        #: HTTP/1.0 knows no chunks, and ASGI no other answer of unknown length: such an answer is collected first.
        self._whole_only = whole_only
        self._messages: deque[Message] = deque()
        self._news = asyncio.Event()
        self._waiting = 0
        self._over = False
        self._close = False
        self._cut = False
        self._start: Message | None = None
        self._collected: list[bytes] = []

    # Downstream

    def respond(self, status: int, head: bytes, body: bytes, *, close: bool = False) -> None:
        headers = [*_lines(head), (b"content-length", b"%d" % len(body))]
        if close:
            headers.append((b"connection", b"close"))
        self._put({"type": "http.response.start", "status": status, "headers": headers})
        self._put({"type": "http.response.body", "body": body, "more_body": False})
        self._stop(over=True)

    def begin(self, status: int, head: bytes, body: bytes) -> None:
        self._start = {"type": "http.response.start", "status": status, "headers": _lines(head)}
        if not self._whole_only:
            self._put(self._start)
        if body:
            self.write(body)

    def write(self, body: bytes) -> None:
        if self._whole_only:
            self._collected.append(body)
        else:
            self._put({"type": "http.response.body", "body": body, "more_body": True})

    def end(self, body: bytes = b"", *, close: bool = False) -> None:
        self._close = close
        if self._whole_only and self._start is not None:
            whole = b"".join([*self._collected, body])
            self._start["headers"].append((b"content-length", b"%d" % len(whole)))
            self._put(self._start)
            body = whole
        self._put({"type": "http.response.body", "body": body, "more_body": False})
        self._stop(over=True)

    def cut(self) -> None:
        self._cut = True
        self._stop(over=True)

    # The sender

    def stop(self) -> None:
        """The client is gone: nothing more needs sending."""
        self._messages.clear()
        self._stop(over=True)

    async def run(self, send: Send, exchange: Exchange, connection: StrictProtocol | None) -> None:
        paused = False
        while True:
            while self._messages:
                message = self._messages.popleft()
                last = message["type"] == "http.response.body" and not message["more_body"]
                if last and self._close and connection is not None:
                    connection.close_after_answer()
                await send(message)
                self._waiting -= len(message.get("body", b""))
                if not paused and self._waiting > HIGH_WATER:
                    paused = True
                    exchange.pause()
                elif paused and self._waiting <= HIGH_WATER // 4:
                    paused = False
                    exchange.resume()
            if self._over:
                break
            self._news.clear()
            await self._news.wait()
        if self._cut and connection is not None:
            connection.abort(reset=self._whole_only)

    def _put(self, message: Message) -> None:
        self._messages.append(message)
        self._waiting += len(message.get("body", b""))
        self._news.set()

    def _stop(self, *, over: bool) -> None:
        self._over = over
        self._news.set()


def _lines(head: bytes) -> list[tuple[bytes, bytes]]:
    """A block of header lines as pairs."""
    pairs = []
    for line in head.split(b"\r\n"):
        name, separator, value = line.partition(b": ")
        if separator:
            pairs.append((name, value))
    return pairs
