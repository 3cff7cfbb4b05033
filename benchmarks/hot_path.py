"""What the hot path costs without a kernel: CPU of one request and of one streamed chunk, on transports that do nothing.

    python benchmarks/hot_path.py [--requests 20000] [--chunks 200000] [--profile]

Everything of a data plane is real but for the sockets: bytes are fed to the protocols by hand. For finding where time
goes and for comparing two versions; what counts for users is `proxy_overhead.py`.
"""

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import time
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from nebula_core.records.access import Role
from nebula_core.records.deployment import Limits as ReplicaLimits
from nebula_core.records.endpoint import Endpoint, ModelView
from nebula_core.records.sample import EngineSample
from nebula_core.runtime.http import UpstreamConnection
from nebula_core.runtime.outbox import Outbox
from nebula_core.security.credentials import mint_key
from nebula_proxy.endpoints.application import application
from nebula_proxy.traffic.hot_path import HotPathProtocol
from nebula_proxy.traffic.plane import Plane
from nebula_proxy.traffic.request_log import RequestLog

BODY = json.dumps({"model": "m0", "messages": [{"role": "user", "content": "x" * 200}], "max_tokens": 100}).encode()
PLAIN = json.dumps(
    {"id": "x", "object": "chat.completion", "choices": [{"message": {"content": "y" * 200}, "finish_reason": "stop"}],
     "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}}
).encode()  # fmt: skip
EVENT = b"data: " + json.dumps(
    {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m0",
     "choices": [{"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}]}
).encode() + b"\n\n"  # fmt: skip


class Nowhere:
    """A transport whose bytes go nowhere."""

    def __init__(self) -> None:
        self.writes = 0

    def write(self, _data: bytes) -> None:
        self.writes += 1

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, _name: str) -> Any:
        return None

    def set_write_buffer_limits(self, _high: int) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class Unscheduled(Outbox):
    """The outbox of a loop that never comes to its end of a turn: `Kept.answer` is that end."""

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        self._due.append((transport, data))


class Kept:
    """In place of the pool: one connection per engine, always idle, and the latest one used."""

    def __init__(self, plane: Plane) -> None:
        self.latest: UpstreamConnection | None = None
        self._connections = {}
        self.outbox = plane.client.outbox
        for port in (9001, 9002):
            connection = UpstreamConnection(plane.client, ("127.0.0.1", port))
            connection.connection_made(Nowhere())  # type: ignore[arg-type]
            self._connections[("127.0.0.1", port)] = connection

    def request(self, address: Any, data: bytes, sink: Any, *, fresh: bool = False) -> UpstreamConnection:
        if fresh:
            raise RuntimeError("nothing is ever stale here")
        connection = self.latest = self._connections[address]
        connection.send(data, sink)
        return connection

    def answer(self, data: bytes) -> None:
        if self.latest is None:
            raise RuntimeError("no request was sent")
        self.latest.data_received(data)
        self.outbox.flush()

    def keep(self, connection: UpstreamConnection) -> None:
        """Stays where it is."""


async def build(*, resume: bool = False) -> tuple[HotPathProtocol, Kept, bytes, Plane]:
    plane = Plane(proxy="bench", log=RequestLog(os.open(os.devnull, os.O_WRONLY)))
    plane.client.outbox = Unscheduled()
    token, record = mint_key("bench", Role.CLIENT, now=time.time(), created_by="bench")
    plane.authenticator.update({record.id: record})
    endpoints = tuple(
        Endpoint(
            replica=f"m0-r{number}", deployment="m0", model="m0", node="n", host="127.0.0.1", port=9001 + number,
            engine="vllm", engine_epoch="e", sealed_key=None, limits=ReplicaLimits(), resume=resume, strategy=None,
            sample=EngineSample(requests_waiting=0, kv_cache_usage=0.1), sampled_at=time.monotonic(),
        )
        for number in range(2)
    )  # fmt: skip
    plane.table.update({"m0": ModelView("m0", "m0", endpoints, 0, 2)})
    config = uvicorn.Config(application(plane), log_config=None)
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Sat, 21 Nov 2026 10:00:00 GMT")]
    bound = HotPathProtocol.bound_to(plane)
    protocol = bound(config=config, server_state=state, app_state={}, _loop=asyncio.get_running_loop())
    if not isinstance(protocol, HotPathProtocol):
        raise TypeError(type(protocol))
    protocol.connection_made(Nowhere())  # type: ignore[arg-type]
    kept = Kept(plane)
    plane.client.request = kept.request  # type: ignore[method-assign,assignment]
    plane.client.keep = kept.keep  # type: ignore[method-assign]
    wire = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8081\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    return protocol, kept, wire, plane


async def requests(count: int) -> float:
    protocol, kept, wire, plane = await build()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(PLAIN), PLAIN)
    began = time.process_time()
    for _ in range(count):
        protocol.data_received(wire)
        kept.answer(answer)
    spent = time.process_time() - began
    if plane.meters.models["m0"].statuses != {200: count}:
        raise RuntimeError(f"not all were answered: {plane.meters.models['m0'].statuses}")
    return spent / count * 1e6


async def chunks(count: int) -> float:
    protocol, kept, wire, plane = await build()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
    protocol.data_received(wire)
    kept.answer(head + chunk)
    began = time.process_time()
    for _ in range(count):
        kept.answer(chunk)
    spent = time.process_time() - began
    if sum(plane.meters.models["m0"].itl.counts) != count:
        raise RuntimeError("not all chunks passed")
    return spent / count * 1e6


async def noted_chunks(count: int) -> float:
    """The same for a stream that can be resumed: its token ids are noted and taken out."""
    protocol, kept, wire, plane = await build(resume=True)
    # As many bytes as before, so that the length in the head stays true.
    wire = wire.replace(b"x" * 15 + b'"}], "max_tokens"', b'"}], "stream":true, "max_tokens"')
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    tail = b'"finish_reason":null,"token_ids":[1234]}]}'
    stem = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m0","choices":[{"index":0,'
    opening = (
        stem
        + b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":[1]}\n\n'
    )
    event = stem + b'"delta":{"content":" token"},"logprobs":null,' + tail + b"\n\n"
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    protocol.data_received(wire)
    kept.answer(head + b"%x\r\n%b\r\n" % (len(opening + event), opening + event))
    began = time.process_time()
    for _ in range(count):
        kept.answer(chunk)
    spent = time.process_time() - began
    if sum(plane.meters.models["m0"].itl.counts) != count:
        raise RuntimeError("not all chunks passed")
    return spent / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--chunks", type=int, default=200_000)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if args.profile:
        profile = cProfile.Profile()
        profile.runcall(asyncio.run, requests(args.requests))
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        return
    figures = {
        "benchmark": "hot_path",
        "us_per_request": round(min(asyncio.run(requests(args.requests)) for _ in range(3)), 2),
        "us_per_chunk": round(min(asyncio.run(chunks(args.chunks)) for _ in range(3)), 3),
        "us_per_noted_chunk": round(min(asyncio.run(noted_chunks(args.chunks)) for _ in range(3)), 3),
    }
    print(
        f"request {figures['us_per_request']} us, chunk {figures['us_per_chunk']} us, "
        f"with token ids taken out {figures['us_per_noted_chunk']} us of user time, best of 3"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
