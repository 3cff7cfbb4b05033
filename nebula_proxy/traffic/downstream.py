"""The client's side of a request, as an exchange sees it; the hot path and the plain ASGI route both implement it.

An answer is either whole (`respond`) or begun and then continued (`begin`, `write`…, `end` or `cut`). Everything is
handed over at once and without waiting; how it is framed and sent is the implementation's.
"""

from typing import Protocol


class Downstream(Protocol):
    """Where an answer goes. `head` is a block of header lines, each with its CRLF, without those of the framing."""

    @property
    def peer(self) -> str | None:
        """Address of the other end of the connection, None when it is not known."""

    def respond(self, status: int, head: bytes, body: bytes, *, close: bool = False) -> None:
        """A whole answer; `close` ends the connection after it."""

    def begin(self, status: int, head: bytes, body: bytes) -> None:
        """The first bytes of an answer whose length is not known."""

    def write(self, body: bytes) -> None: ...

    def end(self, body: bytes = b"", *, close: bool = False) -> None:
        """The proper end of a begun answer."""

    def cut(self) -> None:
        """No proper end: closes so that whoever reads can tell."""
