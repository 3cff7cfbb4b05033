"""Listening sockets: bound before anything else starts, so that a taken port is an error with a name, not a puzzle.

Whoever holds a listening socket keeps the port: connections wait in the kernel while a process is started anew, and
none is refused. The supervisor holds them over all restarts of its children and over its own (`handover`); systemd holds
them over everything (`LISTEN_FDS`, a `.socket` unit).
"""

import errno
import os
import socket
from collections.abc import MutableMapping, Sequence

from nebula_core.errors import NebulaError, SettingsError
from nebula_core.runtime.processes import port_holder

BACKLOG = 4096
#: What a socket is for, in messages.
DATA = "the data plane"
CONTROL = "the Control API"
#: Names of sockets in a unit (`FileDescriptorName=`).
_NAMES = {"data": DATA, "control": CONTROL}
_FIRST_FD = 3
#: Bytes that may wait unsent in the kernel for one client. Left alone, the kernel takes up to 4 MiB for a client that
#: reads nothing, and it takes that long until the engine is held back.
UNSENT_BYTES = 64 * 1024


class PortTaken(NebulaError):
    """Another process listens where this one should."""

    code = "port_taken"


def require_free(host: str, port: int, what: str) -> None:
    """Raises PortTaken when the port cannot be bound."""
    if port:
        _bind(host, port, what, reuse_port=False).close()


def listen(host: str, port: int, count: int = 1, *, what: str = DATA) -> list[socket.socket]:
    """`count` sockets on one port, one per worker: the kernel spreads connections over them. Raises PortTaken."""
    # SO_REUSEPORT would let two proxies of one user share a port unseen: so first without it.
    require_free(host, port, what)
    return more(host, port, count, what=what)


def more(host: str, port: int, count: int, *, what: str = DATA) -> list[socket.socket]:
    """Sockets beside others of ours on the same port."""
    sockets: list[socket.socket] = []
    for _ in range(count):
        bound = _bind(host, port, what, reuse_port=True)
        port = bound.getsockname()[1]
        bound.listen(BACKLOG)
        bound.setblocking(False)
        sockets.append(bound)
    return sockets


def adopt(descriptor: int) -> socket.socket:
    """A listening socket that was handed over; closed again in programs this process starts."""
    adopted = socket.socket(fileno=descriptor)
    adopted.set_inheritable(False)
    adopted.setblocking(False)
    _bound_memory(adopted)
    return adopted


def activated(env: MutableMapping[str, str]) -> dict[str, list[socket.socket]]:
    """Sockets that systemd hands over, by what they are for; the variables are taken out, they are meant for us alone.

    Raises SettingsError for one whose name is not `data` or `control`.
    """
    count = env.pop("LISTEN_FDS", "0")
    names = env.pop("LISTEN_FDNAMES", "").split(":")
    meant = env.pop("LISTEN_PID", None) == str(os.getpid())
    found: dict[str, list[socket.socket]] = {}
    if not meant or not count.isdecimal():
        return found
    for index in range(int(count)):
        name = names[index] if index < len(names) else ""
        if name not in _NAMES:
            raise SettingsError(
                f"systemd hands over a socket named {name!r}",
                hint="write FileDescriptorName=data or FileDescriptorName=control in its .socket unit",
            )
        found.setdefault(_NAMES[name], []).append(adopt(_FIRST_FD + index))
    return found


def is_at(listener: socket.socket, host: str, port: int) -> bool:
    """Whether this socket listens where the settings say; port 0 is any."""
    at = listener.getsockname()
    try:
        wanted = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4]
    except OSError:
        return False
    return at[0] == wanted[0] and port in {0, at[1]}


def shares(listeners: Sequence[socket.socket], workers: int) -> list[list[socket.socket]]:
    """Which of the sockets each worker accepts from: none is without a worker, no worker is without one."""
    if len(listeners) >= workers:
        return [list(listeners[number::workers]) for number in range(workers)]
    return [[listeners[number % len(listeners)]] for number in range(workers)]


def _bound_memory(listener: socket.socket) -> None:
    """Accepted connections inherit it."""
    if listener.family != socket.AF_UNIX and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def _bind(host: str, port: int, what: str, *, reuse_port: bool) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise NebulaError(f"{host!r} is no address of this machine: {error}", hint="correct `host`") from error
    bound = socket.socket(family, kind, protocol)
    _bound_memory(bound)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _explained(error, host, port, what) from error
    return bound


def _explained(error: OSError, host: str, port: int, what: str) -> NebulaError:
    if error.errno != errno.EADDRINUSE:
        return NebulaError(f"cannot listen on {host}:{port} for {what}: {error.strerror}", hint="correct host or port")
    holder = port_holder(port)
    who = "another process" if holder is None else f"{holder.program or 'a program'} (pid {holder.pid or 'unknown'})"
    return PortTaken(f"port {port} for {what} is taken by {who}", hint="stop it, or choose another port")
