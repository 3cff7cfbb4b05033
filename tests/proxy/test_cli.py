"""The command line of the proxy: keys made once, settings checked, errors that name the next step."""

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nebula_core.errors import SettingsError
from nebula_core.records.access import Role
from nebula_core.records.event import ChangeKind
from nebula_core.runtime.settings import load_settings
from nebula_core.security.credentials import check_token
from nebula_core.store.store import Store
from nebula_proxy.cli import app
from nebula_proxy.installing import install, store_keys
from nebula_proxy.settings import ProxySettings

FILES = {"signing.key", "verify.keys", "sealing.key", "sealing.pub", "admin.key", "api.key"}


def test_keys_are_made_once_and_private(tmp_path: Path) -> None:
    first, records = install(tmp_path)
    assert {item.path.name for item in first} == FILES
    assert all(item.made for item in first)
    assert {stat.S_IMODE(item.path.stat().st_mode) for item in first} == {0o600}
    contents = {item.path.name: item.path.read_bytes() for item in first}
    second, again = install(tmp_path)
    assert not any(item.made for item in second)
    assert {item.path.name: item.path.read_bytes() for item in second} == contents
    assert [(record.id, record.secret_sha256, record.role) for record in again] == [
        (record.id, record.secret_sha256, record.role) for record in records
    ]


async def test_an_empty_store_is_filled_and_a_revoked_key_stays_revoked(store: Store, tmp_path: Path) -> None:
    _, records = install(tmp_path)
    assert len(await store_keys(store.settings, records)) == 2
    assert await store_keys(store.settings, records) == []
    admin = next(record for record in records if record.role is Role.ADMIN)
    await store.put(ChangeKind.KEY, admin.id, admin.model_copy(update={"revoked": True, "generation": 2}))
    assert await store_keys(store.settings, records) == []
    token = (tmp_path / "keys" / "admin.key").read_text().strip()
    assert check_token(token, {admin.id: admin}, 0.0) is not None
    kept = type(admin).from_json(await store.get(ChangeKind.KEY, admin.id) or "")
    assert kept.revoked


def test_init_prints_a_table_without_secrets(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", "--data", str(tmp_path)])
    assert done.exit_code == 0
    assert all(name in done.output for name in FILES)
    assert "nbl_" not in done.output
    quiet = CliRunner().invoke(app, ["init", "--data", str(tmp_path), "--quiet"])
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_unknown_settings_name_the_nearest(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    config.write_text("wrokers = 2\n")
    done = CliRunner().invoke(app, ["run", "--config", str(config)])
    assert done.exit_code == 2
    assert "'workers'" in done.output
    with pytest.raises(SettingsError, match="NEBULA_PROXY_LIMITS__IDLE_SECONDS"):
        load_settings(ProxySettings, None, {"NEBULA_PROXY_LIMITS__IDLE_SECOND": "3"})


def test_check_says_what_is_missing(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    config.write_text(f'sealing_key_file = "{tmp_path}/none.key"\nport = 0\n[store]\nurl = "redis://127.0.0.1:1/0"\n')
    done = CliRunner().invoke(app, ["check", "--config", str(config)])
    assert done.exit_code == 1
    lines = {line[6:].split("  ")[0]: line for line in done.output.splitlines()}
    assert lines["sealing key"].startswith("FAIL")
    assert lines["store"].startswith("FAIL")
    assert lines["data port"].startswith("ok")


def test_version() -> None:
    assert CliRunner().invoke(app, ["version"]).output.startswith("nebula-proxy ")
