"""uvicorn's server as both kinds of process run it: an ordered stop ends with status 0, slow connections end in a sweep."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from nebula_proxy.traffic.connection import StrictProtocol


class OrderlyServer(uvicorn.Server):
    """SIGTERM and SIGINT call `handle_exit` on the loop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a drained process ends with status 0 instead of dying by the signal after all."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def sweep(self) -> None:
        """Ends those that are slower than their deadlines allow."""
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, StrictProtocol):
                connection.expire(now)
