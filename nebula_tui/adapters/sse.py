"""A followed response as server-sent events; `None` for bytes that completed none, which still say the server is there."""

from collections.abc import AsyncIterator

from nebula_core.wire.sse import Decoder, Event

#: One snapshot of a large fleet is some megabytes; more than this is not an event but a fault.
LONGEST_EVENT_BYTES = 64 * 2**20


async def decode(chunks: AsyncIterator[bytes]) -> AsyncIterator[Event | None]:
    """Raises `nebula_core.wire.sse.TooLong`."""
    decoder = Decoder(LONGEST_EVENT_BYTES)
    async for chunk in chunks:
        events = decoder.feed(chunk)
        for event in events:
            yield event
        if not events:
            yield None
