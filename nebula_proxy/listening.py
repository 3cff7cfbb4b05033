"""Listening sockets: bound before anything else starts, so that a taken port is an error with a name, not a puzzle."""

import errno
import socket

from nebula_core.errors import NebulaError
from nebula_core.runtime.processes import port_holder

BACKLOG = 4096


class PortTaken(NebulaError):
    """Another process listens where this one should."""

    code = "port_taken"


def require_free(host: str, port: int, what: str) -> None:
    """Raises PortTaken when the port cannot be bound."""
    if port:
        _bind(host, port, what, reuse_port=False).close()


def listen(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """`count` sockets on one port, one per worker: the kernel spreads connections over them. Raises PortTaken.

    Whoever holds them keeps the port: a worker that is started anew inherits its socket with all that waits there.
    """
    # SO_REUSEPORT would let two proxies of one user share a port unseen: so first without it.
    require_free(host, port, "the data plane")
    sockets = [_bind(host, port, "the data plane", reuse_port=count > 1)]
    port = sockets[0].getsockname()[1]
    sockets += [_bind(host, port, "the data plane", reuse_port=True) for _ in range(count - 1)]
    for bound in sockets:
        bound.listen(BACKLOG)
        bound.setblocking(False)
    return sockets


def _bind(host: str, port: int, what: str, *, reuse_port: bool) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise NebulaError(f"{host!r} is no address of this machine: {error}", hint="correct `host`") from error
    bound = socket.socket(family, kind, protocol)
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
