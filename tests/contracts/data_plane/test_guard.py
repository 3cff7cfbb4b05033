"""A worker that is short of something: new requests are turned away, what is open goes on, and it can be looked at."""

import asyncio
import json
import os
import re
import resource
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from nebula_core.runtime.memory import free_heap_bytes, give_back_memory
from nebula_core.store.store import Store
from nebula_proxy.adapters.vitals import (
    MemoryGroup,
    open_descriptors,
    resident_bytes,
)
from nebula_proxy.decisions.free_memory import LOOKS
from nebula_proxy.decisions.overload_guard import GuardLimits, Vitals
from nebula_proxy.traffic.guard import Guard
from tests.support.data_plane import RunningPlane, endpoint, model, running_plane, until
from tests.support.ports import free_port
from tests.support.proxy_process import proxy_process, write_cluster
from tests.support.scripted_engine import DONE, STREAM_HEAD, Conversation, ScriptedEngine, chunked, event

LIMITS = GuardLimits(descriptors=1000, memory_bytes=1000, connections=3, connections_per_client=2)


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as running:
        yield running


@pytest.fixture(params=[True, False], ids=["hot", "asgi"])
async def running(request: pytest.FixtureRequest, engine: ScriptedEngine) -> AsyncIterator[RunningPlane]:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=request.param) as plane:
        yield plane


async def test_new_requests_are_turned_away_and_open_ones_go_on(running: RunningPlane, engine: ScriptedEngine) -> None:
    more = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
        await more.wait()
        await conversation.send(chunked(event("two", finish="stop"), DONE))

    engine.script = script
    guard = running.plane.guard
    guard.limits = LIMITS._replace(connections_per_client=None)
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with running.client() as client:
        async with client.stream("POST", "/v1/chat/completions", json=chat) as open_one:
            pieces = open_one.aiter_bytes()
            assert await anext(pieces) == event("one")
            guard.judge(Vitals(descriptors=850))
            refused = await client.post("/v1/chat/completions", json=chat)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "proxy_overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.get("/healthz")).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert 'nebula_proxy_shedding{cause="descriptors"} 1.0' in metrics
            assert "nebula_proxy_open_descriptors 850.0" in metrics
            more.set()
            assert b"".join([piece async for piece in pieces]).endswith(DONE)
        guard.judge(Vitals(descriptors=100))
        assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200


async def test_connections_beyond_the_bounds_are_closed_at_once(running: RunningPlane) -> None:
    guard = running.plane.guard
    guard.limits = LIMITS

    kept: list[asyncio.StreamWriter] = []

    async def connect() -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        kept.append(writer)
        return reader

    async def answered() -> bytes:
        async with asyncio.timeout(30):
            return await (await connect()).read(-1)

    for count in (1, 2):
        await connect()
        await until(lambda count=count: guard._connections == running.server.connections == count)  # type: ignore[misc]
    assert guard.closed == {}
    refusal = await answered()
    assert refusal.startswith(b"HTTP/1.1 503 ")
    assert json.loads(refusal.partition(b"\r\n\r\n")[2])["error"]["code"] == "proxy_overloaded"
    assert guard.closed == {"connections_per_client": 1}
    kept[0].close()
    await until(lambda: guard._connections == 1)
    await connect()
    await until(lambda: guard._connections == 2)
    guard.judge(Vitals(memory_bytes=990))
    assert (await answered()).startswith(b"HTTP/1.1 503 ")
    assert guard.closed["memory"] == 1
    for writer in kept:
        writer.close()
    await until(lambda: guard._connections == 0 and not guard._clients)


async def test_idle_connections_are_given_up_when_short(running: RunningPlane) -> None:
    running.plane.guard.limits = LIMITS
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    await until(lambda: running.server.connections == 1)
    (connection,) = running.server.server_state.connections
    connection.since -= 5.0
    running.server.sweep()
    assert running.server.connections == 1
    running.plane.guard.judge(Vitals(descriptors=850))
    running.server.sweep()
    assert await reader.read(-1) == b""
    writer.close()


@pytest.mark.skipif(
    free_heap_bytes() is None, reason="the C library does not say what is free: not glibc 2.33 or later"
)
def test_what_a_burst_left_free_goes_back() -> None:
    megabytes = 1024 * 1024
    guard = Guard(GuardLimits())
    give_back_memory()
    guard.look(0.0, 0, 1.0)
    small = resident_bytes()
    burst = [bytes(4000) for _ in range(25_000)]
    pin = burst.pop()  # at the top of the heap: nothing below it goes back by itself
    assert resident_bytes() - small > 64 * megabytes
    guard.look(1.0, 0, 1.0)
    burst.clear()
    held = []
    for second in range(2, 2 + LOOKS):
        held.append(resident_bytes() - small)
        guard.look(float(second), 0, 1.0)
    # In a process with a large heap the look at the burst itself may have found enough free already.
    assert min(held[: LOOKS - 1]) > 64 * megabytes
    assert resident_bytes() - small < 32 * megabytes
    assert len(pin) == 4000


def test_the_kernel_is_asked() -> None:
    before = open_descriptors()
    descriptor = os.open(os.devnull, os.O_RDONLY)
    assert open_descriptors() == before + 1
    os.close(descriptor)
    assert resident_bytes() > 10 * 1024 * 1024
    guard = Guard(GuardLimits(descriptors=10_000))
    guard.look(100.0, 0, 1.0)
    assert guard.vitals.loop_lag_seconds is None  # one look says nothing of a period
    guard.look(101.5, 0, 1.0)
    assert guard.vitals.loop_lag_seconds == 0.5
    # With many connections they are not counted one by one.
    guard.look(102.5, 5000, 1.0)
    assert guard.vitals.descriptors is not None
    assert guard.vitals.descriptors >= 5000


def test_a_control_group_is_read(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300000\n")
    group = MemoryGroup(tmp_path)
    assert (group.limit_bytes, group.used_bytes()) == (1_000_000, 600_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert MemoryGroup(tmp_path).limit_bytes is None
    assert MemoryGroup(tmp_path / "none").used_bytes() is None


@pytest.mark.fault
async def test_a_worker_short_of_descriptors_answers_those_who_look_after_it(
    store: Store, store_url: str, engine: ScriptedEngine, tmp_path: Path
) -> None:
    """Fault row 42: 160 open files at most, and 600 clients that only connect."""
    token = await write_cluster(store, [engine.port])
    async with proxy_process(store_url, tmp_path, free_port()) as proxy:
        headers = {"authorization": f"Bearer {token}"}
        chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        async with httpx.AsyncClient(base_url=proxy.url, headers=headers, timeout=30) as client:
            assert await eventually(client, "GET", "/readyz") == 200
            resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE, (160, 160))
            await eventually(client, "GET", "/metrics", lambda text: counted(text) > 0)
            already = counted((await client.get("/metrics")).text)
            few = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(30)]
            # The look that finds them takes the new limit.
            assert await eventually(client, "GET", "/metrics", lambda text: counted(text) >= already + 25) == 200
            for _, writer in few:
                writer.close()
            before = cpu_seconds(proxy.process.pid)
            clients = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(600)]
            # On the connection it has, and on a new one once those that are idle have been closed.
            assert await eventually(client, "GET", "/healthz") == 200
            async with httpx.AsyncClient(base_url=proxy.url) as other:
                assert await eventually(other, "GET", "/healthz") == 200
            assert cpu_seconds(proxy.process.pid) - before < 2.0  # it does not spin
            for _, writer in clients:
                writer.close()
            assert await eventually(client, "POST", "/v1/chat/completions", json=chat) == 200


def counted(metrics: str) -> float:
    """Descriptors at the worker's last look."""
    found = re.search(r"^nebula_proxy_open_descriptors (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def cpu_seconds(pid: int) -> float:
    return float(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def eventually(
    client: httpx.AsyncClient, method: str, path: str, holds: Callable[[str], bool] = lambda _: True, **options: Any
) -> int:
    status = 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            response = await client.request(method, path, **options)
        except httpx.TransportError:
            response = None
        if response is not None:
            status = response.status_code
            if status == 200 and holds(response.text):
                return status
        await asyncio.sleep(0.025)
    return status
