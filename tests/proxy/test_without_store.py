"""A worker and its store: silent at the start, gone for long, back empty, back stale. Inference goes on (GOALS R9)."""

import asyncio
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from nebula_core.errors import StoreUnavailable
from nebula_core.records.access import Role
from nebula_core.records.event import ChangeKind
from nebula_core.security.credentials import mint_key
from nebula_core.store import kept
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from tests.support.data_plane import MODEL
from tests.support.ports import free_port
from tests.support.proxy_process import ProxyProcess, proxy_process, report, write_cluster
from tests.support.scripted_engine import ScriptedEngine
from tests.support.store import StoreServer

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
Servers = Callable[..., StoreServer]


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as running:
        yield running


def client(proxy: ProxyProcess, token: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=proxy.url, headers={"authorization": f"Bearer {token}"}, timeout=60)


async def ready(caller: httpx.AsyncClient, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """`/readyz` once it says so."""
    last: object = None
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            last = (await caller.get("/readyz")).json()
        except httpx.TransportError as error:
            last = error
        else:
            if isinstance(last, dict) and holds(last):
                return last
        await asyncio.sleep(0.025)
    raise AssertionError(f"it never said so: {last!r}")


async def chats(caller: httpx.AsyncClient, count: int = 5) -> None:
    for _ in range(count):
        answer = await caller.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200, answer.text


async def filled(server: StoreServer, engine: ScriptedEngine) -> str:
    async with await connect(server.settings()) as store:
        return await write_cluster(store, [engine.port])


async def persistently(store: Store, work: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await work()
            except StoreUnavailable:
                continue
            return


async def kept_once(server: StoreServer, token: str, folder: Path) -> Path:
    """A worker has run beside the store and written down what it routes by; the file."""
    file = folder / kept.FILE_NAME
    async with (
        proxy_process(server.url, folder, free_port(), data_dir=folder) as proxy,
        client(proxy, token) as one,
    ):
        await ready(one, lambda body: body["store_reachable"] and file.exists())
    return file


@pytest.mark.fault
async def test_a_worker_that_starts_without_the_store_routes_by_what_it_kept(
    own_store: Servers, engine: ScriptedEngine, tmp_path: Path
) -> None:
    server = own_store()
    token = await filled(server, engine)
    file = tmp_path / kept.FILE_NAME
    async with (
        proxy_process(server.url, tmp_path, free_port(), data_dir=tmp_path) as proxy,
        client(proxy, token) as one,
    ):
        await ready(one, lambda body: body["store_reachable"] and file.exists())
        await chats(one)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token.split("_", 2)[2] not in file.read_text()
    server.kill()
    async with (
        proxy_process(server.url, tmp_path, free_port(), data_dir=tmp_path) as proxy,
        client(proxy, token) as one,
    ):
        body = await ready(one, lambda body: body["ready"])
        assert body["store_reachable"] is False
        assert body["snapshot_age_seconds"] > 0
        await chats(one)
        assert proxy.said("snapshot_loaded")
        metrics = (await one.get("/metrics")).text
        (age,) = (line for line in metrics.splitlines() if line.startswith("nebula_store_snapshot_age_seconds "))
        assert float(age.split()[1]) > 0
        async with client(proxy, "nbl_000000000000_" + "x" * 43) as stranger:
            assert (await stranger.post("/v1/chat/completions", json=CHAT)).status_code == 401
        # The store comes back and what it says counts, also against what was kept.
        server.start()
        await ready(one, lambda body: body["store_reachable"])
        async with await connect(server.settings()) as store:
            other, record = mint_key("other", Role.CLIENT, now=time.time(), created_by="test")
            await persistently(store, lambda: store.put(ChangeKind.KEY, record.id, record))
            await store.remove(ChangeKind.KEY, token.split("_")[1])
        async with client(proxy, other) as two:
            async with asyncio.timeout(60):
                while (await two.post("/v1/chat/completions", json=CHAT)).status_code != 200:
                    await asyncio.sleep(0.02)
                while (await one.post("/v1/chat/completions", json=CHAT)).status_code != 401:
                    await asyncio.sleep(0.02)


@pytest.mark.fault
async def test_a_snapshot_that_is_too_old_is_not_taken(
    own_store: Servers, engine: ScriptedEngine, tmp_path: Path
) -> None:
    server = own_store()
    token = await filled(server, engine)
    await kept_once(server, token, tmp_path)
    server.kill()
    options = {"data_dir": tmp_path, "snapshot_max_age_seconds": 0.001}
    async with proxy_process(server.url, tmp_path, free_port(), **options) as proxy, client(proxy, token) as one:
        body = await ready(one, lambda body: not body["store_reachable"])
        assert body["ready"] is False
        assert body["snapshot_age_seconds"] is None
        assert proxy.said("snapshot_too_old")


@pytest.mark.fault
async def test_gone_back_empty_and_back_stale_fail_no_request(
    own_store: Servers, engine: ScriptedEngine, tmp_path: Path
) -> None:
    """Requests go on all the time; the store dies, comes back without what it held, and with what it held before."""
    server = own_store()
    token = await filled(server, engine)
    statuses: list[int] = []
    over = asyncio.Event()

    async with (
        proxy_process(server.url, tmp_path, free_port(), data_dir=tmp_path) as proxy,
        client(proxy, token) as one,
    ):
        await ready(one, lambda body: body["store_reachable"] and body["ready"])

        async def go_on() -> None:
            async with client(proxy, token) as mine:
                while not over.is_set():
                    statuses.append((await mine.post("/v1/chat/completions", json=CHAT)).status_code)
                    await asyncio.sleep(0.005)

        traffic = asyncio.create_task(go_on())
        stale = tmp_path / "stale"
        server.stop()
        shutil.copytree(server.directory / "appendonlydir", stale)
        await ready(one, lambda body: not body["store_reachable"])
        server.start()
        await ready(one, lambda body: body["store_reachable"])
        # What is written now is not in the copy.
        async with await connect(server.settings()) as store:
            later, record = mint_key("later", Role.CLIENT, now=time.time(), created_by="test")
            await persistently(store, lambda: store.put(ChangeKind.KEY, record.id, record))
        async with client(proxy, later) as two:
            async with asyncio.timeout(60):
                while (await two.post("/v1/chat/completions", json=CHAT)).status_code != 200:
                    await asyncio.sleep(0.02)
        server.kill()
        server.lose_data()
        await ready(one, lambda body: not body["store_reachable"])
        server.start()
        await ready(one, lambda body: body["store_reachable"])
        await until_said(proxy, "store_emptied")
        server.kill()
        shutil.rmtree(server.directory / "appendonlydir")
        shutil.copytree(stale, server.directory / "appendonlydir")
        await ready(one, lambda body: not body["store_reachable"])
        server.start()
        await ready(one, lambda body: body["store_reachable"])
        async with await connect(server.settings()) as store:
            await persistently(store, lambda: store.publish_report(report([engine.port], 2)))
        seen = len(statuses)
        while len(statuses) < seen + 20:
            await asyncio.sleep(0.01)
        over.set()
        await traffic
    assert set(statuses) == {200}


@pytest.mark.fault
async def test_a_worker_that_starts_on_an_emptied_store_keeps_what_it_kept(
    own_store: Servers, engine: ScriptedEngine, tmp_path: Path
) -> None:
    server = own_store()
    token = await filled(server, engine)
    file = await kept_once(server, token, tmp_path)
    server.kill()
    server.lose_data()
    server.start()
    before = file.stat().st_mtime
    os.utime(file, (before - 120, before - 120))  # due to be written, were it not for the emptiness
    async with (
        proxy_process(server.url, tmp_path, free_port(), data_dir=tmp_path) as proxy,
        client(proxy, token) as one,
    ):
        await until_said(proxy, "store_emptied")
        await chats(one)
    assert file.stat().st_mtime == before - 120


async def until_said(proxy: ProxyProcess, action: str) -> None:
    async with asyncio.timeout(60):
        while not proxy.said(action):
            await asyncio.sleep(0.02)
