"""The chat's door to the data plane on real sockets: pieces, figures, headers, errors before and in the middle."""

import asyncio
import json

import pytest

from nebula_core.errors import NebulaError
from nebula_tui.adapters.chat import ChatClient, ChatDelta, ChatDone, ChatEvent, ChatOpened, ChatRequest, Turn
from nebula_tui.adapters.control import Garbled, NotAllowed, NotFound, Refused, Unreachable
from tests.tui.adapters.server import Call, refusing_port, serving

ASK = ChatRequest("demo", (Turn("user", "hi"),), replica="demo-r2", temperature=0.0)


def chunk(text: str = "", **more: object) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": more.pop("finish", None)}
    return f"data: {json.dumps({'choices': [choice], **more})}\n\n"


async def collect(client: ChatClient, request: ChatRequest = ASK) -> list[ChatEvent]:
    async with asyncio.timeout(60):
        return [event async for event in client.stream(request)]


async def test_a_stream_in_pieces() -> None:
    async def handler(call: Call) -> None:
        await call.stream(x_nebula_replica="demo-r2", x_nebula_decision="pinned", x_nebula_overhead_ms="0.4")
        await call.say(f"data: {json.dumps({'choices': [{'delta': {'role': 'assistant'}}]})}\n\n")
        await call.say(chunk("Hel") + chunk("lo ☃")[:30])
        await call.say(chunk("lo ☃")[30:] + chunk(finish="stop"))
        await call.say(
            f"data: {json.dumps({'choices': [], 'usage': {'prompt_tokens': 7, 'completion_tokens': 2}})}\n\n"
        )
        await call.say("data: [DONE]\n\n")
        await call.end()

    async with serving(handler) as server:
        client = ChatClient(server.url + "/v1/", "nbl_a_b")
        opened, first, second, done = await collect(client)
        await client.aclose()
    assert isinstance(opened, ChatOpened)
    assert (opened.replica, opened.decision, opened.overhead_ms) == ("demo-r2", "pinned", 0.4)
    assert isinstance(first, ChatDelta)
    assert first.text == "Hel"
    assert first.ttft_seconds is not None
    assert second == ChatDelta("lo ☃", None)
    assert isinstance(done, ChatDone)
    assert (done.finish_reason, done.prompt_tokens, done.completion_tokens) == ("stop", 7, 2)
    call = server.calls[0]
    assert call.path == "/v1/chat/completions"
    assert call.headers["x-nebula-replica"] == "demo-r2"
    assert call.headers["authorization"] == "Bearer nbl_a_b"
    body = json.loads(call.body)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert "seed" not in body


@pytest.mark.parametrize(
    ("status", "kind"), [(401, NotAllowed), (403, NotAllowed), (404, NotFound), (429, Refused), (502, Refused)]
)
async def test_refusals(status: int, kind: type[NebulaError]) -> None:
    async def handler(call: Call) -> None:
        await call.answer(status, json.dumps({"error": {"message": "not now", "hint": "later"}}))

    async with serving(handler) as server:
        client = ChatClient(server.url, None)
        with pytest.raises(kind, match=r"not now\. later"):
            await collect(client)
        await client.aclose()


@pytest.mark.parametrize(
    ("last", "kind", "words"),
    [
        (
            'event: error\ndata: {"error":{"message":"the engine died","code":"engine_died"}}\n\n',
            Refused,
            "the engine died",
        ),
        ('data: {"error":{"message":"overloaded"}}\n\n', Refused, "overloaded"),
        ("data: nonsense\n\n", Garbled, "not JSON"),
        ("data: [1]\n\n", Garbled, "not an object"),
        ("", Refused, "broke off before its end"),
    ],
)
async def test_errors_in_the_middle_come_after_the_text(last: str, kind: type[NebulaError], words: str) -> None:
    async def handler(call: Call) -> None:
        await call.stream()
        await call.say(chunk("half"))
        if last:
            await call.say(last)
        await call.end()

    async with serving(handler) as server:
        client = ChatClient(server.url, None)
        seen: list[ChatEvent] = []

        async def read() -> None:
            async for event in client.stream(ASK):
                seen.append(event)

        with pytest.raises(kind, match=words):
            await read()
        assert any(isinstance(event, ChatDelta) and event.text == "half" for event in seen)
        await client.aclose()


async def test_a_connection_that_breaks_and_one_that_is_not_there() -> None:
    async def handler(call: Call) -> None:
        await call.stream()
        await call.say(chunk("half"))
        call.cut()

    async with serving(handler) as server:
        client = ChatClient(server.url, None)
        with pytest.raises(Unreachable):
            await collect(client)
        await client.aclose()
    with refusing_port() as port:
        nobody = ChatClient(f"http://127.0.0.1:{port}/v1", None)
        with pytest.raises(Unreachable, match="is the proxy running"):
            await collect(nobody)
        await nobody.aclose()


async def test_leaving_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.stream()
        try:
            while True:
                await call.say(chunk("x"))
                await asyncio.sleep(0.005)
        except ConnectionError:
            gone.set()

    async with serving(handler) as server:
        client = ChatClient(server.url, None)
        stream = client.stream(ASK)
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        async with asyncio.timeout(60):
            await gone.wait()
        await client.aclose()
