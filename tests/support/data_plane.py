"""A data plane in the test's own process, on a real socket, with endpoints and keys as the test says."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from nebula_core.records.access import ApiKey, KeyLimits, Role
from nebula_core.records.deployment import Limits as ReplicaLimits
from nebula_core.records.endpoint import NO_LIMITS_SAID, Endpoint, ModelView
from nebula_core.records.sample import EngineSample
from nebula_core.security.credentials import mint_key
from nebula_proxy.app import server
from nebula_proxy.endpoints.application import application
from nebula_proxy.serving import OrderlyServer
from nebula_proxy.traffic.plane import Limits, Plane, Routing
from nebula_proxy.traffic.recorder import Recorder
from nebula_proxy.traffic.request_log import RequestLog
from nebula_proxy.traffic.waiting_room import RoomLimits
from tests.support.plain_http import NO_TLS
from tests.support.scripted_engine import ScriptedEngine

MODEL = "m"
#: The figures of an endpoint stay fresh for as long as a test may take: an agent would send new ones each second.
AHEAD_SECONDS = 60.0


def endpoint(replica: str, port: int, **changes: Any) -> Endpoint:
    fields: dict[str, Any] = {
        "replica": replica,
        "deployment": MODEL,
        "model": MODEL,
        "node": "n1",
        "host": "127.0.0.1",
        "port": port,
        "engine": "simulated",
        "engine_epoch": "e1",
        "sealed_key": None,
        "limits": ReplicaLimits(),
        "resume": False,
        "strategy": None,
        "sample": EngineSample(requests_running=0, requests_waiting=0, kv_cache_usage=0.0),
        "sampled_at": time.monotonic() + AHEAD_SECONDS,
    }
    return Endpoint(**(fields | changes))


def model(
    *endpoints: Endpoint,
    name: str = MODEL,
    starting: int = 0,
    wanted: int | None = None,
    limits: ReplicaLimits = NO_LIMITS_SAID,
    adapters: tuple[str, ...] = (),
) -> ModelView:
    return ModelView(name, name, endpoints, starting, len(endpoints) if wanted is None else wanted, limits, adapters)


def keys(*records: ApiKey) -> dict[str, ApiKey]:
    return {record.id: record for record in records}


def key(role: Role = Role.CLIENT, **changes: Any) -> tuple[str, ApiKey]:
    """`changes` are those of `mint_key`, and the limits of a key by name."""
    limits = KeyLimits(**{name: changes.pop(name) for name in KeyLimits.model_fields if name in changes})
    return mint_key("test", role, now=time.time(), created_by="test", limits=limits, **changes)


class _TestServer(OrderlyServer):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # pytest keeps its own


@dataclass
class RunningPlane:
    plane: Plane
    server: OrderlyServer
    port: int
    token: str
    #: Those behind it, where a test wants to get at them.
    engines: tuple[ScriptedEngine, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def table(self, *models: ModelView) -> None:
        self.plane.table.update({view.model: view for view in models}, revision=1)

    def client(self, token: str | None = None, **options: Any) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {token or self.token}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, verify=NO_TLS, **options)

    def request(
        self,
        body: Any = None,
        *,
        path: str = "/v1/chat/completions",
        stream: bool = True,
        headers: Mapping[str, str] | None = None,
        version: str = "1.1",
    ) -> bytes:
        """The raw bytes of a request, by default a chat to be streamed."""
        if body is None:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {
            "host": "nebula",
            "authorization": f"Bearer {self.token}",
            "content-type": "application/json",
            "content-length": str(len(raw)),
        } | dict(headers or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"POST {path} HTTP/{version}\r\n{head}\r\n".encode() + raw

    async def exchange(self, *data: bytes, wait: float = 60.0) -> bytes:
        """Sends pieces, reads until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(wait):
                for piece in data:
                    writer.write(piece)
                    await writer.drain()
                return await reader.read(-1)
        finally:
            writer.close()


#: Nobody waits: what is full says so at once.
NO_ROOM = RoomLimits(places=0)


@contextlib.asynccontextmanager
async def running_plane(
    *models: ModelView,
    hot_path: bool = True,
    limits: Limits | None = None,
    require_auth: bool = True,
    extra_keys: Sequence[ApiKey] = (),
    log: RequestLog | None = None,
    recorder: Recorder | None = None,
    drain_seconds: float = 5.0,
    room: RoomLimits = NO_ROOM,
    routing: Routing | None = None,
    allowed_origins: Sequence[str] = (),
) -> AsyncIterator[RunningPlane]:
    """Serves until the block ends; then everything in flight must be gone.

    An engine in this very loop is connected to when the machine gets round to it: that takes no evidence against it.
    """
    plane = Plane(
        proxy="test",
        limits=(limits or Limits())._replace(connect_seconds=30.0),
        require_auth=require_auth,
        log=log,
        recorder=recorder,
        room=room,
        routing=routing,
        allowed_origins=allowed_origins,
    )
    token, record = key()
    plane.authenticator.update(keys(record, *extra_keys))
    listener = socket.create_server(("127.0.0.1", 0))
    running = server(application(plane), plane, hot_path=hot_path, drain_seconds=drain_seconds)
    running.__class__ = _TestServer
    plane.table.update({view.model: view for view in models}, revision=1)
    task = asyncio.create_task(running.serve(sockets=[listener]))
    try:
        await until(lambda: running.started)
        yield RunningPlane(plane, running, listener.getsockname()[1], token)
    finally:
        await plane.aclose()
        for connection in list(running.server_state.connections):
            connection.transport.abort()
        running.stop()
        await asyncio.wait_for(task, 60)


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for a change that nothing announces; `seconds` are against a hang, and no more."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not come to pass")
        await asyncio.sleep(0.005)
