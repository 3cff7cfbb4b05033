"""Trace context as W3C says, and the spans a request becomes."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_core.records.decision import AttemptRecord, DecisionRecord
from nebula_proxy.decisions.tracing import Parent, format_traceparent, parse_traceparent, spans_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_written_is_read(trace: int, span: int, sampled: bool) -> None:
    assert parse_traceparent(format_traceparent(trace, span, sampled=sampled)) == Parent(trace, span, sampled)


def test_what_is_invalid_is_no_parent() -> None:
    good = f"00-{TRACE}-{SPAN}-01"
    assert parse_traceparent(good.encode()) == Parent(int(TRACE, 16), int(SPAN, 16), True)
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-02".encode()) == Parent(int(TRACE, 16), int(SPAN, 16), False)
    assert parse_traceparent(f"01-{TRACE}-{SPAN}-01-what-comes-later".encode()) is not None
    for bad in (
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        "",
        "x",
    ):
        assert parse_traceparent(bad.encode()) is None, bad


def test_a_retried_request_is_one_span_with_two_attempts_and_its_wait() -> None:
    record = DecisionRecord(
        id="req-1",
        proxy="p",
        at=100.0,
        path="/v1/chat/completions",
        model="chat",
        key_id="k1",
        stream=True,
        outcome="ok",
        status=200,
        wait_seconds=1.0,
        attempts=(
            AttemptRecord(replica="chat-r0", at_seconds=1.0, trouble="lost", detail="reset", candidates_total=2),
            AttemptRecord(replica="chat-r1", at_seconds=2.0, first_byte_seconds=2.5, candidates_total=2),
        ),
        ttft_seconds=3.0,
        duration_seconds=5.0,
        completion_tokens=7,
    )
    wait, first, second, whole = spans_of(record, span_id=1, parent_id=9, attempt_ids=[2, 3], wait_id=4)
    assert (wait.name, wait.kind, wait.start, wait.end, wait.parent_id) == ("wait", "internal", 100.0, 101.0, 1)
    assert (first.name, first.kind, first.span_id, first.parent_id) == ("attempt chat-r0", "client", 2, 1)
    assert (first.start, first.end, first.error) == (101.0, 102.0, "reset")
    assert first.attributes["error.type"] == "lost"
    assert (second.span_id, second.start, second.end, second.error) == (3, 102.0, 105.0, None)
    assert [(event.name, event.at) for event in second.events] == [("first_byte", 102.5), ("first_token", 103.0)]
    assert (whole.name, whole.kind, whole.span_id, whole.parent_id) == ("chat chat", "server", 1, 9)
    assert (whole.start, whole.end, whole.error) == (100.0, 105.0, None)
    assert whole.attributes["gen_ai.request.model"] == "chat"
    assert whole.attributes["gen_ai.usage.output_tokens"] == 7
    assert "gen_ai.usage.input_tokens" not in whole.attributes  # unknown is left out
    assert whole.attributes["nebula.attempts"] == 2


def test_a_refusal_is_a_span_alone_and_only_the_servers_own_failure_is_an_error() -> None:
    record = DecisionRecord(id="r", proxy="p", at=1.0, path="/v1/completions", status=400, outcome="invalid_request")
    [span] = spans_of(record, span_id=1, parent_id=0, attempt_ids=[], wait_id=2)
    assert (span.name, span.error) == ("text_completion", None)
    failed = record.model_copy(update={"status": 503, "outcome": "no_replica", "detail": "none is ready"})
    [span] = spans_of(failed, span_id=1, parent_id=0, attempt_ids=[], wait_id=2)
    assert span.error == "none is ready"
    assert span.attributes["error.type"] == "no_replica"
