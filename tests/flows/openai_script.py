"""Sixty calls of the official `openai` client against an address, numbered, sync or async (GOALS E2).

    python tests/flows/openai_script.py --base-url http://127.0.0.1:8081/v1 --api-key nbl_… --model demo [--sync]

Each call is a coroutine that raises when the answer is not what the client's user may expect. It asks through a `Driver`,
which hides whether the client is the sync or the async one. `NEEDS` says what a call wants of the address beside a model
that chats: `embed` an embedding model, `shaped` an engine that keeps to schemas and calls tools, `limited` a second key
with one request open at most, `spare_core` an engine that leaves the client a core. Without it the call is left out and said so.
"""

import argparse
import asyncio
import base64
import json
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from pydantic import BaseModel

USER = [{"role": "user", "content": "Tell me about rivers."}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city", "days"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "A forecast.", "parameters": WEATHER}}]
FLAT_TOOLS = [{"type": "function", "name": "weather", "description": "A forecast.", "parameters": WEATHER}]
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()


class City(BaseModel):
    name: str
    inhabitants: int


@dataclass
class Target:
    base_url: str
    api_key: str
    model: str
    embedding_model: str | None = None
    #: A key that may have one request open.
    limited_key: str | None = None
    shaped: bool = True
    #: The model takes pictures, or pretends to.
    pictures: bool = True
    #: The engine leaves the client a core while it works, so that the client's own clock can be judged.
    spare_core: bool = True


@dataclass
class Driver:
    """One client, sync or async, asked in one way."""

    target: Target
    asynchronous: bool
    made: list[Any] = field(default_factory=list)

    def client(self, **options: Any) -> Any:
        kind = openai.AsyncOpenAI if self.asynchronous else openai.OpenAI
        given = {"base_url": self.target.base_url, "api_key": self.target.api_key, "max_retries": 0, "timeout": 30.0}
        made = kind(**(given | options))
        self.made.append(made)
        return made

    async def do(self, function: Callable[..., Any], *args: Any, **fields: Any) -> Any:
        if self.asynchronous:
            given = function(*args, **fields)
            return await given if isinstance(given, Awaitable) else given
        return await asyncio.to_thread(function, *args, **fields)

    async def items(self, stream: Any) -> list[Any]:
        if self.asynchronous:
            return [item async for item in stream]
        return await asyncio.to_thread(list, stream)

    async def first(self, stream: Any) -> Any:
        if self.asynchronous:
            return await anext(aiter(stream))
        return await asyncio.to_thread(next, iter(stream))

    async def chat(self, client: Any = None, **fields: Any) -> Any:
        client = client or self.client()
        asked = {"model": self.target.model, "messages": USER, "max_tokens": 12} | fields
        return await self.do(client.chat.completions.create, **asked)

    async def respond(self, **fields: Any) -> Any:
        asked = {"model": self.target.model, "input": "Tell me about rivers.", "max_output_tokens": 12} | fields
        return await self.do(self.client().responses.create, **asked)

    async def close(self) -> None:
        for made in self.made:
            await self.do(made.close)


Step = Callable[[Driver], Awaitable[None]]
STEPS: list[tuple[Step, frozenset[str]]] = []


def step(*needs: str) -> Callable[[Step], Step]:
    def note(function: Step) -> Step:
        STEPS.append((function, frozenset(needs)))
        return function

    return note


async def raises(kind: type[BaseException], waiting: Awaitable[Any]) -> Any:
    try:
        await waiting
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# Models


@step()
async def the_models_are_listed(on: Driver) -> None:
    page = await on.do(on.client().models.list)
    assert on.target.model in [model.id for model in page.data]


@step()
async def a_model_is_retrieved(on: Driver) -> None:
    model = await on.do(on.client().models.retrieve, on.target.model)
    assert (model.id, model.object) == (on.target.model, "model")


@step()
async def a_model_that_is_none_is_not_found(on: Driver) -> None:
    error = await raises(openai.NotFoundError, on.do(on.client().models.retrieve, "no-such-model"))
    assert error.code == "model_not_found"


# Chat


@step()
async def a_chat(on: Driver) -> None:
    answer = await on.chat()
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content


@step()
async def its_usage_adds_up(on: Driver) -> None:
    usage = (await on.chat()).usage
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
    assert 0 < usage.completion_tokens <= 12


@step()
async def a_chat_that_is_cut_off_says_length(on: Driver) -> None:
    answer = await on.chat(max_tokens=2, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


@step()
async def a_chat_by_the_newer_name_of_its_limit(on: Driver) -> None:
    asked = {"max_tokens": openai.NOT_GIVEN, "max_completion_tokens": 3, "extra_body": {"ignore_eos": True}}
    assert (await on.chat(**asked)).usage.completion_tokens == 3


@step()
async def a_chat_of_several_turns(on: Driver) -> None:
    turns = [
        {"role": "system", "content": "Be short."},
        *USER,
        {"role": "assistant", "content": "They flow."},
        {"role": "user", "content": "Where to?"},
    ]
    longer = await on.chat(messages=turns)
    assert longer.usage.prompt_tokens > (await on.chat()).usage.prompt_tokens


@step()
async def a_chat_at_temperature_0_is_the_same_twice(on: Driver) -> None:
    texts = [(await on.chat(temperature=0)).choices[0].message.content for _ in range(2)]
    assert texts[0] == texts[1]


@step()
async def a_seed_makes_chance_repeat_itself(on: Driver) -> None:
    texts = [(await on.chat(temperature=1, seed=7)).choices[0].message.content for _ in range(2)]
    assert texts[0] == texts[1]


@step()
async def two_choices(on: Driver) -> None:
    answer = await on.chat(n=2, temperature=1)
    assert sorted(choice.index for choice in answer.choices) == [0, 1]


@step()
async def a_stop_string_ends_it(on: Driver) -> None:
    whole = (await on.chat(temperature=0, max_tokens=24)).choices[0].message.content
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    answer = await on.chat(temperature=0, max_tokens=24, stop=[middle])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == whole[: whole.index(middle)]


@step()
async def log_probabilities(on: Driver) -> None:
    answer = await on.chat(logprobs=True, top_logprobs=2, max_tokens=3)
    content = answer.choices[0].logprobs.content
    assert 1 <= len(content) <= 3
    assert all(token.logprob <= 0 and len(token.top_logprobs) >= 2 for token in content)


@step()
async def fields_of_the_engine_go_along(on: Driver) -> None:
    answer = await on.chat(extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True})
    assert answer.usage.completion_tokens == 12


@step()
async def the_raw_response_says_who_answered(on: Driver) -> None:
    raw = await on.do(
        on.client().chat.completions.with_raw_response.create, model=on.target.model, messages=USER, max_tokens=2
    )
    assert raw.status_code == 200
    assert raw.headers["x-nebula-replica"]
    assert raw.headers["x-nebula-decision"]
    assert float(raw.headers["x-nebula-overhead-ms"]) >= 0
    assert raw.parse().choices


@step()
async def the_request_id_is_the_clients(on: Driver) -> None:
    answer = await on.chat(extra_headers={"x-request-id": "script-17"})
    assert answer._request_id == "script-17"


@step("pictures")
async def a_picture_goes_along(on: Driver) -> None:
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    assert (await on.chat(messages=[{"role": "user", "content": content}])).choices


@step()
async def content_in_parts(on: Driver) -> None:
    parts = [{"type": "text", "text": "Tell me"}, {"type": "text", "text": "about rivers."}]
    assert (await on.chat(messages=[{"role": "user", "content": parts}])).choices[0].message.content


# Streams


@step()
async def a_stream_says_what_the_chat_says(on: Driver) -> None:
    chunks = await on.items(await on.chat(stream=True, temperature=0))
    assert text_of(chunks) == (await on.chat(temperature=0)).choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1


@step()
async def its_role_comes_first_and_its_reason_last(on: Driver) -> None:
    chunks = await on.items(await on.chat(stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in {"stop", "length"}


@step()
async def a_stream_without_usage_has_none(on: Driver) -> None:
    chunks = await on.items(await on.chat(stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert all(chunk.choices for chunk in chunks)


@step()
async def a_stream_with_usage_ends_with_it(on: Driver) -> None:
    asked = {"stream_options": {"include_usage": True}, "extra_body": {"ignore_eos": True}}
    chunks = await on.items(await on.chat(stream=True, **asked))
    assert chunks[-1].usage.completion_tokens == 12
    assert chunks[-1].choices == []


@step()
async def a_stream_of_two_choices(on: Driver) -> None:
    chunks = await on.items(await on.chat(stream=True, n=2, temperature=1))
    assert {chunk.choices[0].index for chunk in chunks if chunk.choices} == {0, 1}


@step()
async def a_stream_with_log_probabilities(on: Driver) -> None:
    chunks = await on.items(await on.chat(stream=True, logprobs=True, top_logprobs=1, max_tokens=4))
    assert sum(
        len(chunk.choices[0].logprobs.content) for chunk in chunks if chunk.choices and chunk.choices[0].logprobs
    )


@step()
async def a_stream_that_is_left_can_be_left(on: Driver) -> None:
    stream = await on.chat(stream=True, max_tokens=500, extra_body={"ignore_eos": True})
    await on.first(stream)
    await on.do(stream.close)


@step()
async def the_raw_lines_of_a_stream(on: Driver) -> None:
    client = on.client()
    asked = {"model": on.target.model, "messages": USER, "max_tokens": 3, "stream": True}
    headers = {"authorization": f"Bearer {on.target.api_key}"}
    url = f"{on.target.base_url}/chat/completions"
    raw = await asyncio.to_thread(httpx.post, url, json=asked, headers=headers, timeout=30)
    assert raw.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in raw.text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-1])
    assert client


@step()
async def the_helper_that_puts_a_stream_together(on: Driver) -> None:
    whole = (await on.chat(temperature=0)).choices[0].message.content
    # The helper takes a text that was cut off for an error, so it is stopped before.
    asked = {"model": on.target.model, "messages": USER, "max_tokens": 12, "temperature": 0, "stop": [whole[-2:]]}
    manager = on.client().chat.completions.stream(**asked)
    if on.asynchronous:
        async with manager as stream:
            events = [event async for event in stream]
            final = await stream.get_final_completion()
    else:

        def follow() -> tuple[list[Any], Any]:
            with manager as stream:
                return list(stream), stream.get_final_completion()

        events, final = await asyncio.to_thread(follow)
    assert {"chunk", "content.delta"} <= {event.type for event in events}
    assert whole.startswith(final.choices[0].message.content)


# Tools and shapes


@step("shaped")
async def a_tool_must_be_called(on: Driver) -> None:
    answer = await on.chat(tools=TOOLS, tool_choice="required", max_tokens=100)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments).keys() == {"city", "days"}
    assert answer.choices[0].finish_reason == "tool_calls"


@step("shaped")
async def a_tool_is_named(on: Driver) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = await on.chat(tools=TOOLS, tool_choice=choice, max_tokens=100)
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments)["days"] >= 1


@step("shaped")
async def a_tool_call_streams(on: Driver) -> None:
    chunks = await on.items(await on.chat(tools=TOOLS, tool_choice="required", max_tokens=100, stream=True))
    calls = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in calls if call.function.name] == ["weather"]
    assert json.loads("".join(call.function.arguments or "" for call in calls)).keys() == {"city", "days"}


@step()
async def a_tools_answer_goes_back(on: Driver) -> None:
    function = {"name": "weather", "arguments": '{"city":"Ulm","days":1}'}
    turns = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    assert (await on.chat(messages=turns)).choices[0].message.content


@step()
async def tools_need_not_be_called(on: Driver) -> None:
    answer = await on.chat(tools=TOOLS, tool_choice="none")
    assert not answer.choices[0].message.tool_calls


@step("shaped")
async def an_answer_by_schema(on: Driver) -> None:
    schema = {"name": "city", "schema": City.model_json_schema(), "strict": True}
    answer = await on.chat(response_format={"type": "json_schema", "json_schema": schema}, max_tokens=100)
    City.model_validate_json(answer.choices[0].message.content)


@step("shaped")
async def an_answer_as_json(on: Driver) -> None:
    answer = await on.chat(response_format={"type": "json_object"}, max_tokens=100)
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


@step("shaped")
async def an_answer_parsed_by_the_client(on: Driver) -> None:
    asked = {"model": on.target.model, "messages": USER, "response_format": City, "max_tokens": 100}
    answer = await on.do(on.client().chat.completions.parse, **asked)
    assert isinstance(answer.choices[0].message.parsed, City)


@step("shaped")
async def a_tool_call_parsed_by_the_client(on: Driver) -> None:
    tool = openai.pydantic_function_tool(City, name="found")
    asked = {"model": on.target.model, "messages": USER, "tools": [tool], "max_tokens": 100}
    answer = await on.do(on.client().chat.completions.parse, tool_choice="required", **asked)
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, City)


# Completions


@step()
async def a_completion(on: Driver) -> None:
    asked = {"model": on.target.model, "prompt": "The river", "max_tokens": 6}
    answer = await on.do(on.client().completions.create, **asked)
    assert answer.object == "text_completion"
    assert answer.choices[0].text


@step()
async def a_completion_streams(on: Driver) -> None:
    asked = {"model": on.target.model, "prompt": "The river", "max_tokens": 6, "temperature": 0}
    client = on.client()
    chunks = await on.items(await on.do(client.completions.create, **asked, stream=True))
    whole = (await on.do(client.completions.create, **asked)).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole


@step()
async def completions_of_two_prompts(on: Driver) -> None:
    asked = {"model": on.target.model, "prompt": ["The river", "The sea"], "max_tokens": 3}
    answer = await on.do(on.client().completions.create, **asked)
    assert [choice.index for choice in answer.choices] == [0, 1]


@step()
async def a_completion_of_token_ids(on: Driver) -> None:
    asked = {"model": on.target.model, "prompt": [5, 6, 7], "max_tokens": 3}
    assert (await on.do(on.client().completions.create, **asked)).usage.prompt_tokens == 3


# Embeddings


@step("embed")
async def an_embedding(on: Driver) -> None:
    asked = {"model": on.target.embedding_model, "input": "rivers"}
    answer = await on.do(on.client().embeddings.create, **asked)
    assert abs(sum(value * value for value in answer.data[0].embedding) - 1) < 0.01


@step("embed")
async def embeddings_of_a_list_as_base64(on: Driver) -> None:
    asked = {"model": on.target.embedding_model, "input": ["a", "b", "c"], "encoding_format": "base64"}
    answer = await on.do(on.client().embeddings.create, **asked)
    assert [entry.index for entry in answer.data] == [0, 1, 2]


@step("embed")
async def embeddings_as_floats(on: Driver) -> None:
    asked = {"model": on.target.embedding_model, "input": ["a", "b"], "encoding_format": "float"}
    answer = await on.do(on.client().embeddings.create, **asked)
    assert all(isinstance(value, float) for entry in answer.data for value in entry.embedding)


# Responses


@step()
async def a_response(on: Driver) -> None:
    answer = await on.respond()
    assert answer.id.startswith("resp_")
    assert answer.output_text
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


@step()
async def a_response_of_items(on: Driver) -> None:
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Tell me about rivers."}]}]
    answer = await on.respond(input=items, instructions="Be short.", temperature=0)
    assert answer.output[0].content[0].type == "output_text"


@step()
async def a_response_that_is_cut_off_is_incomplete(on: Driver) -> None:
    answer = await on.respond(max_output_tokens=2, extra_body={"ignore_eos": True})
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"


@step()
async def a_response_streams_in_its_whole_sequence(on: Driver) -> None:
    events = await on.items(await on.respond(stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:-1] == ["output_text.done", "content_part.done", "output_item.done"]
    assert kinds[-1] in {"completed", "incomplete"}
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))


@step()
async def the_text_of_a_stream_is_the_text_of_the_response(on: Driver) -> None:
    events = await on.items(await on.respond(stream=True, temperature=0))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == (await on.respond(temperature=0)).output_text


@step("shaped")
async def a_response_calls_a_tool(on: Driver) -> None:
    answer = await on.respond(tools=FLAT_TOOLS, tool_choice="required", max_output_tokens=100)
    (call,) = answer.output
    assert (call.type, call.name) == ("function_call", "weather")
    assert json.loads(call.arguments).keys() == {"city", "days"}


@step("shaped")
async def a_response_streams_a_tool_call(on: Driver) -> None:
    asked = {"tools": FLAT_TOOLS, "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 100}
    events = await on.items(await on.respond(stream=True, **asked))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[2] == "output_item.added"
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    parts = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert json.loads(parts) == json.loads(events[-1].response.output[0].arguments)


@step("shaped")
async def a_response_parsed_by_the_client(on: Driver) -> None:
    asked = {"model": on.target.model, "input": "A city?", "text_format": City, "max_output_tokens": 100}
    answer = await on.do(on.client().responses.parse, **asked)
    assert isinstance(answer.output_parsed, City)


@step()
async def a_response_to_a_tools_answer(on: Driver) -> None:
    items = [
        {"role": "user", "content": "Weather?"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Ulm","days":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]
    assert (await on.respond(input=items)).output_text


# Errors, retries, limits


@step()
async def a_wrong_key(on: Driver) -> None:
    error = await raises(openai.AuthenticationError, on.chat(on.client(api_key="nbl_no_such")))
    assert (error.status_code, error.code, error.type) == (401, "invalid_api_key", "authentication_error")


@step()
async def a_model_nobody_has(on: Driver) -> None:
    error = await raises(openai.NotFoundError, on.chat(model="no-such-model"))
    assert (error.code, error.param) == ("model_not_found", "model")
    assert error.body["hint"]


@step()
async def an_error_of_the_engine_is_the_engines(on: Driver) -> None:
    error = await raises(openai.BadRequestError, on.chat(temperature=-1))
    assert "temperature" in error.message


@step()
async def too_many_choices_are_refused(on: Driver) -> None:
    error = await raises(openai.BadRequestError, on.chat(n=9))
    assert (error.code, error.param) == ("invalid_request", "n")


@step()
async def a_prompt_that_is_too_long(on: Driver) -> None:
    long = [{"role": "user", "content": "river " * 60_000}]
    error = await raises(openai.BadRequestError, on.chat(messages=long, stream=True))
    assert "context length" in error.message


@step("spare_core")
async def a_client_that_does_not_wait(on: Driver) -> None:
    # Beside a real vLLM on two cores a read that may take 1 ms was seen to return after 1.6 s, with the whole answer.
    asked = {"n": 8, "max_tokens": 6000, "extra_body": {"ignore_eos": True}, "timeout": 0.001}
    await raises(openai.APITimeoutError, on.chat(**asked))


@step("limited")
async def a_refused_client_waits_as_it_is_told_and_is_served(on: Driver) -> None:
    key = on.target.limited_key
    # More than fits into the buffers on the way, so that it is open until it is closed.
    holding = {"n": 8, "max_tokens": 6000, "extra_body": {"ignore_eos": True}}
    stream = await on.chat(on.client(api_key=key), stream=True, **holding)
    await on.first(stream)
    error = await raises(openai.RateLimitError, on.chat(on.client(api_key=key)))
    assert error.response.headers["x-should-retry"] == "true"
    seen: list[tuple[int, float, float]] = []

    def note(response: httpx.Response) -> None:
        seen.append((response.status_code, float(response.headers.get("retry-after", 0)), time.monotonic()))

    async def note_later(response: httpx.Response) -> None:
        note(response)

    http = (
        httpx.AsyncClient(event_hooks={"response": [note_later]})
        if on.asynchronous
        else httpx.Client(event_hooks={"response": [note]})
    )
    waiting = asyncio.create_task(on.chat(on.client(api_key=key, max_retries=2, http_client=http)))
    while not seen:
        await asyncio.sleep(0.01)
    await on.do(stream.close)
    assert (await waiting).choices
    (refused, told, when), (served, _, later) = seen
    assert (refused, served) == (429, 200)
    assert later - when >= told * 0.9


@step()
async def many_at_once(on: Driver) -> None:
    client = on.client()
    answers = await asyncio.gather(*(on.chat(client, temperature=0) for _ in range(16)))
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert len({answer.id for answer in answers}) == 16


@dataclass
class Result:
    number: int
    name: str
    #: None when it passed, "" when it was left out.
    problem: str | None


def _told(error: Exception) -> str:
    line = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} at {line.name}: {line.line}"[:500]


async def run(target: Target, *, asynchronous: bool) -> AsyncIterator[Result]:
    """All calls, one after the other."""
    having = {
        name
        for name, there in (
            ("embed", target.embedding_model),
            ("limited", target.limited_key),
            ("shaped", target.shaped),
            ("pictures", target.pictures),
            ("spare_core", target.spare_core),
        )
        if there
    }
    for number, (function, needs) in enumerate(STEPS, 1):
        name = function.__name__.replace("_", " ")
        if not needs <= having:
            yield Result(number, name, "")
            continue
        driver = Driver(target, asynchronous)
        try:
            async with asyncio.timeout(60):
                await function(driver)
            yield Result(number, name, None)
        except Exception as error:
            yield Result(number, name, _told(error))
        finally:
            await driver.close()


async def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--base-url", "--api-key", "--model"):
        parser.add_argument(name, required=True)
    parser.add_argument("--embedding-model")
    parser.add_argument("--limited-key")
    parser.add_argument("--sync", action="store_true")
    parser.add_argument(
        "--plain", action="store_true", help="a small model on the CPU: no schema, no pictures, no core to spare"
    )
    given = parser.parse_args()
    target = Target(
        given.base_url, given.api_key, given.model, given.embedding_model, given.limited_key,
        shaped=not given.plain, pictures=not given.plain, spare_core=not given.plain,
    )  # fmt: skip
    failed = 0
    async for result in run(target, asynchronous=not given.sync):
        word = {None: "ok", "": "left out"}.get(result.problem, result.problem)
        failed += word == result.problem
        print(f"{result.number:3} {result.name}: {word}")  # noqa: T201 - a script
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(_main()))
