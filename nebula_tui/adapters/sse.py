"""Server-sent events out of the bytes of a response, as (event, data); a comment comes as ("", "").

Lines end at LF, CR or CRLF only: `str.splitlines`, which HTTP libraries use, would also cut a JSON string at U+2028.
"""

from collections.abc import AsyncIterator, Iterator

#: One event of the watch of a large fleet is some megabytes; more than this is not an event but a fault.
LONGEST_EVENT_BYTES = 64 * 2**20


class EventTooLong(ValueError):
    """The peer sent more than an event may hold without ending it."""


class SseDecoder:
    """Feed it bytes as they come; it gives the events they complete."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._event = ""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        self._rest += chunk
        if len(self._rest) + self._held > LONGEST_EVENT_BYTES:
            raise EventTooLong(f"an event of more than {LONGEST_EVENT_BYTES} bytes")
        while (line := self._line()) is not None:
            if not line:
                if self._data:
                    yield self._event or "message", b"\n".join(self._data).decode("utf-8", "replace")
                self._event, self._data, self._held = "", [], 0
            elif line.startswith(b":"):
                yield "", ""
            else:
                name, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                if name == b"data":
                    self._data.append(value)
                    self._held += len(value)
                elif name == b"event":
                    self._event = value.decode("utf-8", "replace")

    def _line(self) -> bytes | None:
        ends = [end for end in (self._rest.find(b"\n"), self._rest.find(b"\r")) if end >= 0]
        if not ends:
            return None
        end = min(ends)
        if self._rest[end : end + 1] == b"\r":
            if end + 1 == len(self._rest):
                return None  # the LF of a CRLF may come with the next chunk
            width = 2 if self._rest[end + 1 : end + 2] == b"\n" else 1
        else:
            width = 1
        line = bytes(self._rest[:end])
        del self._rest[: end + width]
        return line


async def decode(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, str]]:
    decoder = SseDecoder()
    async for chunk in chunks:
        for event in decoder.feed(chunk):
            yield event
