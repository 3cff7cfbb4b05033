"""The command line's grammar: where options may stand, how errors end it, what starts quickly."""

import subprocess
import sys

import pytest

from nebula_tui.cli.main import hoist


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["status", "-o", "json"], ["-o", "json", "status"]),
        (["scale", "chat", "3", "--url=http://x", "--yes"], ["--url=http://x", "scale", "chat", "3", "--yes"]),
        (["up", "--data", "/d", "--no-ui"], ["up", "--data", "/d", "--no-ui"]),
        (["chat", "-m", "hi", "--", "-o", "json"], ["chat", "-m", "hi", "--", "-o", "json"]),
        (["status", "--context"], ["--context", "status"]),
        ([], []),
    ],
)
def test_global_options_may_stand_anywhere(given, expected):
    assert hoist(given) == expected


def nebula(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "nebula_tui", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "NO_COLOR": "1", **env},
    )


def test_version_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['nebula', 'version']\n"
        "from nebula_tui.cli.entry import main\n"
        "main()\n"
        "heavy = {'textual', 'httpx', 'pydantic', 'typer', 'redis'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nebula ")


@pytest.mark.parametrize(
    ("arguments", "env", "code", "words"),
    [
        (("status",), {}, 2, "nebula up"),
        (("status", "--context", "nope"), {}, 3, "no context 'nope'"),
        (("status", "-o", "xml"), {}, 2, "xml"),
        (("status",), {"NEBULA_URL": "http://127.0.0.1:9"}, 5, "control process running"),
        (("status", "--key-file", "/nonexistent/key"), {"NEBULA_URL": "http://127.0.0.1:9"}, 4, "key file"),
        (("scale", "chat", "-1"), {}, 2, ""),
        (("logs", "r", "--grep", "("), {"NEBULA_URL": "http://127.0.0.1:9"}, 2, "regular expression"),
        (("apply", "-f", "/nonexistent.toml"), {}, 3, "check the path"),
        (("up",), {}, 2, "--no-ui"),
        (("up", "--no-ui", "--model", "chat"), {}, 2, "NAME=SOURCE"),
        (("up", "--no-ui", "--model", "chat=./nowhere"), {}, 3, "check the path"),
        (("up", "--no-ui", "--port", "9", "--control-port", "9"), {}, 2, "choose two ports"),
    ],
)
def test_an_error_names_its_next_step(arguments, env, code, words):
    done = nebula(*arguments, **env)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
