"""The control process as it is started: by its command, on a port, until it is told to end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from nebula_core.errors import SettingsError
from nebula_core.security.envelope import SigningKey
from nebula_proxy.control.app import run_control
from nebula_proxy.settings import ControlSettings, ProxySettings
from tests.support.ports import free_port
from tests.support.store import StoreServer, wait_until


def start(folder: Path, store_url: str, port: int) -> subprocess.Popen[bytes]:
    SigningKey.generate().save(folder / "keys" / "signing.key")
    config = folder / "proxy.toml"
    config.write_text(f'data_dir = "{folder}"\n[store]\nurl = "{store_url}"\n[control]\nport = {port}\n')
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "nebula_proxy", "run", "--role", "control", "--config", str(config)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith("NEBULA_")},
        )


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=1, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_it_serves_and_ends_in_order(tmp_path: Path, store_url: str) -> None:
    port = free_port()
    process = start(tmp_path, store_url, port)
    try:
        wait_until(lambda: ready(port) or process.poll() is not None, "it is ready", 90)
        assert process.poll() is None, (tmp_path / "log").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        log = (tmp_path / "log").read_text()
        assert "control_stopped" in log
        assert "drain_ended_early" not in log, "nothing was open"
    finally:
        process.kill()
        process.wait()


def test_a_store_that_must_not_be_used_names_the_line(tmp_path: Path, own_store: Callable[..., StoreServer]) -> None:
    server = own_store(extra=["--maxmemory-policy allkeys-lru"])
    process = start(tmp_path, server.url, free_port())
    assert process.wait(90) == 1
    assert "maxmemory-policy noeviction" in (tmp_path / "log").read_text()


def test_without_a_key_to_sign_with(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no key to sign"):
        run_control(ProxySettings(control=ControlSettings(port=0)))
    with pytest.raises(SettingsError, match="secret file"):
        run_control(ProxySettings(data_dir=tmp_path))


def test_a_taken_port_names_its_holder(tmp_path: Path, store_url: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(tmp_path, store_url, taken.getsockname()[1])
        assert process.wait(90) == 1
        assert f"pid {os.getpid()}" in (tmp_path / "log").read_text()
