"""Facts of requests and news of streams: read what is sound, explain what is not, never fail."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.wire.openai import (
    BadBody,
    Dialect,
    Facts,
    Usage,
    error_body,
    error_event,
    is_closed,
    is_finished,
    lacks_the_path,
    read_events,
    read_facts,
    read_usage,
    worth_reading,
)
from nebula_core.wire.sse import Decoder


def sse(*payloads: Any) -> bytes:
    return b"".join(
        b"data: " + (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n\n" for each in payloads
    )


def chunk(text: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **more}


def test_facts_of_a_request() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "…"}]}],
        "stream": True,
        "stream_options": {"include_usage": True, "other": 1},
        "max_tokens": 7,
        "tools": [{"x": [1, 2.5, None]}],
    }
    facts = read_facts(json.dumps(body).encode())
    assert isinstance(facts, Facts)
    assert (facts.model, facts.stream, facts.include_usage, facts.output_limit) == ("m", True, True, 7)


@pytest.mark.parametrize(
    ("more", "limit"),
    [
        ({}, None),
        ({"max_tokens": None}, None),
        ({"max_tokens": "7"}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9),
    ],
)
def test_odd_limits_are_unknown(more: dict[str, Any], limit: int | None) -> None:
    facts = read_facts(json.dumps({"model": "m", **more}).encode())
    assert isinstance(facts, Facts)
    assert facts.output_limit == limit


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{", None, "not JSON"),
        (b"", None, "not JSON"),
        (b"[]", None, "JSON object"),
        (b"{}", "model", "missing"),
        (b'{"model":1}', "model", "wrong type"),
        (b'{"model":""}', "model", "empty"),
        (b'{"model":"m","stream":1}', "stream", "wrong type"),
        (b'{"model":"m","stream_options":{"include_usage":2}}', "stream_options.include_usage", "wrong type"),
        (b'{"model":"\xff"}', None, "not JSON"),
        (b'{"model":"m"} x', None, "not JSON"),
    ],
)
def test_a_bad_body_is_explained(body: bytes, param: str | None, words: str) -> None:
    bad = read_facts(body)
    assert isinstance(bad, BadBody)
    assert bad.param == param
    assert words in bad.message
    assert bad.hint


@given(st.binary(max_size=200))
def test_any_bytes_have_facts_or_an_explanation(body: bytes) -> None:
    assert isinstance(read_facts(body), Facts | BadBody)


def test_depth_is_no_danger() -> None:
    deep = b'{"model":"m","a":' + b"[" * 500_000 + b"]" * 500_000 + b"}"
    assert isinstance(read_facts(deep), BadBody)


def test_usage_is_found_where_engines_put_it() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert read_events(sse(chunk("a"), {"choices": [], "usage": usage}, b"[DONE]")).usage == Usage(3, 5)
    assert read_events(sse(chunk("a", "stop", usage=usage))).usage == Usage(3, 5)
    responses = {"type": "response.completed", "response": {"usage": {"input_tokens": 3, "output_tokens": 5}}}
    assert read_events(b"event: response.completed\n" + sse(responses)).usage == Usage(3, 5)
    assert read_events(sse(chunk("a", usage=None))).usage is None
    assert read_usage(json.dumps({"usage": usage}).encode()) == Usage(3, 5)
    assert read_usage(b'{"usage": 3}') is None
    assert read_usage(b'"usage"') is None


def test_text_that_looks_like_news_is_none() -> None:
    tricky = sse(chunk('"usage": {"prompt_tokens": 1}, "error": {"message": "x"}, "abort"'))
    news = read_events(tricky)
    assert (news.usage, news.error, news.aborted, news.bad_at) == (None, None, False, None)


def test_errors_behind_a_200_are_found() -> None:
    before = sse(chunk("a"), chunk("b"))
    error = {"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500}}
    news = read_events(before + sse(error, b"[DONE]"))
    assert (news.error, news.error_code, news.bad_at) == ("EngineCore encountered an issue", 500, len(before))
    named = read_events(before + b"event: error\n" + sse(error))
    assert named.bad_at == len(before)
    assert read_events(sse({"error": "Unauthorized"})).error == "Unauthorized"
    assert read_events(sse({"error": None})).bad_at is None


def test_an_abort_is_found() -> None:
    before = sse(chunk("a"))
    news = read_events(before + sse(chunk("", "abort")))
    assert (news.aborted, news.bad_at) == (True, len(before))
    assert not read_events(sse(chunk("abort", "stop"))).aborted


@given(st.binary(max_size=300))
def test_any_events_can_be_read(data: bytes) -> None:
    read_events(data)
    worth_reading(data)


@pytest.mark.parametrize(
    ("last", "dialect", "finished"),
    [
        (sse(b"[DONE]"), Dialect.CHAT, True),
        (b"data:[DONE]\n\n", Dialect.CHAT, True),
        (b"data: x\r\n\r\ndata: [DONE]\r\n\r\n", Dialect.CHAT, True),
        (sse(chunk("a"), b"[DONE]"), Dialect.CHAT, True),
        (sse(chunk("a")), Dialect.CHAT, False),
        (sse(chunk("data: [DONE]")), Dialect.CHAT, False),
        (sse(chunk("a", "stop")), Dialect.CHAT, True),
        (sse({"type": "response.completed"}), Dialect.RESPONSES, True),
        (sse(b"[DONE]"), Dialect.RESPONSES, False),
        (sse({"type": "message_stop"}), Dialect.MESSAGES, True),
    ],
)
def test_which_streams_are_finished(last: bytes, dialect: Dialect, finished: bool) -> None:
    assert is_finished(last, dialect) is finished
    if is_closed(last, dialect):
        assert finished


def test_a_finished_answer_is_not_yet_a_closed_stream() -> None:
    assert not is_closed(sse(chunk("a", "stop")), Dialect.CHAT)
    assert is_closed(sse(chunk("a", "stop"), b"[DONE]"), Dialect.CHAT)


def test_the_envelope() -> None:
    body = json.loads(error_body(429, "overloaded", "full", hint="wait"))
    assert body == {
        "error": {
            "message": "full",
            "type": "rate_limit_error",
            "code": "overloaded",
            "param": None,
            "origin": "nebula",
            "hint": "wait",
        }
    }


@pytest.mark.parametrize("dialect", list(Dialect))
def test_an_error_event_is_one_event(dialect: Dialect) -> None:
    (event,) = Decoder().feed(error_event("engine_died", "line\nbreak \u2028", dialect=dialect))
    assert event.event == "error"
    assert json.loads(event.data)["error"]["code"] == "engine_died"


SAMPLES = Path(__file__).parents[4] / "shared" / "samples"


@pytest.mark.skipif(not SAMPLES.exists(), reason="the captures of real engines are not on this machine")
@pytest.mark.parametrize("name", ["vllm_chat_stream.txt", "vllm_completions.txt", "llamacpp_chat_stream.txt"])
def test_real_streams_are_finished_and_say_their_tokens(name: str) -> None:
    text = (SAMPLES / name).read_bytes().replace(b"\r\n", b"\n")
    found = 0
    for exchange in text.split(b"\n### ")[0:]:
        at = exchange.find(b"\ndata: ")
        if at < 0:
            continue
        stream = exchange[at + 1 :].rstrip(b"\n") + b"\n\n"
        assert is_closed(stream, Dialect.CHAT)
        news = read_events(stream)
        assert news.bad_at is None
        if b'"usage":{' in stream:
            assert news.usage is not None
            assert news.usage.completion_tokens
        found += 1
    assert found


@pytest.mark.parametrize(
    ("status", "body", "lacks"),
    [
        (404, b'{"detail":"Not Found"}', True),
        (405, b'{"detail":"Method Not Allowed"}', True),
        (404, b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}', True),
        (501, b'{"error":{"code":501,"message":"x","type":"not_supported_error"}}', True),
        (404, b"<html>404</html>", True),
        (404, b"", True),
        (
            404,
            b'{"error":{"message":"The model does not exist","type":"NotFoundError","param":"model","code":404}}',
            False,
        ),
        (404, b'{"error":{"message":"x","type":"not_found_error","param":"model","code":404}}', False),
        (
            404,
            b'{"object":"error","message":"Response not found","type":"NotFoundError","param":null,"code":404}',
            False,
        ),
        (404, b'{"detail":"Response not found"}', False),
        (400, b'{"detail":"Not Found"}', False),
        (200, b"{}", False),
    ],
)
def test_an_unknown_path_is_told_from_something_unknown_in_a_request(status: int, body: bytes, lacks: bool) -> None:
    assert lacks_the_path(status, body) is lacks


def test_the_most_tokens_of_an_answer_by_any_of_its_names() -> None:
    def limit(**fields: object) -> int | None:
        facts = read_facts(json.dumps({"model": "m"} | fields).encode())
        assert isinstance(facts, Facts)
        return facts.output_limit

    assert limit(max_tokens=5) == limit(max_completion_tokens=5, max_tokens=9) == limit(max_output_tokens=5) == 5
    assert limit() is limit(max_tokens="5") is limit(max_tokens=True) is None
