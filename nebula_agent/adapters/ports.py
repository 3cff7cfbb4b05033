"""Ports on this machine: whether they are free, and who holds them when they are not."""

import socket
from collections.abc import Iterable

from nebula_core.errors import NebulaError
from nebula_core.runtime.processes import port_holder


class NoPort(NebulaError):
    """No block of free ports is left in the range: stop who holds them, or widen `port_range`."""

    code = "no_port"


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections that linger from an earlier start are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def first_free(host: str, candidates: Iterable[range]) -> range:
    """The first block whose ports are all free. Raises NoPort naming a holder. Blocking: call it in a thread."""
    taken: list[int] = []
    for block in candidates:
        busy = next((port for port in block if not is_free(host, port)), None)
        if busy is None:
            return block
        taken.append(busy)
    if not taken:
        raise NoPort("every port of port_range belongs to a replica of this node", hint="Widen port_range")
    raise NoPort(f"no free block of ports in port_range: {held_by(taken[0])}", hint="Stop it, or move port_range")


def held_by(port: int) -> str:
    """`port 20000 is held by pid 4711 (nginx)`."""
    holder = port_holder(port)
    if holder is None:
        return f"port {port} cannot be listened on"
    who = f"pid {holder.pid}" if holder.pid is not None else "a process of another user"
    return f"port {port} is held by {who}" + (f" ({holder.program})" if holder.program else "")
