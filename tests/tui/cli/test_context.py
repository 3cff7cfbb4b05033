"""How a command finds its cluster and its key."""

import json

import pytest

from nebula_tui.cli.context import Choice, resolve
from nebula_tui.cli.errors import CommandError, Exit


def write_config(folder, text):
    path = folder / "config.toml"
    path.write_text(text)
    return {"NEBULA_CONFIG": str(path)}


def test_options_win_over_the_environment(tmp_path):
    key = tmp_path / "key"
    key.write_text("nbl_a_b\n")
    target = resolve(Choice(url="http://one/", key_file=key), {"NEBULA_URL": "http://two", "NEBULA_KEY": "other"})
    assert (target.url, target.key) == ("http://one", "nbl_a_b")


def test_a_context_gives_url_and_key_by_command(tmp_path):
    env = write_config(tmp_path, '[contexts.prod]\nurl = "https://c:8082"\nkey_command = "echo nbl_x_y"\n')
    target = resolve(Choice(context="prod"), env)
    assert (target.name, target.url, target.key) == ("prod", "https://c:8082", "nbl_x_y")


def test_the_current_context_is_used(tmp_path):
    env = write_config(tmp_path, 'current = "a"\n[contexts.a]\nurl = "http://a"\n[contexts.b]\nurl = "http://b"\n')
    assert resolve(Choice(), env).url == "http://a"
    assert resolve(Choice(context="b"), env).url == "http://b"


def test_the_folder_of_a_running_up_is_a_context(tmp_path):
    key = tmp_path / "admin.key"
    key.write_text("nbl_k_s")
    known = {"control_url": "http://127.0.0.1:1", "key_file": str(key), "openai_base_url": "http://127.0.0.1:2/v1"}
    (tmp_path / "context.json").write_text(json.dumps(known))
    target = resolve(Choice(data=tmp_path), {})
    assert (target.url, target.key, target.openai_base_url) == (
        "http://127.0.0.1:1",
        "nbl_k_s",
        "http://127.0.0.1:2/v1",
    )


@pytest.mark.parametrize(
    ("config", "choice", "code"),
    [
        ("not toml [", Choice(), Exit.USAGE),
        ('[contexts.a]\nurl = "http://a"', Choice(context="b"), Exit.NOT_FOUND),
        ("[contexts.a]\nkey_file = 'x'", Choice(context="a"), Exit.USAGE),
        ('[contexts.a]\nurl = "u"\nkey_command = "false"', Choice(context="a"), Exit.NOT_ALLOWED),
        ('[contexts.a]\nurl = "u"\nkey_file = "/nonexistent"', Choice(context="a"), Exit.NOT_ALLOWED),
    ],
)
def test_what_cannot_be_used_is_said_with_a_hint(tmp_path, config, choice, code):
    env = write_config(tmp_path, config)
    with pytest.raises(CommandError) as caught:
        resolve(choice, env)
    assert caught.value.code == code
    assert caught.value.hint
