"""Which cluster a command speaks to, and with which key: options, then NEBULA_URL / NEBULA_KEY, then contexts.

Contexts live in `config.toml` (XDG). Without any, the cluster of `nebula up` on this machine is found by the
`context.json` in its data folder, so that `nebula status` works beside a running `nebula up`.
A key never stands on a command line: it comes from a file, from NEBULA_KEY or from the context's `key_command`.
"""

import json
import os
import shlex
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nebula_tui.cli.errors import CommandError, Exit

APP = "nebula"


@dataclass(frozen=True, slots=True)
class Target:
    """A Control API address with a credential; `openai_base_url` is asked of the API when None."""

    name: str
    url: str
    key: str | None
    openai_base_url: str | None = None
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What the command line said."""

    context: str | None = None
    url: str | None = None
    key_file: Path | None = None
    data: Path | None = None


def config_path(env: Mapping[str, str] = os.environ) -> Path:
    if given := env.get("NEBULA_CONFIG"):
        return Path(given)
    from platformdirs import user_config_path

    return user_config_path(APP) / "config.toml"


def default_data_dir() -> Path:
    """Where `nebula up` keeps its cluster unless told otherwise (XDG state folder)."""
    from platformdirs import user_state_path

    return user_state_path(APP) / "up"


def read_config(path: Path) -> dict[str, Any]:
    """The file as a dict, empty when there is none. Raises CommandError for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise CommandError(
            f"{path} is not valid TOML: {error}", code=Exit.USAGE, hint="correct or remove the file"
        ) from error


def resolve(choice: Choice, env: Mapping[str, str] = os.environ) -> Target:
    """Raises CommandError when nothing says where the cluster is."""
    key = _read_key(choice.key_file) if choice.key_file else env.get("NEBULA_KEY")
    if url := choice.url or env.get("NEBULA_URL"):
        return Target("env" if choice.url is None else "command line", url.rstrip("/"), key)
    if choice.data is not None:
        return _local(choice.data, key)
    config = read_config(config_path(env))
    name = choice.context or env.get("NEBULA_CONTEXT") or config.get("current")
    if name:
        return _from_config(name, config, key)
    try:
        return _local(default_data_dir(), key)
    except CommandError as error:
        raise CommandError(
            "no cluster chosen",
            code=Exit.USAGE,
            hint="start one with `nebula up`, or add one: `nebula context add NAME --url URL --key-file FILE`",
        ) from error


def _local(data: Path, key: str | None) -> Target:
    path = data / "context.json"
    try:
        known = json.loads(path.read_text())
    except FileNotFoundError:
        raise CommandError(
            f"no cluster was started in {data}", code=Exit.NOT_FOUND, hint=f"nebula up --data {data}"
        ) from None
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} cannot be read: {error}", hint="start `nebula up` again") from error
    return Target(
        "local", known["control_url"], key or _read_key(Path(known["key_file"])), known.get("openai_base_url")
    )


def _from_config(name: str, config: Mapping[str, Any], key: str | None) -> Target:
    contexts = config.get("contexts", {})
    if name not in contexts:
        known = ", ".join(sorted(contexts)) or "none"
        raise CommandError(f"no context {name!r}", code=Exit.NOT_FOUND, hint=f"known contexts: {known}")
    entry = contexts[name]
    if "url" not in entry:
        raise CommandError(f"context {name!r} has no url", code=Exit.USAGE, hint="nebula context add NAME --url URL")
    if key is None and (command := entry.get("key_command")):
        key = _key_from_command(command)
    if key is None and (file := entry.get("key_file")):
        key = _read_key(Path(file).expanduser())
    return Target(name, str(entry["url"]).rstrip("/"), key, entry.get("openai_base_url"), entry.get("ca_file"))


def _read_key(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise CommandError(
            f"the key file {path} cannot be read: {error.strerror}",
            code=Exit.NOT_ALLOWED,
            hint="check --key-file or the context",
        ) from error


def _key_from_command(command: str) -> str:
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=30, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CommandError(f"key_command failed: {error}", code=Exit.NOT_ALLOWED, hint="run it by hand") from error
    return done.stdout.strip()
