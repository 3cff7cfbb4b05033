"""A TCP relay before a server: answers that break off after so many bytes, or that come no faster than a thin line lets."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class Relay:
    """`cut_after` bytes of an answer its connection is reset, both ways; None lets everything through.

    `bytes_per_second` is what each connection lets through of an answer; None: as fast as it comes.
    """

    def __init__(self, host: str, port: int, *, bytes_per_second: int | None = None) -> None:
        self._to = (host, port)
        self._bytes_per_second = bytes_per_second
        self.cut_after: int | None = None
        self.cuts = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        to_reader, to_writer = await asyncio.open_connection(*self._to)
        passed = 0

        async def pump() -> None:
            nonlocal passed
            with contextlib.suppress(ConnectionError, RuntimeError):
                while data := await reader.read(65536):
                    passed = 0  # another request
                    to_writer.write(data)
                    await to_writer.drain()

        up = asyncio.create_task(pump())
        try:
            while data := await to_reader.read(65536):
                if self.cut_after is not None:
                    left = self.cut_after - passed
                    passed += len(data)
                    if left < len(data):
                        writer.write(data[:left])
                        await writer.drain()
                        self.cuts += 1
                        break
                writer.write(data)
                await writer.drain()
                if self._bytes_per_second is not None:
                    await asyncio.sleep(len(data) / self._bytes_per_second)
        except (ConnectionError, asyncio.CancelledError, RuntimeError):
            pass  # either side is gone: so is the other, below
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
            writer.close()
            to_writer.transport.abort()
            self._tasks.discard(task)
