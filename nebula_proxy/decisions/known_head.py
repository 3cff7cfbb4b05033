"""Request heads that come again: what a client says before its body hardly changes from one request to the next.

**Theory.** A client's library writes the same request line and the same headers every time; only the value of
Content-Length differs. OpenAI's own client sends seventeen, and to take them out of the bytes, check and name
them costs as much as all routing. So a head that was parsed and found sound once is remembered as the bytes before
that value and the bytes behind it. A read that has both, with nothing but digits between, is the same head with
another length: what was true of the first is true of it, byte for byte, so nothing is parsed or judged anew.

That holds only where the meaning of a head is in its bytes alone: for HTTP/1.1 with one Content-Length and no
`Expect`, on a connection that stays open, at the beginning of a message. What belongs to the moment (the key, limits,
the size of the body) is checked as for every request. Anything else, the smallest difference too, is the parser's.
"""

from collections.abc import Mapping
from typing import NamedTuple

from nebula_proxy.decisions.calls import Call

#: Longer heads are parsed each time: a connection must not cost much memory while it is idle.
LONGEST_BYTES = 2048
#: Digits of a length; more than that is nobody's body.
_DIGITS = 12
_LENGTH = b"\r\ncontent-length:"


class KnownHead(NamedTuple):
    """A head that was accepted, to be met again with another Content-Length."""

    #: The bytes up to the value of Content-Length, and from behind it to the end of the head.
    before: bytes
    after: bytes
    call: Call
    #: Names in lower case; the length is that of the first one.
    headers: Mapping[bytes, bytes]

    def found_in(self, data: bytes) -> tuple[bytes, int] | None:
        """(the length as it stands there, where the body begins) of a message that begins with this head."""
        before = self.before
        if not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r", start, start + _DIGITS + 1)
        length = data[start:end]
        # `isdigit` of bytes knows ASCII alone; of no bytes at all it is false.
        if end < 0 or not length.isdigit() or not data.startswith(self.after, end):
            return None
        return length, end + len(self.after)


def known_head(data: bytes, target: bytes, call: Call, headers: Mapping[bytes, bytes]) -> KnownHead | None:
    """What is to be remembered of the message `data` begins with, which was parsed as `headers` and accepted.

    None where its head is not to be told by its bytes. The caller sees to the version and to the connection.
    """
    length = headers.get(b"content-length")
    end = data.find(b"\r\n\r\n", 0, LONGEST_BYTES)
    if length is None or end < 0 or b"expect" in headers:
        return None
    head = data[: end + 4]
    # It must be the very message that was parsed, with no header that was folded or given twice.
    if not head.startswith(b"POST %b HTTP/1.1\r\n" % target) or head.count(b"\r\n") != len(headers) + 2:
        return None
    at = head.lower().find(_LENGTH)
    if at < 0:
        return None
    start = head.find(length, at + len(_LENGTH))
    if start < 0:
        return None
    return KnownHead(head[:start], head[start + len(length) :], call, headers)
