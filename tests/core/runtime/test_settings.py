"""Settings: the file, then the environment; an unknown name is an error that names its neighbour."""

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import BaseModel, ConfigDict, Field

from nebula_core.errors import SettingsError
from nebula_core.runtime.settings import NebulaSettings, load_settings
from nebula_core.store.connection import StoreSettings


class Engine(BaseModel):
    model_config = ConfigDict(extra="forbid")

    program: Path | None = None
    args: tuple[str, ...] = ()


class Settings(NebulaSettings):
    program_prefix: ClassVar[str] = "NEBULA_AGENT_"

    node: str
    port_range: tuple[int, int] = (20000, 20999)
    data_dir: Path = Path("/var/lib/nebula")
    gpus: str = "auto"
    labels: dict[str, str] = Field(default_factory=dict)
    store: StoreSettings = StoreSettings()
    engine: Engine | None = None
    debug: bool = False


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


def test_file_then_environment(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'node = "n1"\nport_range = [1, 2]\n[labels]\nzone = "a"\n[store]\nurl = "redis://a:1"\nusername = "agent"\n',
    )
    found = load_settings(Settings, path, {"NEBULA_AGENT_STORE__URL": "redis://b:2", "NEBULA_AGENT_DEBUG": "true"})
    assert found.node == "n1"
    assert found.port_range == (1, 2)
    assert found.labels == {"zone": "a"}
    assert found.store.url == "redis://b:2"
    assert found.store.username == "agent"
    assert found.debug is True


def test_everything_also_from_the_environment() -> None:
    found = load_settings(
        Settings,
        None,
        {
            "NEBULA_AGENT_NODE": "n1",
            "NEBULA_AGENT_PORT_RANGE": "[5, 6]",
            "NEBULA_AGENT_LABELS": '{"zone":"b"}',
            "NEBULA_AGENT_ENGINE__PROGRAM": "/opt/vllm",
            "NEBULA_AGENT_STORE__SOCKET_TIMEOUT_SECONDS": "0.5",
            "NEBULA_URL": "of another program",
            "NEBULA_PROXY_PORT": "of another program",
            "PATH": "/bin",
        },
    )
    assert found.port_range == (5, 6)
    assert found.labels == {"zone": "b"}
    assert found.engine == Engine(program=Path("/opt/vllm"))
    assert found.store.socket_timeout_seconds == 0.5


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEBULA_AGENT_NODE", "from-env")
    assert load_settings(Settings, None).node == "from-env"
    assert load_settings(Settings, None, {"NEBULA_AGENT_NODE": "given"}).node == "given"
    # Built directly, it reads nothing.
    assert Settings(node="direct").node == "direct"


@pytest.mark.parametrize(
    ("text", "named", "neighbour"),
    [
        ('node = "n"\nport_rnage = [1, 2]\n', "port_rnage", "port_range"),
        ('node = "n"\n[store]\nulr = "x"\n', "store.ulr", "store.url"),
        ('node = "n"\n[stroe]\nurl = "x"\n', "stroe", "store"),
        ('node = "n"\nurl = "redis://x"\n', "url", "store.url"),
        ('node = "n"\n[engine]\nprogam = "x"\n', "engine.progam", "engine.program"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, text: str, named: str, neighbour: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Settings, write(tmp_path, text), {})
    assert repr(named) in caught.value.message
    assert repr(neighbour) in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "neighbour"),
    [
        ("NEBULA_AGENT_NOED", "NEBULA_AGENT_NODE"),
        ("NEBULA_AGENT_STORE__ULR", "NEBULA_AGENT_STORE__URL"),
        ("NEBULA_AGENT_STORE_URL", "NEBULA_AGENT_STORE__URL"),
    ],
)
def test_an_unknown_variable_names_the_nearest(name: str, neighbour: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Settings, None, {"NEBULA_AGENT_NODE": "n", name: "x"})
    assert name in caught.value.message
    assert neighbour in (caught.value.hint or "")


def test_impossible_values_say_where(tmp_path: Path) -> None:
    path = write(tmp_path, 'node = "n"\nport_range = [1, "x"]\n[store]\nsocket_timeout_seconds = 0\n')
    with pytest.raises(SettingsError) as caught:
        load_settings(Settings, path, {})
    assert "port_range.1" in caught.value.message
    assert "store.socket_timeout_seconds" in caught.value.message
    assert str(path) in (caught.value.hint or "")
    with pytest.raises(SettingsError, match="node: Field required"):
        load_settings(Settings, None, {})
    with pytest.raises(SettingsError):
        load_settings(Settings, None, {"NEBULA_AGENT_NODE": "n", "NEBULA_AGENT_LABELS": "{not json"})


def test_a_secret_in_a_wrong_value_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Settings, None, {"NEBULA_AGENT_NODE": "n", "NEBULA_AGENT_STORE__MAX_CONNECTIONS": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings(Settings, write(tmp_path, "node = "), {})
    with pytest.raises(SettingsError, match="--config"):
        load_settings(Settings, tmp_path / "none.toml", {})


def test_keys_of_open_tables_are_the_operators_own(tmp_path: Path) -> None:
    found = load_settings(
        Settings, write(tmp_path, 'node = "n"\n[labels]\nanything = "x"\n'), {"NEBULA_AGENT_LABELS__ZONE": "b"}
    )
    assert found.labels == {"anything": "x", "zone": "b"}
