"""What a process hands to the one that takes its place, or that it starts: sockets, settings, children.

A *worker* is handed its settings ready (JSON in a memory file) and its listening sockets: it needs neither the library that
reads settings nor the one that makes command lines, which are 20 MB each worker would carry for ever.

A *supervisor* that is told to reload runs its program anew in its own place (`exec`): new code, new settings, the same pid, so
systemd and children notice nothing. Sockets stay open across it. What it must remember goes through one variable.
"""

import os
import socket
import sys
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from nebula_proxy.listening import adopt
from nebula_proxy.settings import ProxySettings

VARIABLE = "NEBULA_HANDOVER"


class Legacy(msgspec.Struct, frozen=True):
    """What a supervisor leaves to itself across `exec`."""

    #: Descriptors of listening sockets by what they are for.
    listeners: dict[str, list[int]]
    #: Children to be ended once their successors are ready, by name.
    children: dict[str, list[int]]
    #: Those of them that drain already: a second word would hurry them.
    told: list[int] = []


@dataclass(frozen=True)
class Inheritance:
    listeners: dict[str, list[socket.socket]]
    children: dict[str, list[int]]
    told: frozenset[int] = frozenset()


def leave(legacy: Legacy, command: Sequence[str]) -> NoReturn:
    """Runs `command` in the place of this process."""
    for descriptors in legacy.listeners.values():
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
    os.execve(command[0], list(command), {**os.environ, VARIABLE: msgspec.json.encode(legacy).decode()})  # noqa: S606


def inherit(env: MutableMapping[str, str]) -> Inheritance | None:
    """What the process before left; None for one that was started in the ordinary way."""
    raw = env.pop(VARIABLE, None)
    if raw is None:
        return None
    legacy = msgspec.json.decode(raw, type=Legacy)
    listeners = {name: [adopt(one) for one in descriptors] for name, descriptors in legacy.listeners.items()}
    return Inheritance(listeners, legacy.children, frozenset(legacy.told))


def sealed_settings(settings: ProxySettings) -> int:
    """A descriptor from which a child reads its settings: in memory, for they may name a password."""
    descriptor = os.memfd_create("nebula-settings", os.MFD_CLOEXEC)
    os.write(descriptor, settings.model_dump_json().encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def worker_command(
    role: str, settings: int, listeners: Iterable[socket.socket], *, ready: int | None = None, supervised: bool = False
) -> list[str]:
    """The command of a child; the descriptors must be passed to it."""
    words = [sys.executable, "-m", "nebula_proxy.worker", role, "--settings", str(settings)]
    for listener in listeners:
        words += ["--fd", str(listener.fileno())]
    if ready is not None:
        words += ["--ready", str(ready)]
    if supervised:
        words.append("--supervised")
    return words
