"""Slow clients (GOALS R17): four kinds at once, a thousand each, while an honest client goes on.

    python benchmarks/slow_clients.py [--each 1000] [--waves 3] [--kinds read] [--short]

Slow head (a byte now and then), slow body, slow reader (takes nothing of its stream), idle (keeps a connection and says
nothing). The worker's deadlines are shortened so that a wave takes half a minute. Prints how the honest client fared,
when the last of each kind was closed against its deadline, and what the worker's memory and descriptors did; memory that
grows from wave to wave is a leak.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.stage import Stage, chat, client, quantile, request, stage, until, until_answers
from nebula_core.records.deployment import Limits
from nebula_core.runtime.http import UpstreamError
from nebula_core.runtime.processes import free_port

HEADER_SECONDS = 5.0
BODY_GRACE_SECONDS = 5.0
WRITE_SECONDS = 8.0
IDLE_SECONDS = 6.0
#: Memory that stayed free for ten seconds has gone back by then.
SETTLE_SECONDS = 15.0
#: The sweep looks once a second.
SWEEP_SECONDS = 1.0
EVENT = b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (
    b"y" * 16_000
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
SHORT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
#: An engine gives up after so many bytes that nobody takes.
MOST_BYTES = 2 * 1024 * 1024


async def serve_engine(port: int) -> None:
    """The engine, in a process of its own: answers honest requests at once and pours into the others what they take."""
    server = await asyncio.start_server(_serve, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"POST"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                continue
            body = await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            writer.write(STREAM_HEAD)
            if b"pour" in body:
                poured = 0
                while poured < MOST_BYTES:
                    writer.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
                    await writer.drain()
                    poured += len(EVENT)
                    await asyncio.sleep(0.1)
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(SHORT), SHORT))
            await writer.drain()
    writer.close()


def kernel_mb() -> float:
    """What all TCP sockets of this machine hold."""
    words = Path("/proc/net/sockstat").read_text().split()
    return int(words[words.index("mem") + 1]) * 4096 / 1e6


class Slow(asyncio.Protocol):
    """One slow client: what it sends at first, and a byte now and then if it has any."""

    def __init__(self, first: bytes, drip: bytes, *, reads: bool) -> None:
        self._first = first
        self._drip = drip
        self._reads = reads
        self.at = time.monotonic()
        self.closed_at: float | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if not self._reads:
            transport.pause_reading()
        transport.write(self._first)

    def drip(self) -> None:
        if self._drip and self.closed_at is None and not self.transport.is_closing():
            self.transport.write(self._drip[:1])
            self._drip = self._drip[1:]

    def connection_lost(self, _error: Exception | None) -> None:
        self.closed_at = time.monotonic()


def kinds(made: Stage) -> dict[str, tuple[float, Any]]:
    """Deadline and maker of each kind."""
    whole = request(chat(words=2000), made.token, made.port)
    head = whole[: whole.index(b"\r\n\r\n") + 4]
    pour = request(
        json.dumps({"model": "m0", "stream": True, "messages": [], "user": "pour"}).encode(), made.token, made.port
    )
    return {
        "head": (HEADER_SECONDS, lambda: Slow(head[:20], head[20:-4], reads=True)),
        "body": (BODY_GRACE_SECONDS, lambda: Slow(whole[: len(head) + 10], whole[len(head) + 10 :], reads=True)),
        "read": (WRITE_SECONDS, lambda: Slow(pour, b"", reads=False)),
        "idle": (IDLE_SECONDS, lambda: Slow(b"", b"", reads=True)),
    }


async def honest(made: Stage, stop: asyncio.Event) -> tuple[int, list[float], list[str]]:
    """A client like any other, ten times a second on kept and on fresh connections."""
    lean = client()
    body = chat(tokens=5)
    headers = [(b"authorization", f"Bearer {made.token}".encode()), (b"content-type", b"application/json")]
    taken: list[float] = []
    failures: list[str] = []
    while not stop.is_set():
        began = time.monotonic()
        try:
            answer = await lean.fetch(
                "POST", *made.address, "/v1/chat/completions", headers=headers, body=body, timeout=10.0
            )
            if answer.status != 200 or not answer.body.endswith(b"[DONE]\n\n"):
                failures.append(f"{answer.status}: {answer.body[:200]!r}")
        except (UpstreamError, OSError, TimeoutError) as error:
            failures.append(repr(error))
        taken.append(time.monotonic() - began)
        if len(taken) % 5 == 0:
            lean.sweep(time.monotonic() + 3600)  # the next one opens its own connection
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.0, 0.1 - taken[-1]))
    await lean.aclose()
    return len(taken), taken, failures


async def _all_closed(group: list[Slow]) -> bool:
    return all(one.closed_at is not None for one in group)


async def measure(each: int, waves: int, wanted: list[str]) -> dict[str, Any]:
    port = free_port()
    engine = await asyncio.create_subprocess_exec(sys.executable, __file__, "--engine", str(port))
    await until_answers(port, "/")
    settings = {
        "limits__header_seconds": HEADER_SECONDS,
        "limits__body_grace_seconds": BODY_GRACE_SECONDS,
        "limits__write_seconds": WRITE_SECONDS,
        "limits__idle_seconds": IDLE_SECONDS,
        "request_log": "false",
        "drain_seconds": 0,
    }
    async with stage([port], limits=Limits(inflight=100_000), **settings) as made:
        stop = asyncio.Event()
        probe = asyncio.create_task(honest(made, stop))
        await asyncio.sleep(2.0)
        figures = [await wave(made, each, wanted) for _ in range(waves)]
        stop.set()
        asked, taken, failures = await probe
    engine.kill()
    await engine.wait()
    return {
        "benchmark": "slow_clients",
        "each": each,
        "honest_asked": asked,
        "honest_failed": len(failures),
        "honest_failures": failures[:3],
        "honest_p50_ms": round((quantile(taken, 0.5) or 0) * 1000, 2),
        "honest_p99_ms": round((quantile(taken, 0.99) or 0) * 1000, 2),
        "honest_max_ms": round(max(taken) * 1000, 2),
        "waves": figures,
    }


async def wave(made: Stage, each: int, wanted: list[str]) -> dict[str, Any]:
    """So many of each kind come, are slow, and are closed."""
    loop = asyncio.get_running_loop()
    makers = {kind: found for kind, found in kinds(made).items() if kind in wanted}
    descriptors, rss = made.descriptors(), made.rss_bytes()
    clients: dict[str, list[Slow]] = {}
    most = rss
    kernel = [kernel_mb(), 0.0]
    for number, (kind, (_, make)) in enumerate(makers.items()):
        clients[kind] = []
        for start in range(each):
            raw = socket.socket()
            raw.setblocking(False)
            if kind == "read":
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.bind((f"127.0.0.{number + 2}", 0))
            await loop.sock_connect(raw, made.address)
            _, one = await loop.create_connection(make, sock=raw)
            clients[kind].append(one)
            if start % 50 == 49:
                await asyncio.sleep(0.01)
    open_most = made.descriptors()
    last = time.monotonic()
    longest = max(HEADER_SECONDS, BODY_GRACE_SECONDS, WRITE_SECONDS, IDLE_SECONDS) + 3 * SWEEP_SECONDS
    while time.monotonic() < last + longest:
        await asyncio.sleep(0.5)
        most = max(most, made.rss_bytes())
        kernel[1] = max(kernel[1], kernel_mb())
        for group in clients.values():
            for one in group:
                one.drip()
    left = made.descriptors()
    figures: dict[str, Any] = {}
    for kind, (deadline, _) in makers.items():
        for one in clients[kind]:
            if one.closed_at is None and not one.transport.is_closing():
                one.transport.resume_reading()
        with contextlib.suppress(TimeoutError):  # what is in the kernel for them comes first
            await until(lambda kind=kind: _all_closed(clients[kind]), 10.0)
        ages = [one.closed_at - one.at for one in clients[kind] if one.closed_at is not None]
        figures[kind] = {"deadline_seconds": deadline, "closed": len(ages)}
        if kind != "read":  # whose end its client did not look for
            figures[kind]["last_seconds"] = round(max(ages, default=0.0), 2)
    for group in clients.values():
        for one in group:
            one.transport.abort()
    await asyncio.sleep(SETTLE_SECONDS)
    return {
        "kinds": figures,
        "kernel_mb": [round(value, 1) for value in kernel],
        "descriptors": [descriptors, open_most, left],
        "rss_mb": [round(value / 1e6, 1) for value in (rss, most, made.rss_bytes())],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--each", type=int, default=1000)
    parser.add_argument("--waves", type=int, default=1, help="so often, one after the other, in the same worker")
    parser.add_argument("--kinds", default="head,body,read,idle", help="which of them")
    parser.add_argument("--short", action="store_true", help="100 of each")
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        asyncio.run(serve_engine(args.engine))
        return
    figures = asyncio.run(measure(100 if args.short else args.each, args.waves, args.kinds.split(",")))
    print(
        f"{figures['honest_failed']} of {figures['honest_asked']} honest requests failed, p99 {figures['honest_p99_ms']} ms"
    )
    for number, one in enumerate(figures["waves"], 1):
        closed = ", ".join(f"{kind} {found['closed']}" for kind, found in one["kinds"].items())
        print(
            f"wave {number}: closed of {figures['each']} each: {closed}; descriptors {one['descriptors']};"
            f" memory before, most and after {one['rss_mb']} MB"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
