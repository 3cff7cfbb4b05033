"""Things that happened (events, for operators) and changes of durable records (for machines)."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from nebula_core.records.base import Record

Severity = Literal["info", "warn", "crit"]


class Event(Record):
    """One line of what operators read. `object` is `kind/name`, e.g. `replica/chat-r1`."""

    kind: str
    object: str
    message: str
    severity: Severity = "info"
    actor: str
    result: str = ""
    #: Unix seconds of the writer, for display.
    at: float
    #: The stream id the store gave; set by readers.
    id: str | None = None


class ChangeKind(StrEnum):
    """The durable records, each a hash of the store."""

    DEPLOYMENT = "deployment"
    NODE = "node"
    INTENT = "intent"
    PLACEMENT = "placement"
    KEY = "key"


class Change(Record):
    """One durable change: `value` is the record's JSON, None when it is gone."""

    revision: int
    kind: ChangeKind
    id: str
    value: str | None = None


class Audit(Record):
    """Intent or result of one mutating call; `digest` chains each entry to the one before."""

    stage: Literal["intent", "result"]
    call: str
    actor: str
    role: str
    object: str
    detail: dict[str, Any] = Field(default_factory=dict)
    result: str | None = None
    request_id: str
    at: float
    previous: str = ""
    digest: str = ""
    id: str | None = None
