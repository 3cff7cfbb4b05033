"""Responses to chat and back: any chat stream, cut anywhere, makes a stream of the API's grammar; requests by example."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.wire.responses_answer import ResponseStream, whole
from nebula_core.wire.responses_request import Translated, Untranslatable, to_chat
from tests.support.responses import check_grammar, parse


def chat(**fields: Any) -> dict[str, Any]:
    translated = to_chat(json.dumps({"model": "m", "input": "hi"} | fields).encode())
    assert isinstance(translated, Translated), translated
    body: dict[str, Any] = json.loads(translated.body)
    return body


def refused(**fields: Any) -> Untranslatable:
    translated = to_chat(json.dumps({"model": "m", "input": "hi"} | fields).encode())
    assert isinstance(translated, Untranslatable)
    assert translated.hint
    return translated


ASKED = to_chat(b'{"model": "m", "input": "hi", "stream": true, "metadata": {"a": "b"}}')
assert isinstance(ASKED, Translated)


def stream() -> ResponseStream:
    assert isinstance(ASKED, Translated)
    return ResponseStream(ASKED.asked, "7", 1_700_000_000)


def event(*choices: dict[str, Any], **fields: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps({"model": "m", "choices": list(choices)} | fields).encode()


def delta(finish: str | None = None, logprobs: Any = None, **fields: Any) -> dict[str, Any]:
    return {"index": 0, "delta": fields, "finish_reason": finish, "logprobs": logprobs}


def call(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"index": index, "function": function} | ({"id": f"call-{index}"} if name else {})


# Requests


def test_a_text_is_a_message_of_the_user() -> None:
    assert chat() == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_a_conversation_with_calls() -> None:
    body = chat(
        instructions="Be short.",
        input=[
            {"role": "developer", "content": "No lists."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "summary": [], "id": "rs_1"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at":"sky"}', "id": "fc_1"},
            {"type": "function_call", "call_id": "c2", "name": "look", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "blue"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "grey"}]},
        ],
    )
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "system", "content": "No lists."},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":"sky"}'}},
                {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "blue"},
        {"role": "tool", "tool_call_id": "c2", "content": "grey"},
    ]


def test_what_is_more_than_text_stays_a_list() -> None:
    content = [
        {"type": "input_text", "text": "what?"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
        {"type": "input_file", "file_data": "data:text/plain;base64,AA==", "filename": "a.txt"},
    ]
    (message,) = chat(input=[{"role": "user", "content": content}])["messages"]
    assert message["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "file", "file": {"file_data": "data:text/plain;base64,AA==", "filename": "a.txt"}},
    ]


def test_options_by_their_other_names() -> None:
    function = {"name": "look", "parameters": {"type": "object"}, "strict": True}
    body = chat(
        max_output_tokens=5,
        temperature=0.2,
        top_logprobs=3,
        parallel_tool_calls=False,
        tools=[{"type": "function"} | function],
        tool_choice={"type": "function", "name": "look"},
        text={"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}},
        reasoning={"effort": "low"},
        top_k=7,
        metadata={"a": "b"},
        store=False,
        stream=True,
    )
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "temperature": 0.2,
        "logprobs": True,
        "top_logprobs": 3,
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True},
        },
        "reasoning_effort": "low",
        "top_k": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": None}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [3]}]}, "input[0].content[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": 3}, "tools"),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "mcp"}}, "tool_choice"),
    ],
)
def test_what_a_chat_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff"])
def test_bodies_that_are_none(body: bytes) -> None:
    assert isinstance(to_chat(body), Untranslatable)


ANYTHING = st.recursive(
    st.sampled_from([None, True, 7, "", "message", "user", "function", "input_text", "json_schema"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "text", "output", "name"]), inner, max_size=4)
    ),
    max_leaves=8,
)
NAMES = ["input", "instructions", "tools", "tool_choice", "text", "reasoning", "include", "stream", "store", "top_k"]


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING))
def test_any_object_is_translated_or_refused(fields: dict[str, Any]) -> None:
    translated = to_chat(json.dumps({"model": "m"} | fields).encode())
    if isinstance(translated, Translated):
        assert isinstance(json.loads(translated.body)["messages"], list)
    else:
        assert translated.message
        assert translated.hint


# Answers

TEXT = st.text(min_size=1, max_size=6)
DELTAS = st.one_of(
    TEXT.map(lambda text: delta(content=text)),
    TEXT.map(lambda text: delta(reasoning=text)),
    TEXT.map(lambda text: delta(refusal=text)),
    st.tuples(st.integers(0, 2), TEXT, st.booleans()).map(
        lambda given: delta(tool_calls=[call(given[0], given[1], "f" if given[2] else None)])
    ),
    st.just(delta(content="")),
    st.just(delta(role="assistant")),
)
FINISH = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])


@given(st.lists(DELTAS, max_size=12), FINISH, st.data())
def test_any_chat_stream_follows_the_grammar(deltas: list[dict[str, Any]], finish: str, data: st.DataObject) -> None:
    chunks = [event(each) for each in deltas]
    chunks += [event(delta(finish)), event(usage={"prompt_tokens": 3, "completion_tokens": 4}), b"data: [DONE]\n\n"]
    straight = stream()
    once = b"".join(map(straight.feed, chunks)) + straight.finish()
    # Several events may come in one read; the answer is the same.
    joined = stream()
    twice, pending = b"", b""
    for chunk in chunks:
        pending += chunk
        if data.draw(st.booleans()):
            twice += joined.feed(pending)
            pending = b""
    twice += joined.feed(pending) + joined.finish()
    assert once == twice
    final = check_grammar(parse(once))
    assert final["status"] == ("incomplete" if finish in {"length", "content_filter"} else "completed")
    assert final["usage"]["total_tokens"] == 7
    said = "".join(each["delta"].get("content") or "" for each in deltas)
    parts = [part for item in final["output"] if item["type"] == "message" for part in item["content"]]
    assert "".join(part["text"] for part in parts if part["type"] == "output_text") == said
    assert final["metadata"] == {"a": "b"}


@given(st.lists(DELTAS, max_size=8), st.sampled_from(["error", "nonsense"]))
def test_a_stream_that_breaks_says_so_once(deltas: list[dict[str, Any]], how: str) -> None:
    broken = stream()
    raw = b"".join(broken.feed(event(each)) for each in deltas)
    frame = b'event: error\ndata: {"error": {"message": "gone", "code": "engine_died"}}\n\n'
    raw += broken.feed(frame if how == "error" else b"data: {]\n\n") + broken.finish()
    events = parse(raw)
    assert [each["type"] for each in events[-2:]] == ["response.failed", "error"]
    final = check_grammar(events)
    assert final["error"]["code"] == "engine_died"
    assert broken.feed(event(delta(content="more"))) == b""


def test_the_full_sequence_of_a_text() -> None:
    made = stream()
    raw = made.feed(event(delta(role="assistant", content="")))
    raw += made.feed(event(delta(content="Hel"))) + made.feed(event(delta("stop", content="lo")))
    raw += made.feed(event(usage={"prompt_tokens": 1, "completion_tokens": 2})) + made.feed(b"data: [DONE]\n\n")
    assert [each["type"].removeprefix("response.") for each in parse(raw)] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip


def test_a_whole_answer_is_what_its_stream_ends_with() -> None:
    logprobs = {"content": [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}]}
    message = {
        "role": "assistant",
        "content": "Hi",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "c2", "type": "function", "function": {"name": "g", "arguments": '{"a":1}'}},
        ],
    }
    usage = {"prompt_tokens": 5, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 4}}
    body = {
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": logprobs}],
    }
    assert isinstance(ASKED, Translated)
    raw = whole(json.dumps(body | {"usage": usage}).encode(), ASKED.asked, "7", 1_700_000_000)
    assert raw is not None
    answer = json.loads(raw)
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [item.get("call_id") for item in answer["output"][2:]] == ["c1", "c2"]
    assert answer["output"][1]["content"][0]["logprobs"] == logprobs["content"]
    assert (answer["status"], answer["usage"]["input_tokens_details"]) == ("completed", {"cached_tokens": 4})
    assert answer["created_at"] == 1_700_000_000


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": 3}'])
def test_what_is_no_chat_completion_is_none(body: bytes) -> None:
    assert isinstance(ASKED, Translated)
    assert whole(body, ASKED.asked, "7", 0) is None


CAPTURES = Path(__file__).parents[2] / "contracts" / "engine" / "captures"


def captured(name: str) -> list[bytes]:
    """The bodies of the answers in a capture of a real engine."""
    parts = re.split(rb"^(?=###? (?:GET|POST) )", (CAPTURES / f"{name}.txt").read_bytes(), flags=re.MULTILINE)[1:]
    return [part.split(b"\r\n\r\n", 1)[1].strip() for part in parts]


@pytest.mark.parametrize("engine", ["vllm", "llamacpp"])
def test_streams_of_real_engines(engine: str) -> None:
    for body in captured(f"{engine}_chat_stream"):
        assert body.endswith(b"data: [DONE]")
        made = stream()
        final = check_grammar(parse(made.feed(body + b"\n\n") + made.finish()))
        chunks = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
        said = "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks if each["choices"])
        (item,) = final["output"]
        assert item["content"][0]["text"] == said != ""
        assert final["status"] == "incomplete"  # each was cut off by its max_tokens
        assert (final["usage"] is not None) == any(each.get("usage") for each in chunks)


@pytest.mark.parametrize("engine", ["vllm", "llamacpp"])
def test_plain_answers_of_real_engines(engine: str) -> None:
    assert isinstance(ASKED, Translated)
    for body in captured(f"{engine}_chat_nonstream"):
        answer, given = whole(body, ASKED.asked, "7", 0), json.loads(body)
        assert answer is not None
        made = json.loads(answer)
        assert made["output"][0]["content"][0]["text"] == given["choices"][0]["message"]["content"]
        assert made["usage"]["output_tokens"] == given["usage"]["completion_tokens"]


def test_why_llamacpps_own_stream_is_not_used() -> None:
    """It names no place and no number, and calls an answer complete that was cut off."""
    streamed = next(body for body in captured("llamacpp_responses") if body.startswith(b"event:"))
    blocks = [json.loads(line[6:]) for line in streamed.split(b"\n") if line.startswith(b"data: ")]
    assert not any("sequence_number" in each or "output_index" in each for each in blocks)
    assert blocks[-1]["response"]["status"] == "completed"
    assert blocks[-1]["response"]["usage"]["output_tokens"] == 6  # as many as were allowed
