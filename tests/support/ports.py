"""Ports for processes that are told theirs before they start.

Between the choice and the moment a process listens there may be seconds. So these are below the range the kernel gives
out by itself, in a block that belongs to one worker of pytest-xdist, and each is given once before any is given again.
"""

import os
import socket

_FIRST, _LAST = 11_000, 19_999
_WORKERS = 8
_SIZE = (_LAST + 1 - _FIRST) // _WORKERS
_begin = _FIRST + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS * _SIZE
#: Another run of the suite on this machine begins elsewhere.
_next = os.getpid() * 37 % _SIZE


def free_port() -> int:
    """A port nobody listens on, nor was told of lately."""
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports."""
    global _next  # noqa: PLW0603 - what was given is known to the whole process
    for _ in range(_SIZE):
        if _next + count > _SIZE:
            _next = 0
        ports = range(_begin + _next, _begin + _next + count)
        if all(map(_is_free, ports)):
            _next += count
            return ports[0]
        _next += 1
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
