"""Tracing of requests: the context is taken from the caller, each attempt passes a span of its own on to its engine.

A plane without a tracer pays one look at an attribute per request and passes the caller's `traceparent` on as it came.
With one, ids are chosen while the request runs (an engine must know its parent) and the spans are made from its record
when it has ended, so a request that is not sampled costs two ids and nothing else.
"""

from nebula_core.records.decision import DecisionRecord
from nebula_proxy.adapters.telemetry import Exporter, new_id
from nebula_proxy.decisions.tracing import Parent, format_traceparent, parse_traceparent, spans_of
from nebula_proxy.traffic.accounts import record_of
from nebula_proxy.traffic.request import Request, Trace


class Tracer:
    """One process's tracing."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def attempt(self, request: Request) -> bytes:
        """`traceparent` for the engine that is asked next."""
        trace = request.tracing or self._begin(request)
        span_id = new_id(64)
        trace.attempts.append(span_id)
        return format_traceparent(trace.trace_id, span_id, sampled=trace.sampled)

    def ended(self, request: Request, status: int, outcome: str, detail: str | None) -> None:
        """The request is over; `status` and `outcome` as in the log."""
        trace = request.tracing or self._begin(request)
        if not trace.sampled:
            return
        record: DecisionRecord = record_of(request, "sample", status=status, outcome=outcome, detail=detail)
        spans = spans_of(
            record,
            span_id=trace.span_id,
            parent_id=trace.parent_id,
            attempt_ids=trace.attempts,
            wait_id=new_id(64),
        )
        self._exporter.export(trace.trace_id, spans)

    def _begin(self, request: Request) -> Trace:
        given = request.headers.get(b"traceparent")
        parent: Parent | None = None if given is None else parse_traceparent(given)
        trace_id = new_id(128) if parent is None else parent.trace_id
        trace = request.tracing = Trace(
            trace_id,
            new_id(64),
            0 if parent is None else parent.span_id,
            self._exporter.sampled(parent, trace_id),
            [],
        )
        # Until an engine is asked, so that the log line of a refusal has its trace too.
        request.trace = format_traceparent(trace_id, trace.span_id, sampled=trace.sampled)
        return trace
