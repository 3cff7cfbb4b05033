"""What is open right now: the rows a proxy shows while somebody looks, and the commands that reach it for them.

Nothing here is sent unless a person asked a moment ago. Times are seconds at the moment of the report, by the clock of
the proxy that has the request; unknown is None. No word of a prompt or of an answer.
"""

from typing import Literal

from nebula_core.records.base import Record
from nebula_core.records.decision import DecisionRecord

#: `waiting` for room at the proxy; `prefill` until the first token of a stream; `streaming` after it; `running`: an
#: answer in one piece is being made (whether it prefills or decodes cannot be seen from outside).
RequestPhase = Literal["waiting", "prefill", "streaming", "running"]

#: Rows one proxy shows at most, the oldest first; the report says how many there are.
ROWS_KEPT = 200
#: A stream without a byte for so long is called stalled.
STALLED_SECONDS = 2.0


class OpenRequest(Record):
    id: str
    model: str
    path: str
    replica: str | None = None
    phase: RequestPhase
    #: The stream has begun and is silent: `engine` says nothing, or the `client` does not read.
    stalled: Literal["engine", "client"] | None = None
    stream: bool = True
    age_seconds: float = 0.0
    wait_seconds: float | None = None
    ttft_seconds: float | None = None
    #: Since the last byte of the engine.
    silent_seconds: float | None = None
    #: Events of the stream so far, as they were read: with most engines one token each, fewer when they come in heaps.
    events: int = 0
    sent_bytes: int = 0
    request_bytes: int = 0
    key_id: str | None = None
    key_name: str | None = None
    #: Where the client's connection comes from.
    client: str | None = None
    attempts: int = 0
    resumes: int = 0


class InflightReport(Record):
    """All that one proxy has open, or the oldest of it."""

    proxy: str
    #: Unix seconds of the proxy, for display.
    at: float
    total: int
    #: Of the total, by phase; `stalled` counts rows only.
    waiting: int = 0
    prefill: int = 0
    streaming: int = 0
    running: int = 0
    stalled: int = 0
    rows: tuple[OpenRequest, ...] = ()


class ProxyCommand(Record):
    """An order to every proxy; only the one that has the request acts on it. Safe to repeat."""

    id: str
    #: `show` what is open, each second for the next `SHOWN_SECONDS`; `explain` or `cancel` one request.
    kind: Literal["show", "explain", "cancel"]
    request: str | None = None
    #: Who asked, for the log.
    by: str = ""


#: One `show` lasts so long.
SHOWN_SECONDS = 15.0


class CommandAnswer(Record):
    """What one proxy says to a command about a request."""

    proxy: str
    found: bool
    #: As it stood when the command came; with a status when it had just ended.
    record: DecisionRecord | None = None
