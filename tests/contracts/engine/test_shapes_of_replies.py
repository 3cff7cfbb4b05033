"""Replies have the names, the order and the kinds of values that vLLM 0.32.0 was captured with, streamed or not."""

import asyncio
import json

import httpx
import pytest

from tests.contracts.engine.shapes import Capture, captures, frames, shape, stream_shape

REPLIES = [
    *captures("chat_nonstream"),
    *captures("chat_stream"),
    *captures("completions"),
    *captures("responses"),
    *captures("anthropic_messages"),
    *captures("tokenize"),
]


def _name(capture: Capture) -> str:
    asked = capture.request or {}
    words = [capture.path.strip("/").replace("/", "-"), *("stream",) * bool(asked.get("stream"))]
    words += sorted(asked.get("stream_options", {}))
    return "-".join([*words, *(word for word in ("echo", "messages") if word in asked)])


async def _post(client: httpx.AsyncClient, capture: Capture) -> httpx.Response:
    return await client.post(capture.path, json=capture.request)


@pytest.mark.parametrize("capture", [one for one in REPLIES if "data: " not in one.body], ids=_name)
async def test_a_whole_reply_has_the_captured_shape(client: httpx.AsyncClient, capture: Capture) -> None:
    reply = await _post(client, capture)
    assert reply.status_code == capture.status
    assert shape(_fixed(reply.json())) == shape(_fixed(json.loads(capture.body)))
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("capture", [one for one in REPLIES if "data: " in one.body], ids=_name)
async def test_a_stream_has_the_captured_row_of_frames(client: httpx.AsyncClient, capture: Capture) -> None:
    # Longer than the captured ones: chunks coalesce while a busy machine holds up the HTTP side, of few tokens all of them.
    length = {name: 100 for name in ("max_tokens", "max_output_tokens") if name in (capture.request or {})}
    reply = await client.post(capture.path, json={**(capture.request or {}), **length})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["transfer-encoding"] == "chunked"
    assert "\r" not in reply.text
    lines = [line[6:] for line in reply.text.split("\n") if line.startswith("data: {")]
    assert lines == [json.dumps(json.loads(line), separators=(",", ":"), ensure_ascii=False) for line in lines]
    assert stream_shape(reply.text) == stream_shape(capture.body.replace("\r", ""))


def _fixed(value: object) -> object:
    """The keys of log probabilities are the words themselves: an accident, reduced to how many kinds there are."""
    if isinstance(value, dict):
        if "logprob" in value:
            return value
        if value and all(isinstance(inner, float) for inner in value.values()) and "id" not in value:
            return {"token": 0.0}
        if value and all(isinstance(inner, dict) and "logprob" in inner for inner in value.values()):
            return {"token": next(iter(value.values()))}
        return {key: _fixed(inner) for key, inner in value.items()}
    return [_fixed(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("capture", captures("get_endpoints"), ids=lambda capture: capture.path.strip("/"))
async def test_a_get_has_the_captured_reply(client: httpx.AsyncClient, capture: Capture) -> None:
    reply = await client.get(capture.path)
    assert reply.status_code == capture.status
    assert "vary" in reply.headers
    if not capture.body.strip():
        assert reply.content == b""
        return
    captured, got = json.loads(capture.body), reply.json()
    got.pop("simulated", None)  # the simulated engine says in /version that it is one
    assert shape(got) == shape(captured)


async def test_the_event_names_of_a_responses_stream(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "input": "Say hi", "max_output_tokens": 6, "temperature": 0, "stream": True}
    seen = frames((await client.post("/v1/responses", json=body)).text)
    names = [frame.event for frame in seen]
    deltas = names.count("response.output_text.delta")
    assert names == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
        *("response.output_text.delta",) * deltas,
        *("response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"),
    ]
    assert [frame.data["sequence_number"] for frame in seen] == list(range(len(seen)))
    assert all(frame.data["type"] == frame.event for frame in seen)
    text = "".join(frame.data["delta"] for frame in seen if frame.event == "response.output_text.delta")
    assert seen[-1].data["response"]["output"][0]["content"][0]["text"] == text
    assert seen[-1].data["response"]["status"] == "incomplete"


async def test_ids_have_their_prefixes(client: httpx.AsyncClient) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    text = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    responses = {"model": "tiny", "input": "x", "max_output_tokens": 1}
    ids = [
        (await client.post(path, json=body)).json()["id"]
        for path, body in (("/v1/chat/completions", chat), ("/v1/completions", text), ("/v1/responses", responses))
    ]
    assert [one[: len(one) - 16] for one in ids] == ["chatcmpl-", "cmpl-", "resp_"]
    assert all(int(one[-16:], 16) >= 0 for one in ids)


async def test_a_request_id_of_the_client_becomes_the_id_of_the_reply(client: httpx.AsyncClient) -> None:
    """Also when two requests carry the same one at the same time."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 20, "ignore_eos": True}
    headers = {"x-request-id": "mine-1"}
    replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=body, headers=headers) for _ in range(3)))
    assert [reply.json()["id"] for reply in replies] == ["chatcmpl-mine-1"] * 3
    assert all(reply.json()["usage"]["completion_tokens"] == 20 for reply in replies)
