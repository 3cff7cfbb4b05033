"""What a client gets when all is well: the engine's bytes, our headers, nothing of the engine's own."""

import asyncio
import json

import openai
import pytest

from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane, until
from tests.support.scripted_engine import (
    DONE,
    STREAM_HEAD,
    Conversation,
    ScriptedEngine,
    answer,
    chunked,
    completion,
    event,
    tokens,
)

MESSAGES = [{"role": "user", "content": "hi"}]


async def body_of(running: RunningPlane, **json_body: object) -> tuple[int, dict[str, str], bytes]:
    async with running.client() as client:
        response = await client.post("/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES, **json_body})
        return response.status_code, dict(response.headers), response.content


async def test_a_stream_passes_byte_for_byte(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        status, headers, body = await body_of(running, stream=True)
        assert status == 200
        assert body == b"".join(tokens("Hello", " there"))
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["x-nebula-replica"] == "m-r0"
        assert headers["x-nebula-decision"].startswith("prefix_cache_aware; of=1")
        assert float(headers["x-nebula-overhead-ms"]) >= 0
        assert headers["x-request-id"].startswith("req-")
        assert len(running.plane.ledger) == 0


async def test_a_plain_answer_passes_byte_for_byte(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        status, headers, body = await body_of(running)
        assert (status, json.loads(body)) == (200, completion("Hello there"))
        assert headers["content-length"] == str(len(body))
        meter = running.plane.meters.models[MODEL]
        assert (meter.prompt_tokens, meter.completion_tokens) == (3, 2)


async def test_the_request_reaches_the_engine_rebuilt(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        headers = {
            "x-request-id": "mine-1",
            "traceparent": trace,
            "cookie": "a=b",
            "te": "trailers",
            "x-forwarded-for": "10.0.0.1",
            "x-nebula-priority": "3",
            "connection": "close",
        }
        raw = await running.exchange(running.request(headers=headers))
        assert b"x-request-id: mine-1\r\n" in raw
    (seen,) = engine.conversations
    assert seen.line == b"POST /v1/chat/completions HTTP/1.1"
    assert set(seen.headers) == {b"host", b"content-type", b"content-length", b"x-request-id", b"traceparent"}
    assert seen.headers[b"x-request-id"] == b"mine-1"
    assert seen.headers[b"traceparent"] == trace.encode()
    assert seen.json["messages"] == MESSAGES


async def test_an_engines_own_headers_stay_behind(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(answer(completion("x"), set_cookie="a=b", server="engine", x_secret="1"))

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        _, headers, _ = await body_of(running)
        assert not {"set-cookie", "server", "x-secret"} & headers.keys()


@pytest.mark.parametrize("size", [1, 7, 64])
async def test_events_split_anywhere_arrive_whole(hot: bool, engine: ScriptedEngine, size: int) -> None:
    stream = STREAM_HEAD + chunked(*tokens("Grüße", " – ", "日本", "."))

    async def script(conversation: Conversation) -> None:
        for at in range(0, len(stream), size):
            await conversation.send(stream[at : at + size])
            await asyncio.sleep(0)

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        _, _, body = await body_of(running, stream=True)
        assert body == b"".join(tokens("Grüße", " – ", "日本", "."))
        assert running.plane.meters.models[MODEL].completion_tokens == 4


async def test_a_stream_is_not_delayed(hot: bool, engine: ScriptedEngine) -> None:
    more = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
        await more.wait()
        await conversation.send(chunked(event("two", finish="stop"), DONE))

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        request = {"model": MODEL, "messages": MESSAGES, "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=request) as response:
            pieces = response.aiter_bytes()
            assert await anext(pieces) == event("one")  # while the engine still waits
            more.set()
            assert b"".join([piece async for piece in pieces]) == event("two", finish="stop") + DONE


async def test_the_openai_client_streams_and_completes(hot: bool, engine: ScriptedEngine) -> None:
    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running,
        openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=running.token, max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        texts = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
        assert texts == ["Hello", " there"]
        whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert whole.choices[0].message.content == "Hello there"
        assert [entry.id async for entry in await client.models.list()] == [MODEL]


async def test_a_connection_is_kept_on_both_sides(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        for _ in range(5):
            request = {"model": MODEL, "messages": MESSAGES}
            assert (await client.post("/v1/chat/completions", json=request)).status_code == 200
        assert running.server.connections == 1
    assert (engine.connections, len(engine.conversations)) == (1, 5)


async def test_a_large_plain_answer_passes(hot: bool, engine: ScriptedEngine) -> None:
    big = {"data": "x" * 3_000_000}

    async def script(conversation: Conversation) -> None:
        await conversation.send(answer(big))

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        status, _, body = await body_of(running)
        assert (status, json.loads(body)) == (200, big)
        await until(lambda: len(running.plane.ledger) == 0)


async def test_other_calls_pass_too(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(answer({"path": conversation.path.decode()}))

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        for path in ("/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/messages", "/tokenize"):
            response = await client.post(path, json={"model": MODEL, "input": "x"})
            assert response.json() == {"path": path}


async def test_an_engines_error_passes_unchanged(hot: bool, engine: ScriptedEngine) -> None:
    error = {"error": {"message": "too long", "type": "BadRequestError", "param": "input_tokens", "code": 400}}

    async def script(conversation: Conversation) -> None:
        await conversation.send(answer(error, 400))

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        status, headers, body = await body_of(running, stream=True)
        assert (status, json.loads(body)) == (400, error)
        assert headers["x-nebula-replica"] == "m-r0"
