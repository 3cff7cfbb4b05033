"""`run --role all`: workers that share a port and a control process, kept alive and ended together."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import httpx
import psutil
import pytest

from nebula_proxy import supervisor
from nebula_proxy.adapters.vitals import open_descriptors
from nebula_proxy.installing import install
from nebula_proxy.settings import ProxySettings
from tests.support.data_plane import until
from tests.support.ports import free_port
from tests.support.proxy_process import proxy_process


def children(pid: int) -> dict[str, list[psutil.Process]]:
    """The supervisor's children by role."""
    found: dict[str, list[psutil.Process]] = {"data": [], "control": []}
    for child in psutil.Process(pid).children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if "nebula_proxy.worker" in words:
            found[words[words.index("nebula_proxy.worker") + 1]].append(child)
    return found


async def answers(url: str) -> bool:
    try:
        async with httpx.AsyncClient() as client:
            return (await client.get(url)).status_code == 200
    except httpx.TransportError:
        return False


async def until_answers(url: str, log: Path) -> None:
    try:
        async with asyncio.timeout(60):
            while not await answers(url):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(log.read_text()) from None  # noqa: ASYNC240 - the test is over


@pytest.mark.flow
async def test_everybody_runs_is_kept_alive_and_ends(store_url: str, tmp_path: Path) -> None:
    install(tmp_path)
    control_port = free_port()
    settings = {
        "workers": 2,
        "control__port": control_port,
        "control__signing_key_file": tmp_path / "keys" / "signing.key",
        "sealing_key_file": tmp_path / "keys" / "sealing.key",
        "data_dir": tmp_path,
    }
    async with proxy_process(store_url, tmp_path, free_port(), "--role", "all", **settings) as proxy:
        await until_answers(f"{proxy.url}/readyz", proxy.log)
        pid = proxy.process.pid
        await until(lambda: len(children(pid)["data"]) == 2 and len(children(pid)["control"]) == 1)
        (victim, other), (control,) = children(pid)["data"], children(pid)["control"]
        os.kill(victim.pid, signal.SIGKILL)
        await until(lambda: len(children(pid)["data"]) == 2 and victim not in children(pid)["data"])
        assert other in children(pid)["data"]
        # Connections that came meanwhile waited in the kernel; none was refused.
        for _ in range(8):
            _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.close()
        everyone = [*children(pid)["data"], control]
        proxy.terminate()
        assert await asyncio.wait_for(proxy.process.wait(), 60) == 0
        assert [child for child in everyone if child.is_running()] == []


@pytest.mark.flow
async def test_a_taken_control_port_is_named(store_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with proxy_process(store_url, tmp_path, free_port(), "--role", "all", control__port=port) as proxy:
            assert await asyncio.wait_for(proxy.process.wait(), 60) == 1
        text = proxy.log.read_text()
        assert f"port {port} for the Control API is taken" in text
        assert f"pid {os.getpid()}" in text


@pytest.mark.fault
async def test_children_end_when_their_supervisor_is_killed(store_url: str, tmp_path: Path) -> None:
    async with proxy_process(store_url, tmp_path, free_port(), "--role", "data", workers=2) as proxy:
        await until_answers(f"{proxy.url}/healthz", proxy.log)
        await until(lambda: len(children(proxy.process.pid)["data"]) == 2)
        orphans = children(proxy.process.pid)["data"]
        proxy.process.kill()
        await proxy.process.wait()
        await until(lambda: not any(orphan.is_running() for orphan in orphans))


async def test_a_child_that_cannot_be_started_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no process left for us now may have one in a moment; the others serve meanwhile."""
    proxy = supervisor.Supervisor(ProxySettings(), None, control=False)
    tries = 0

    async def refused(*_words: object, **_options: object) -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            proxy._stop()
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    before = open_descriptors()
    async with asyncio.timeout(60):
        await proxy._keep(supervisor.ChildSpec("data-0", "data", ()))
    assert tries == 3
    assert open_descriptors() == before


async def test_told_to_end_just_before_it_takes_over_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal has reached the process, but not yet its loop: the program in its place would never hear of it."""
    proxy = supervisor.Supervisor(ProxySettings(), None, control=False)
    left: list[object] = []

    async def judged() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(proxy, "_judge", judged)
    monkeypatch.setattr(supervisor, "leave", lambda *words: left.append(words))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, proxy._stop)
    try:
        await proxy._reload()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, supervisor.SIGNALS)
    assert proxy._stopping.is_set()
    assert not left
