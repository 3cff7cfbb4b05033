"""The official `anthropic` client on `/v1/messages`: whole, streamed, with system, tools, counting and errors."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anthropic
import pytest

from tests.support.data_plane import MODEL, endpoint, model, running_plane
from tests.support.engine_process import SimulatedEngine
from tests.support.scripted_engine import STREAM_HEAD, Conversation, ScriptedEngine, chunked

pytestmark = pytest.mark.flow
USER = [{"role": "user", "content": "Tell me about rivers."}]
ASK = {"model": MODEL, "messages": USER, "max_tokens": 12}
TOOLS = [
    {
        "name": "weather",
        "description": "A forecast.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("engine")
    flags = ("--served-model-name", MODEL, "--preset", "instant", "--enable-auto-tool-choice")
    with SimulatedEngine(folder, *flags) as running:
        port = urlsplit(running.url).port
        assert port is not None
        yield port


@asynccontextmanager
async def clients(engine: int) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with (
        running_plane(model(endpoint("m-r0", engine, engine="vllm"))) as running,
        anthropic.AsyncAnthropic(base_url=running.url, api_key=running.token, max_retries=0) as client,
    ):
        yield client


async def test_a_message(engine: int) -> None:
    async with clients(engine) as client:
        message = await client.messages.create(**ASK)
        assert (message.role, message.model, message.content[0].type) == ("assistant", MODEL, "text")
        assert message.usage.output_tokens <= 12
        assert message.stop_reason in {"max_tokens", "end_turn"}
        plain = message.usage.input_tokens
        longer = await client.messages.create(**ASK, system="Be short, and speak of water alone.")
        assert longer.usage.input_tokens > plain


async def test_a_stream_says_what_the_message_says(engine: int) -> None:
    async with clients(engine) as client:
        whole = await client.messages.create(**ASK, extra_body={"temperature": 0})
        async with client.messages.stream(**ASK, extra_body={"temperature": 0}) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        assert text == whole.content[0].text == final.content[0].text
        assert final.usage.output_tokens == whole.usage.output_tokens
        events = [event.type async for event in await client.messages.create(**ASK, stream=True)]
        assert events[:2] == ["message_start", "content_block_start"]
        assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
async def test_a_tool_is_called_and_its_answer_goes_back(engine: int, choice: dict[str, str]) -> None:
    async with clients(engine) as client:
        asked = ASK | {"tools": TOOLS, "tool_choice": choice, "max_tokens": 100}
        message = await client.messages.create(**asked)
        (call,) = message.content
        assert (call.type, call.name, message.stop_reason) == ("tool_use", "weather", "tool_use")
        assert call.input.keys() == {"city"}
        async with client.messages.stream(**asked) as stream:
            final = await stream.get_final_message()
        assert final.content[0].input == call.input
        answer = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
        turns = [*USER, {"role": "assistant", "content": [call.model_dump()]}, {"role": "user", "content": [answer]}]
        after = await client.messages.create(**(ASK | {"messages": turns}), tools=TOOLS)
        assert after.content[0].type == "text"


async def test_tokens_are_counted(engine: int) -> None:
    async with clients(engine) as client:
        counted = await client.messages.count_tokens(model=MODEL, messages=USER)
        message = await client.messages.create(**ASK)
        assert counted.input_tokens == message.usage.input_tokens


async def test_errors_are_the_ones_the_client_knows(engine: int) -> None:
    async with clients(engine) as client:
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.messages.create(**(ASK | {"model": "nope"}))
        assert missing.value.body["error"]["code"] == "model_not_found"
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(**ASK, extra_body={"temperature": -1})
        with pytest.raises(anthropic.AuthenticationError):
            await client.with_options(api_key="nbl_no_such").messages.create(**ASK)
        left = await client.messages.create(**(ASK | {"max_tokens": 1000}), stream=True)
        await anext(aiter(left))
        await left.close()


async def test_a_stream_that_breaks_raises() -> None:
    start = (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"1","type":"message","role":"assistant"'
    )
    start += b',"content":[],"model":"m","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":0}}}\n\n'

    async def dies(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(start, end=False))
        conversation.close()

    async def follow(client: anthropic.AsyncAnthropic) -> list[str]:
        return [event.type async for event in await client.messages.create(**ASK, stream=True)]

    async with ScriptedEngine(dies) as broken, clients(broken.port) as client:
        with pytest.raises(anthropic.APIStatusError, match="cannot go on"):
            await follow(client)


async def test_the_sync_client_and_a_bearer_token(engine: int) -> None:
    def ask(url: str, token: str) -> str:
        with anthropic.Anthropic(base_url=url, auth_token=token, max_retries=0) as client:
            assert client.messages.create(**ASK).content[0].text
            with client.messages.stream(**ASK) as stream:
                return "".join(stream.text_stream)

    async with running_plane(model(endpoint("m-r0", engine, engine="vllm"))) as running:
        assert await asyncio.to_thread(ask, running.url, running.token)
