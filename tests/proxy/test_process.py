"""The worker as a process: on a real store, without one, and at its end."""

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from nebula_core.records.report import ProxyReport
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher
from tests.support.data_plane import MODEL
from tests.support.ports import free_port
from tests.support.proxy_process import ProxyProcess, proxy_process, write_cluster
from tests.support.scripted_engine import DONE, STREAM_HEAD, Conversation, ScriptedEngine, chunked, event, tokens
from tests.support.store import StoreServer

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as running:
        yield running


async def answers(proxy: ProxyProcess, token: str) -> None:
    """Waits until a chat comes back."""
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=60) as client:
        last: object = None
        deadline = time.monotonic() + 60.0
        while proxy.process.returncode is None and time.monotonic() < deadline:
            try:
                response = await client.post(f"{proxy.url}/v1/chat/completions", json=CHAT)
                if response.status_code == 200:
                    return
                last = response.text
            except httpx.TransportError as error:
                last = error
            await asyncio.sleep(0.025)
    raise AssertionError(f"it never answered: {last!r}\n{proxy.log.read_text()}")


@pytest.mark.flow
async def test_a_worker_serves_reports_and_drains(
    store: Store, store_url: str, engine: ScriptedEngine, tmp_path: Path
) -> None:
    token = await write_cluster(store, [engine.port])
    more = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
        await more.wait()
        await conversation.send(chunked(event("two", finish="stop"), DONE))

    async with proxy_process(store_url, tmp_path, free_port()) as proxy:
        await answers(proxy, token)
        engine.script = script
        headers = {"authorization": f"Bearer {token}"}
        async with (
            httpx.AsyncClient(base_url=proxy.url, headers=headers, timeout=60) as client,
            client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response,
        ):
            pieces = response.aiter_bytes()
            assert await anext(pieces) == event("one")
            reported = await _report(store, lambda report: report.inflight == {f"{MODEL}-r0": 1})
            assert reported.pid == proxy.process.pid
            proxy.terminate()
            await _report(store, lambda report: report.draining)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", proxy.port)
            more.set()  # the stream that was open goes on to its end
            assert b"".join([piece async for piece in pieces]) == event("two", finish="stop") + DONE
        assert await asyncio.wait_for(proxy.process.wait(), 60) == 0
        lines = [json.loads(line) for line in proxy.log.read_text().splitlines()]
        requests = [line for line in lines if line["action"] == "request" and line["status"] == 200]
        assert requests[-1]["stream"] is True
        assert "hi" not in {value for line in requests for value in line.values() if isinstance(value, str)}


@pytest.mark.fault
async def test_requests_go_on_without_the_store(
    own_store: Callable[..., StoreServer], engine: ScriptedEngine, tmp_path: Path
) -> None:
    server = own_store()
    async with await connect(server.settings()) as store:
        token = await write_cluster(store, [engine.port])
    async with proxy_process(server.url, tmp_path, free_port()) as proxy:
        await answers(proxy, token)
        server.kill()
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=proxy.url, headers=headers, timeout=60) as client:
            await _until_unreachable(client)
            for _ in range(5):
                response = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
                assert response.content == b"".join(tokens("Hello", " there"))


async def test_a_taken_port_is_named(store_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with proxy_process(store_url, tmp_path, port) as proxy:
            assert await asyncio.wait_for(proxy.process.wait(), 60) == 1
        text = proxy.log.read_text()
        assert f"port {port}" in text
        assert f"pid {os.getpid()}" in text


async def _report(store: Store, wanted: Callable[[ProxyReport], bool]) -> ProxyReport:
    """Waits until the one proxy there is says so in its report."""
    async with Watcher(store) as watcher:
        await watcher.wait_for(lambda seen: any(wanted(proxy.report) for proxy in seen.proxies.values()), 60)
        return next(proxy.report for proxy in watcher.snapshot.proxies.values())


async def _until_unreachable(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while (await client.get("/readyz")).json()["store_reachable"]:
            await asyncio.sleep(0.025)
