"""A request as spans (OpenTelemetry), made of its record: one for the request, one per attempt, one for the wait.

    client's span ─► chat MODEL (server) ─┬─► wait (internal)
                                          └─► attempt REPLICA (client) ─► the engine's own spans
                                                 · event first_token

The names of attributes are those of the semantic conventions 1.36 and later (`gen_ai.*`, `http.*`, `url.*`, `error.type`);
what they have no name for is under `nebula.`. No word of a prompt or an answer.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from nebula_core.records.decision import AttemptRecord, DecisionRecord

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?").fullmatch

Value = str | bool | int | float


class Parent(NamedTuple):
    """Who called: the trace and the span of a `traceparent`."""

    trace_id: int
    span_id: int
    sampled: bool


def parse_traceparent(given: bytes) -> Parent | None:
    """None for what W3C Trace Context calls invalid; of a later version what is known of this one is read."""
    match = _TRACEPARENT(given)
    if match is None:
        return None
    version, trace, span, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    trace_id, span_id = int(trace, 16), int(span, 16)
    return Parent(trace_id, span_id, bool(int(flags, 16) & 1)) if trace_id and span_id else None


def format_traceparent(trace_id: int, span_id: int, *, sampled: bool) -> bytes:
    return b"00-%032x-%016x-%02x" % (trace_id, span_id, sampled)


class SpanEvent(NamedTuple):
    name: str
    #: Unix seconds.
    at: float
    attributes: Mapping[str, Value]


class SpanFacts(NamedTuple):
    """One span, its ids chosen already. `parent_id` 0: it begins the trace."""

    name: str
    kind: Literal["server", "client", "internal"]
    span_id: int
    parent_id: int
    #: Unix seconds.
    start: float
    end: float
    attributes: Mapping[str, Value]
    events: Sequence[SpanEvent] = ()
    #: What went wrong, None when nothing did.
    error: str | None = None


OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


def spans_of(
    record: DecisionRecord, *, span_id: int, parent_id: int, attempt_ids: Sequence[int], wait_id: int
) -> list[SpanFacts]:
    """The spans of a request that has ended; `attempt_ids` are those the engines were sent, in their order."""
    end = record.at + (record.duration_seconds or 0.0)
    spans: list[SpanFacts] = []
    if record.wait_seconds is not None:
        spans.append(SpanFacts("wait", "internal", wait_id, span_id, record.at, record.at + record.wait_seconds, {}))
    tries = [attempt for attempt in record.attempts if attempt.replica is not None]
    for place, (attempt, attempt_id) in enumerate(zip(tries, attempt_ids, strict=False)):
        until = record.at + tries[place + 1].at_seconds if place + 1 < len(tries) else end
        spans.append(_attempt(record, attempt, attempt_id, span_id, until))
    operation = OPERATIONS.get(record.path, record.path.rpartition("/")[2])
    attributes: dict[str, Value | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "nebula",
        "gen_ai.request.model": record.model,
        "gen_ai.request.stream": record.stream,
        "gen_ai.response.time_to_first_chunk": record.ttft_seconds,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "http.request.method": "POST",
        "http.response.status_code": record.status,
        "url.path": record.path,
        "nebula.request_id": record.id,
        "nebula.outcome": record.outcome,
        "nebula.replica": record.replica,
        "nebula.key_id": record.key_id,
        "nebula.attempts": len(tries),
        "nebula.resumes": record.resumes,
        "nebula.wait_seconds": record.wait_seconds,
        "nebula.overhead_seconds": record.overhead_seconds,
    }
    # A server span is an error when the server failed; a wrong request is its client's.
    failed = record.status is not None and record.status >= 500
    if failed:
        attributes["error.type"] = record.outcome
    spans.append(
        SpanFacts(
            operation if record.model is None else f"{operation} {record.model}",
            "server",
            span_id,
            parent_id,
            record.at,
            end,
            _known(attributes),
            error=(record.detail or record.outcome) if failed else None,
        )
    )
    return spans


def _attempt(
    record: DecisionRecord, attempt: AttemptRecord, attempt_id: int, parent_id: int, until: float
) -> SpanFacts:
    began = record.at + attempt.at_seconds
    events = []
    if attempt.first_byte_seconds is not None:
        events.append(SpanEvent("first_byte", record.at + attempt.first_byte_seconds, {}))
    ttft = record.ttft_seconds
    if ttft is not None and attempt.at_seconds <= ttft <= until - record.at:
        events.append(SpanEvent("first_token", record.at + ttft, {}))
    attributes: dict[str, Value | None] = {
        "nebula.replica": attempt.replica,
        "nebula.strategy": attempt.strategy,
        "nebula.reason": attempt.reason,
        "nebula.guard": attempt.guard,
        "nebula.candidates": attempt.candidates_total,
        "nebula.resumed": attempt.resumed or None,
        "error.type": attempt.trouble,
    }
    error = None if attempt.trouble is None else attempt.detail or attempt.trouble
    return SpanFacts(
        f"attempt {attempt.replica}",
        "client",
        attempt_id,
        parent_id,
        began,
        max(began, until),
        _known(attributes),
        events,
        error,
    )


def _known(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None}
