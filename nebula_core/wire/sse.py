"""Server-sent events, sans I/O: where the last whole event ends, decoding across any split, encoding.

An event ends with an empty line; lines end with LF, CRLF or CR (WHATWG HTML, 9.2.6). Engines and Nebula write LF.
A proxy needs only `whole_events`: it lets bytes pass up to the end of the last whole event and keeps the rest, so a
client never sees half an event, whatever becomes of the engine. Readers of events use `Decoder`.
"""

from collections.abc import Iterator
from typing import NamedTuple


class TooLong(ValueError):
    """An event grew past the limit without an end: the sender is broken."""


class Event(NamedTuple):
    """`event` is "message" when the sender named none."""

    data: str
    event: str = "message"
    id: str | None = None


def whole_events(data: bytes) -> int:
    """Length of the part of `data` that consists of whole events; 0 when not even one is complete."""
    if data.endswith(b"\n\n"):
        return len(data)
    at_lf = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
    at_crlf = data.rfind(b"\n\r\n") + 3 if b"\n\r\n" in data else 0
    return max(at_lf, at_crlf)


def payloads(events: bytes) -> Iterator[bytes]:
    """The `data:` lines of whole events as they are, one by one: engines put one line of JSON into each event."""
    for line in events.splitlines():
        if line.startswith(b"data:"):
            yield line[5:].lstrip(b" ")


def encode(data: str | bytes, *, event: str | None = None, id: str | None = None) -> bytes:  # noqa: A002 - the field's name
    """One event; every line of `data` becomes a line of its own."""
    raw = data if isinstance(data, bytes) else data.encode()
    head = b""
    if id is not None:
        head += b"id: %b\n" % id.encode()
    if event is not None:
        head += b"event: %b\n" % event.encode()
    return head + b"".join(b"data: %b\n" % line for line in raw.split(b"\n")) + b"\n"


class Decoder:
    """Events out of bytes that may be split anywhere, also inside a character or a line end."""

    def __init__(self, max_event_bytes: int = 1 << 20) -> None:
        self._max = max_event_bytes
        self._rest = b""
        self._after_cr = False
        self._first = True
        self._size = 0
        self._data: list[bytes] = []
        self._event = b""
        self._id: bytes | None = None

    def feed(self, data: bytes) -> list[Event]:
        """The events completed by `data`. Raises TooLong."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        elif data:
            self._after_cr = False
        # `bytes.splitlines` knows exactly the three line ends of the standard.
        lines = (self._rest + data).splitlines(keepends=True)
        self._rest = b""
        if lines and not lines[-1].endswith((b"\n", b"\r")):
            self._rest = lines.pop()
        elif lines and lines[-1].endswith(b"\r"):
            self._after_cr = True
        events = []
        for line in lines:
            self._size += len(line)
            event = self._line(line.rstrip(b"\r\n"))
            if event is not None:
                events.append(event)
        if self._size + len(self._rest) > self._max:
            raise TooLong(f"an event is longer than {self._max} bytes")
        return events

    def _line(self, line: bytes) -> Event | None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            event = None
            if self._data:
                name = self._event.decode("utf-8", "replace") or "message"
                id_ = None if self._id is None else self._id.decode("utf-8", "replace")
                event = Event(b"\n".join(self._data).decode("utf-8", "replace"), name, id_)
            self._data, self._event, self._size = [], b"", 0
            return event
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._event = value
        elif field == b"id" and b"\0" not in value:
            self._id = value
        return None
