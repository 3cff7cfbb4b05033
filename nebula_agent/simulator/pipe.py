"""What parent and child of the simulated engine say to each other: MessagePack with a length before it."""

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

_LENGTH = struct.Struct("<I")


class Submit(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """A sequence to continue. `script` are the tokens of a prepared answer; `fault` is (kind, at token)."""

    request_id: str
    prompt: list[int]
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: list[int]
    seed: int | None
    script: list[int] | None
    read_cache: bool
    fault: tuple[str, int] | None


class Abort(msgspec.Struct, tag=True, array_like=True, frozen=True):
    request_ids: list[str]


class ResetPrefixCache(msgspec.Struct, tag=True, array_like=True, frozen=True):
    pass


class SequenceOutput(msgspec.Struct, array_like=True, frozen=True):
    """New tokens of one sequence. Times are monotonic seconds, the same clock in both processes."""

    request_id: str
    tokens: list[int]
    #: "stop" or "length" with the last token.
    finish_reason: str | None
    #: The token id that stopped it, if that was one of `stop_token_ids`.
    stop_token: int | None
    cached_tokens: int
    queued_at: float
    scheduled_at: float
    preemptions: int


class StepDone(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """One step: what it made, and the state of the scheduler after it. Query, hit and preemption counts are its own."""

    outputs: list[SequenceOutput]
    at: float
    running: int
    waiting: int
    usage: float
    prefix_queries: int
    prefix_hits: int
    preemptions: int


class CacheReset(msgspec.Struct, tag=True, array_like=True, frozen=True):
    success: bool


ToChild = Submit | Abort | ResetPrefixCache
ToParent = StepDone | CacheReset

_encoder = msgspec.msgpack.Encoder()
to_child_decoder = msgspec.msgpack.Decoder(ToChild)
to_parent_decoder = msgspec.msgpack.Decoder(ToParent)


def frame(message: ToChild | ToParent) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Unframer:
    """Bytes in, whole messages out."""

    def __init__(self, decoder: "msgspec.msgpack.Decoder[Any]") -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, at)
                start = at + _LENGTH.size
                if len(self._buffer) < start + length:
                    break
                yield self._decoder.decode(memoryview(self._buffer)[start : start + length].tobytes())
                at = start + length
        finally:
            del self._buffer[:at]
