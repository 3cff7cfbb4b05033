"""An engine whose every byte a test decides: a TCP server that hands each request to a script."""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self


@dataclass
class Conversation:
    """One request, and the means to answer it in any way."""

    line: bytes
    headers: dict[bytes, bytes]
    body: bytes
    _writer: asyncio.StreamWriter
    #: Set when the proxy has closed the connection.
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    #: Whether the connection may serve another request afterwards.
    keep: bool = True

    @property
    def path(self) -> bytes:
        return self.line.split(b" ")[1]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        """EOF, in the middle of whatever was sent."""
        self.keep = False
        self._writer.close()

    def reset(self) -> None:
        self.keep = False
        if self._writer.is_closing():
            return
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Script = Callable[[Conversation], Awaitable[None]]


def chunked(*bodies: bytes, end: bool = True) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies) + (b"0\r\n\r\n" if end else b"")


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(text: str | None = None, *, finish: str | None = None, usage: tuple[int, int] | None = None) -> bytes:
    """A chat chunk as vLLM sends it."""
    payload: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    if usage is not None:
        payload["choices"] = []
        payload["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    else:
        payload["choices"] = [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}]
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def tokens(*texts: str) -> list[bytes]:
    """A finished stream: the texts, the last one with its reason, usage, `[DONE]`."""
    events = [event(text) for text in texts[:-1]]
    return [*events, event(texts[-1], finish="stop"), event(usage=(3, len(texts))), DONE]


def answer(body: Any, status: int = 200, **headers: str) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n{extra}\r\n".encode()
        + raw
    )


def completion(text: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


async def talk(conversation: Conversation) -> None:
    """The default: streams or answers "Hello there"."""
    if conversation.json.get("stream"):
        await conversation.send(STREAM_HEAD + chunked(*tokens("Hello", " there")))
    else:
        await conversation.send(answer(completion("Hello there")))


class ScriptedEngine:
    """`script` is called for each request; change it at any time."""

    def __init__(self, script: Script = talk) -> None:
        self.script = script
        self.conversations: list[Conversation] = []
        self.connections = 0
        #: 0: any.
        self.port = 0
        self._server: asyncio.Server | None = None
        #: Bound and not listening: it refuses.
        self._held: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        held, self._held = self._held, None
        where: dict[str, Any] = {"host": "127.0.0.1", "port": self.port} if held is None else {"sock": held}
        self._server = await asyncio.start_server(self._serve, **where)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.die()
        if self._held is not None:
            self._held.close()
            self._held = None

    async def stop_listening(self) -> None:
        """New connections are refused; those there are stay. Nobody else gets the port meanwhile."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._held = socket.socket()
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.bind(("127.0.0.1", self.port))

    async def die(self) -> None:
        """As by SIGKILL: the port refuses, every connection is closed by the kernel."""
        await self.stop_listening()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        first: bytes | None = b""
        try:
            while first is not None:
                first = await self._one(reader, writer, first)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, RuntimeError):
            pass  # uvloop says RuntimeError when its transport is gone
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> bytes | None:
        """Serves one request; returns the first byte of the next one if it was read already, None at the end."""
        head = first + await reader.readuntil(b"\r\n\r\n")
        line, *lines = head[:-4].split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (item.partition(b": ") for item in lines)}
        body = await reader.readexactly(int(headers.get(b"content-length", 0)))
        conversation = Conversation(line, headers, body, writer)
        self.conversations.append(conversation)
        ahead = asyncio.ensure_future(reader.read(1))
        ahead.add_done_callback(lambda task: None if task.cancelled() or _byte(task) else conversation.gone.set())
        try:
            await self.script(conversation)
        finally:
            if not ahead.done():
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)
        if not conversation.keep or (not ahead.cancelled() and not _byte(ahead)):
            return None
        return _byte(ahead)


def _byte(task: "asyncio.Task[bytes]") -> bytes:
    return b"" if task.cancelled() or task.exception() is not None else task.result()
