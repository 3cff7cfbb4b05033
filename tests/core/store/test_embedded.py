"""The store that `nebula up` brings along."""

import shutil
from pathlib import Path

import pytest

from nebula_core.errors import StoreUnfit
from nebula_core.runtime.processes import spawn, stop_group
from nebula_core.store import embedded
from nebula_core.store.connection import StoreSettings, connect
from nebula_core.store.embedded import bundled_store_program, find_store_program, store_command
from tests.support.ports import free_port
from tests.support.store import programs


async def test_the_command_starts_a_fit_store_on_a_port(tmp_path: Path, store_program: str) -> None:
    import asyncio

    from nebula_core.errors import StoreUnavailable

    port = free_port()
    # A directory with a blank and a quote: the configuration file has a syntax of its own.
    command = store_command(programs()[store_program], tmp_path / 'a "b" c', port=port, password="se cret")
    assert "se cret" not in " ".join(command)
    child = spawn(command, log_file=tmp_path / "log")
    secret = tmp_path / "password"
    secret.write_text("se cret")
    secret.chmod(0o600)
    try:
        settings = StoreSettings(url=f"redis://127.0.0.1:{port}/0", password_file=secret)
        async with await connect(settings) as store, asyncio.timeout(20):
            while True:
                try:
                    await store.check()
                    break
                except StoreUnavailable:
                    assert child.poll() is None, (tmp_path / "log").read_text()
                    await asyncio.sleep(0.01)
            assert await store.ensure_meta()
    finally:
        await stop_group(child.pid, child=child)
    assert child.poll() == 0
    assert (tmp_path / 'a "b" c' / "appendonlydir").is_dir()
    assert (tmp_path / 'a "b" c' / "store.conf").stat().st_mode & 0o777 == 0o600


def test_a_program_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_store_program() == bundled_store_program()
    program = tmp_path / "valkey-server"
    shutil.copy("/bin/true", program)
    assert find_store_program() == program


def test_without_any_program_the_refusal_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "files", lambda _: tmp_path)
    with pytest.raises(StoreUnfit, match=r"nebula\[up\]"):
        find_store_program()


def test_a_store_must_listen_somewhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a port or a unix socket"):
        store_command(Path("x"), tmp_path)
