"""Writes of one turn of the event loop, made together at its end.

**Theory.** A busy proxy handles many sockets per turn of its loop, and writes to most of them. A write in between runs
some ten thousand instructions of the kernel, which push the interpreter out of the caches, and wakes whoever reads at
the other end when it is on this machine, asleep again since the last one. Made one after another, the writes of a turn
find the kernel's code warm and the reader awake: measured with 64 clients, a request costs a sixth less CPU. A turn
with one write pays a callback for it, and nothing waits longer than the turn lasts or `MOST` writes take.

A large piece does not wait. uvloop may read a socket thirty times in one turn, 256 KB each, and until the first of them is
written nobody learns that the taker is slow: 5 MB were seen to lie here for a client that read nothing.

Order is kept per transport for whatever goes through here. Whoever writes to one of these transports or closes it past
the outbox calls `flush` first.
"""

import asyncio

#: At saturation a request takes some tens of microseconds, so no write waits for more than about a millisecond.
MOST = 32
#: Bytes of a piece that is written at once.
LARGE = 64 * 1024


class Outbox:
    """The writes that are due, of all connections of one event loop."""

    __slots__ = ("_due", "_loop")

    def __init__(self) -> None:
        self._due: list[tuple[asyncio.WriteTransport, bytes]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Writes at the end of this turn; what is closed until then gets nothing more."""
        due = self._due
        if not due:
            (self._loop or self._bind()).call_soon(self.flush)
        due.append((transport, data))
        if len(due) >= MOST or len(data) >= LARGE:
            self.flush()

    def flush(self) -> None:
        """Writes now what is due."""
        due = self._due
        if not due:
            return
        self._due = []
        for transport, data in due:
            if transport.is_closing():
                continue
            try:
                transport.write(data)
            except Exception as error:
                # One transport's failure must not lose the others' writes.
                context = {"message": "a write failed", "exception": error, "transport": transport}
                (self._loop or self._bind()).call_exception_handler(context)

    def _bind(self) -> asyncio.AbstractEventLoop:
        self._loop = loop = asyncio.get_running_loop()
        return loop
