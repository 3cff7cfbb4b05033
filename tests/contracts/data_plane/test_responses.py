"""`/v1/responses`: passed through where the engine has it, else a chat, with the full row of events (CONTRACT, 3)."""

import asyncio
import json
from typing import Any

import openai
import pytest

from nebula_proxy.traffic.plane import Limits
from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane
from tests.support.responses import check_grammar, parse
from tests.support.scripted_engine import (
    STREAM_HEAD,
    Conversation,
    ScriptedEngine,
    answer,
    chunked,
    completion,
    event,
    talk,
    tokens,
)

ASK = {"model": MODEL, "input": "hi"}
FASTAPI = answer({"detail": "Not Found"}, 404)
LLAMACPP = answer({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, 404)
UNKNOWN_RESPONSE = {
    "error": {
        "message": "Response with id 'resp_1' not found.",
        "type": "invalid_request_error",
        "param": "response_id",
    }
}


async def ask(running: RunningPlane, **fields: Any) -> tuple[int, bytes]:
    async with running.client() as client:
        response = await client.post("/v1/responses", json=ASK | fields)
        assert response.headers["x-request-id"]
        return response.status_code, response.content


async def test_an_engine_that_has_it_is_asked(hot: bool, engine: ScriptedEngine) -> None:
    own = b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n'

    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(own))

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port, engine="vllm")), hot_path=hot) as running:
        assert await ask(running, stream=True, previous_response_id="resp_1", store=True) == (200, own)
    (seen,) = engine.conversations
    assert seen.path == b"/v1/responses"
    assert seen.json == ASK | {"stream": True, "previous_response_id": "resp_1", "store": True}


@pytest.mark.parametrize("denial", [FASTAPI, LLAMACPP, answer({"error": "no"}, 501), answer(b"<html>", 404)])
@pytest.mark.parametrize("streamed", [True, False])
async def test_an_engine_that_says_it_has_none_is_asked_in_chat_from_then_on(
    hot: bool, engine: ScriptedEngine, denial: bytes, streamed: bool
) -> None:
    async def script(conversation: Conversation) -> None:
        await (conversation.send(denial) if conversation.path == b"/v1/responses" else talk(conversation))

    engine.script = script
    first = endpoint("m-r0", engine.port, engine="vllm")
    async with running_plane(model(first), hot_path=hot) as running:
        for _ in range(2):
            status, raw = await ask(running, stream=streamed)
            assert status == 200
            final = check_grammar(parse(raw)) if streamed else json.loads(raw)
            (item,) = final["output"]
            assert item["content"][0]["text"] == "Hello there"
            assert (final["status"], final["usage"]["output_tokens"]) == ("completed", 2)
        paths = [each.path for each in engine.conversations]
        assert paths == [b"/v1/responses", b"/v1/chat/completions", b"/v1/chat/completions"]
        assert running.plane.meters.models[MODEL].statuses == {200: 2}
        assert running.plane.ejections.reasons(0.0) == {}
        # Another start of the engine may be another version.
        running.table(model(endpoint("m-r0", engine.port, engine="vllm", engine_epoch="e2")))
        await ask(running)
        assert engine.conversations[3].path == b"/v1/responses"


async def test_llamacpp_is_asked_in_chat_at_once(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port, engine="llamacpp")), hot_path=hot) as running:
        assert (await ask(running))[0] == 200
    assert [each.path for each in engine.conversations] == [b"/v1/chat/completions"]


@pytest.mark.parametrize("fields", [{"previous_response_id": "resp_1"}, {"store": True}])
async def test_what_a_chat_cannot_do_is_a_clear_error(
    hot: bool, engine: ScriptedEngine, fields: dict[str, object]
) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(FASTAPI)

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port, engine="vllm")), hot_path=hot) as running:
        for _ in range(2):
            status, raw = await ask(running, **fields)
            error = json.loads(raw)["error"]
            assert (status, error["code"], error["param"]) == (400, "invalid_request", next(iter(fields)))
            assert error["hint"]
        assert len(running.plane.ledger) == 0
    assert len(engine.conversations) == 1


async def test_something_unknown_in_the_request_is_not_the_path(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(answer(UNKNOWN_RESPONSE, 404))

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port, engine="vllm")), hot_path=hot) as running:
        status, raw = await ask(running, previous_response_id="resp_1")
        assert (status, json.loads(raw)) == (404, UNKNOWN_RESPONSE)
    assert len(engine.conversations) == 1


def llamacpp(engine: ScriptedEngine, replica: str = "m-r0") -> Any:
    return endpoint(replica, engine.port, engine="llamacpp")


async def test_an_answer_that_was_cut_off_is_incomplete(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        assert conversation.json["max_tokens"] == 1
        assert conversation.json["stream_options"] == {"include_usage": True}
        parts = [event("Hel"), event("lo", finish="length"), event(usage=(3, 1)), b"data: [DONE]\n\n"]
        await conversation.send(STREAM_HEAD + chunked(*parts))

    engine.script = script
    async with running_plane(model(llamacpp(engine)), hot_path=hot) as running:
        _, raw = await ask(running, stream=True, max_output_tokens=1)
        final = check_grammar(parse(raw))
        assert final["incomplete_details"] == {"reason": "max_output_tokens"}
        assert running.plane.meters.models[MODEL].completion_tokens == 1


async def test_a_stream_that_breaks_fails_and_says_why(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
        conversation.close()

    engine.script = script
    async with running_plane(model(llamacpp(engine)), hot_path=hot) as running:
        _, raw = await ask(running, stream=True)
        events = parse(raw)
        assert events[-1]["type"] == "error"
        final = check_grammar(events)
        assert final["error"]["code"] == "engine_died"
        (item,) = final["output"]
        assert (item["status"], item["content"][0]["text"]) == ("incomplete", "one")


async def test_another_replica_takes_over_before_the_first_byte(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine
) -> None:
    async def dies(conversation: Conversation) -> None:
        conversation.close()

    engine.script = other.script = dies
    async with running_plane(model(llamacpp(engine), llamacpp(other, "m-r1")), hot_path=hot) as running:
        engine.script = talk
        for _ in range(4):
            status, raw = await ask(running, stream=True)
            assert status == 200
            assert check_grammar(parse(raw))["status"] == "completed"


async def test_a_large_plain_answer_is_translated_whole(hot: bool, engine: ScriptedEngine) -> None:
    text = "x" * 300_000

    async def script(conversation: Conversation) -> None:
        await conversation.send(answer(completion(text)))

    engine.script = script
    limits = Limits(hold_bytes=10_000)
    async with running_plane(model(llamacpp(engine)), hot_path=hot, limits=limits) as running:
        status, raw = await ask(running)
        assert (status, json.loads(raw)["output"][0]["content"][0]["text"]) == (200, text)


async def test_an_answer_that_is_no_chat_is_502(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(answer({"surprise": True}))

    engine.script = script
    async with running_plane(model(llamacpp(engine)), hot_path=hot) as running:
        status, raw = await ask(running)
        assert (status, json.loads(raw)["error"]["code"]) == (502, "engine_died")


async def test_an_engines_error_passes_as_it_is(hot: bool, engine: ScriptedEngine) -> None:
    error = {"error": {"message": "too long", "type": "BadRequestError", "param": "input_tokens", "code": 400}}

    async def script(conversation: Conversation) -> None:
        await conversation.send(answer(error, 400))

    engine.script = script
    async with running_plane(model(llamacpp(engine)), hot_path=hot) as running:
        status, raw = await ask(running, stream=True)
        assert (status, json.loads(raw)) == (400, error)


async def test_the_openai_client_follows(hot: bool, engine: ScriptedEngine) -> None:
    async with (
        running_plane(model(llamacpp(engine)), hot_path=hot) as running,
        openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=running.token, max_retries=0) as client,
    ):
        whole = await client.responses.create(model=MODEL, input="hi")
        assert (whole.output_text, whole.status) == ("Hello there", "completed")
        async with client.responses.stream(model=MODEL, input="hi") as stream:
            texts = [each.delta async for each in stream if each.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert texts == ["Hello", " there"]
        assert final.output_text == "Hello there"


async def test_the_openai_client_raises_where_it_breaks(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
        conversation.close()

    engine.script = script
    seen: list[str] = []

    async def follow(client: openai.AsyncOpenAI) -> None:
        async for each in await client.responses.create(model=MODEL, input="hi", stream=True):
            seen.append(each.type)

    async with (
        running_plane(model(llamacpp(engine)), hot_path=hot) as running,
        openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=running.token, max_retries=0) as client,
    ):
        with pytest.raises(openai.APIError, match="cannot go on"):
            await follow(client)
        assert seen[-1] == "response.failed"


async def test_it_is_not_delayed_and_the_client_may_leave(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(tokens("one", "two")[0], end=False))
        await conversation.gone.wait()

    engine.script = script
    async with (
        running_plane(model(llamacpp(engine)), hot_path=hot) as running,
        running.client() as client,
        client.stream("POST", "/v1/responses", json=ASK | {"stream": True}) as response,
    ):
        seen = b""
        async for piece in response.aiter_bytes():
            seen += piece
            if b"output_text.delta" in seen:
                break
        await response.aclose()
        async with asyncio.timeout(30):
            await engine.conversations[0].gone.wait()
