"""Reload and restart: not one connection refused, not one stream cut, whatever goes on meanwhile."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest

from nebula_core.store.store import Store
from tests.support.data_plane import MODEL, until
from tests.support.ports import free_port
from tests.support.proxy_process import ProxyProcess, proxy_process, write_cluster
from tests.support.scripted_engine import DONE, STREAM_HEAD, Conversation, ScriptedEngine, chunked, event

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}


class Streams:
    """Clients that come all the time, each on a connection of its own; how each ended."""

    def __init__(self, proxy: ProxyProcess, token: str) -> None:
        self.ends: list[str] = []
        self.open = 0
        self._url = f"{proxy.url}/v1/chat/completions"
        self._headers = {"authorization": f"Bearer {token}"}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        for _ in range(4):
            self._start(self._again())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

    async def _again(self) -> None:
        while not self._stop.is_set():
            await self.one()

    async def one(self) -> None:
        self.open += 1
        try:
            # A stream that is held open until two reloads are over is silent for as long as they take.
            async with httpx.AsyncClient(headers=self._headers, timeout=300) as client:
                response = await client.post(self._url, json=CHAT)
            whole = response.status_code == 200 and response.content.endswith(DONE)
            self.ends.append("whole" if whole else f"{response.status_code} {response.text[-200:]}")
        except httpx.HTTPError as error:
            self.ends.append(repr(error))
        finally:
            self.open -= 1


async def slow(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
    await asyncio.sleep(0.15)
    await conversation.send(chunked(event("two", finish="stop"), DONE))


@pytest.fixture
async def proxy(store: Store, store_url: str, tmp_path: Path) -> AsyncIterator[tuple[ProxyProcess, Streams]]:
    async with ScriptedEngine() as engine:
        token = await write_cluster(store, [engine.port])
        engine.script = slow
        options = {"workers": 2, "data_dir": tmp_path, "drain_seconds": 20, "request_log": False}
        async with proxy_process(store_url, tmp_path, free_port(), "--role", "data", **options) as running:
            await until(lambda: running.said("all_workers_ready"))
            try:
                yield running, Streams(running, token)
            finally:
                for child in (
                    psutil.Process(running.process.pid).children() if running.process.returncode is None else []
                ):
                    child.kill()


def workers(proxy: ProxyProcess) -> set[int]:
    return {child.pid for child in psutil.Process(proxy.process.pid).children()}


@pytest.mark.flow
async def test_a_reload_refuses_nobody_and_cuts_nothing(proxy: tuple[ProxyProcess, Streams], tmp_path: Path) -> None:
    running, streams = proxy
    before = workers(running)
    async with streams:
        await until(lambda: len(streams.ends) > 4)
        environment = {**os.environ, "NEBULA_PROXY_DATA_DIR": str(tmp_path)}
        told = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "nebula_proxy", "reload"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"asked {running.process.pid} to reload" in told.stdout
        await until(lambda: running.said("old_child_ended") == 2, 120)
        seen = len(streams.ends)
        await until(lambda: len(streams.ends) > seen + 4)
    assert set(streams.ends) == {"whole"}
    after = workers(running)
    assert len(after) == 2
    assert not before & after
    assert running.said("reloaded") == 1
    running.terminate()
    assert await asyncio.wait_for(running.process.wait(), 60) == 0
    assert not (tmp_path / "proxy.pid").exists()


@pytest.mark.flow
async def test_a_stream_outlives_two_reloads(store: Store, store_url: str, tmp_path: Path) -> None:
    """The second successor must not hurry those who drain already."""
    more = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
        await more.wait()
        await conversation.send(chunked(event("two", finish="stop"), DONE))

    async with ScriptedEngine() as engine:
        token = await write_cluster(store, [engine.port])
        engine.script = script
        async with proxy_process(store_url, tmp_path, free_port(), "--role", "data", workers=2) as running:
            await until(lambda: running.said("all_workers_ready"))
            streams = Streams(running, token)
            task = asyncio.create_task(streams.one())
            await until(lambda: engine.conversations)
            for turn in (1, 2):
                running.process.send_signal(signal.SIGHUP)
                await until(lambda turn=turn: running.said("reloaded") == turn, 120)
            # The idle ones of both generations have gone; the one with the stream has not.
            await until(lambda: running.said("old_child_ended") == 3, 120)
            more.set()
            await task
            assert streams.ends == ["whole"]
            running.terminate()
            assert await asyncio.wait_for(running.process.wait(), 60) == 0


@pytest.mark.fault
async def test_a_killed_worker_is_back_within_a_second_on_its_socket(proxy: tuple[ProxyProcess, Streams]) -> None:
    running, streams = proxy
    victim = min(workers(running))
    started = running.said("child_started")
    os.kill(victim, signal.SIGKILL)
    await until(lambda: running.said("child_started") == started + 1)
    # Those who come meanwhile wait in the kernel.
    await asyncio.gather(*(streams.one() for _ in range(12)))
    assert set(streams.ends) == {"whole"}


@pytest.mark.flow
async def test_wrong_settings_change_nothing(store_url: str, tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    config.write_text("workers = 2\n")
    async with proxy_process(store_url, tmp_path, free_port(), "--role", "data", "--config", str(config)) as running:
        await until(lambda: running.said("all_workers_ready"))
        before = workers(running)
        config.write_text("wrokers = 3\n")
        running.process.send_signal(signal.SIGHUP)
        await until(lambda: running.said("reload_refused"))
        (refusal,) = (line for line in running.lines() if line.get("action") == "reload_refused")
        assert "wrokers" in refusal["error"]
        assert "workers" in refusal["error"]  # the nearest name
        assert workers(running) == before
        # Corrected, it is taken: another worker, on the same port.
        config.write_text("workers = 3\n")
        running.process.send_signal(signal.SIGHUP)
        await until(lambda: running.said("old_child_ended") == 2, 120)
        assert len(workers(running)) == 3
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{running.url}/healthz")).status_code == 200
        running.terminate()
        assert await asyncio.wait_for(running.process.wait(), 60) == 0


@pytest.mark.flow
async def test_draining_answers_those_who_are_connected_and_a_second_word_ends_it(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    never = asyncio.Event()

    async def endless(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
        await never.wait()

    async with ScriptedEngine() as engine:
        token = await write_cluster(store, [engine.port])
        engine.script = endless
        async with proxy_process(store_url, tmp_path, free_port(), lame_duck_seconds=300) as running:
            await until(lambda: running.said("data_worker_started"))
            headers = {"authorization": f"Bearer {token}"}
            async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=60) as client:
                await _until_serves(client)
                async with client.stream("POST", "/v1/chat/completions", json=CHAT) as response:
                    pieces = response.aiter_bytes()
                    assert await anext(pieces) == event("one")
                    running.terminate()
                    await until(lambda: running.said("draining"))
                    # A load balancer that asks is told, on a connection of its own and on the one it had.
                    for _ in range(2):
                        ready = await client.get("/readyz")
                        assert (ready.status_code, ready.headers["connection"]) == (503, "close")
                        assert ready.json()["draining"] is True
                    running.terminate()
                    rest = b"".join([piece async for piece in pieces])
                    assert b"error" in rest
                    assert b"[DONE]" not in rest
            assert await asyncio.wait_for(running.process.wait(), 60) == 0


@pytest.mark.flow
async def test_systemd_may_hold_the_socket(store_url: str, tmp_path: Path) -> None:
    """As a .socket unit hands it over: descriptor 3, named, for this pid."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        script = (
            "import os, sys\n"
            "os.dup2(int(sys.argv[1]), 3)\n"
            "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_FDNAMES': 'data', 'LISTEN_PID': str(os.getpid())}\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'nebula_proxy', 'run', '--role', 'data'])\n"
        )
        env = {name: value for name, value in os.environ.items() if not name.startswith("NEBULA_")}
        env |= {"NEBULA_PROXY_STORE__URL": store_url, "NEBULA_PROXY_WORKERS": "2", "NEBULA_PROXY_PORT": "1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(held.fileno()), env=env, pass_fds=(held.fileno(),),
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                # It waits in the kernel until somebody accepts.
                assert (await client.get("/healthz")).status_code == 200
                process.send_signal(signal.SIGHUP)
                await asyncio.sleep(0)
                assert (await client.get("/healthz")).status_code == 200
        finally:
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 60) == 0


async def _until_serves(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.025)
