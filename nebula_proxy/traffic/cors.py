"""Answers that a browser lets its page read (CORS), for pages of the origins an operator allows; off by default.

vLLM answers every page of the world; here a key stands behind each request, and a page that may read answers may also
spend it. Preflights and the routes of ASGI are Starlette's middleware's; the hot path does not pass through it, so its
answers get their lines here.
"""

from nebula_proxy.traffic.downstream import Downstream

#: What a page may read besides the body.
EXPOSED = (
    "x-request-id",
    "x-nebula-replica",
    "x-nebula-decision",
    "x-nebula-overhead-ms",
    "retry-after",
    "x-should-retry",
)
_EXPOSED = ", ".join(EXPOSED).encode("ascii")
ANY = "*"


def cors_lines(allowed: frozenset[str], origin: bytes) -> bytes:
    """Header lines for an answer to a page of `origin`; empty when it may not read it."""
    if ANY in allowed:
        return b"access-control-allow-origin: *\r\naccess-control-expose-headers: %b\r\n" % _EXPOSED
    if origin.decode("latin-1") not in allowed:
        return b""
    return b"access-control-allow-origin: %b\r\naccess-control-expose-headers: %b\r\nvary: Origin\r\n" % (
        origin,
        _EXPOSED,
    )


class CorsDownstream:
    """The client's side with a few more lines in the head."""

    def __init__(self, downstream: Downstream, lines: bytes) -> None:
        self._downstream = downstream
        self._lines = lines
        self.write = downstream.write
        self.end = downstream.end
        self.cut = downstream.cut

    @property
    def peer(self) -> str | None:
        return self._downstream.peer

    def respond(self, status: int, head: bytes, body: bytes, *, close: bool = False) -> None:
        self._downstream.respond(status, head + self._lines, body, close=close)

    def begin(self, status: int, head: bytes, body: bytes) -> None:
        self._downstream.begin(status, head + self._lines, body)
