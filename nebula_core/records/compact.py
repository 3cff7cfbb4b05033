"""The compact record of each second: what routing and the dashboards need; all else stands in the last full report.

A reader takes a thousand of them a second (GOALS S8). So these are msgspec structs and not pydantic records: the same
JSON, the same rules (fields may be added with defaults, unknown ones are ignored), a tenth of the cost. Numbers are not
checked for their range, only for their kind.
"""

from typing import Self

import msgspec

#: (utilization 0..1, memory used bytes, Celsius, watts) in the order of the report's GPUs.
GpuDelta = tuple[float | None, int | None, float | None, float | None]


class _Compact(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Holds no container that could lead back to it, so the collector need not look at it."""


class ReplicaDelta(_Compact, frozen=True):
    id: str
    phase: str
    running: int | None = None
    waiting: int | None = None
    kv: float | None = None
    generation_rate: float | None = None
    prompt_rate: float | None = None
    ttft_p95: float | None = None
    hit: float | None = None


class RoutingDelta(_Compact, frozen=True):
    """What a proxy reads of a compact record; the rest of it is passed over unread."""

    node: str
    sequence: int
    replicas: tuple[ReplicaDelta, ...] = ()

    @classmethod
    def from_json(cls, raw: str | bytes) -> "RoutingDelta":
        """Raises ValueError when `raw` is no compact record."""
        try:
            return _ROUTING.decode(raw)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error


class NodeDelta(_Compact, frozen=True):
    """About 200 bytes for a node with one engine."""

    node: str
    sequence: int
    cpu: float | None = None
    gpus: tuple[GpuDelta, ...] = ()
    replicas: tuple[ReplicaDelta, ...] = ()

    def to_json(self) -> str:
        """JSON without the fields that hold their default; what is no number becomes null."""
        return _ENCODER.encode(self).decode()

    @classmethod
    def from_json(cls, raw: str | bytes) -> Self:
        """Raises ValueError when `raw` is no compact record."""
        try:
            return msgspec.json.decode(raw, type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error


_ENCODER = msgspec.json.Encoder()
_ROUTING = msgspec.json.Decoder(RoutingDelta)
