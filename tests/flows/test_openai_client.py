"""The official client, sync and async, through the whole cluster: what it gets is what the engine alone gives."""

import asyncio

import httpx
import openai
import pytest

from tests.support.engine_process import SimulatedEngine
from tests.support.up import eventually

pytestmark = [pytest.mark.flow, pytest.mark.timeout(240)]
MESSAGES = [{"role": "user", "content": "What are you, and how do you count tokens?"}]


@pytest.fixture
def client(up):
    with openai.OpenAI(base_url=up.ready["openai_base_url"], api_key=up.ready["api_key"], max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def alone(up, tmp_path_factory):
    """The text of a simulated engine that nobody stands in front of."""
    with SimulatedEngine(tmp_path_factory.mktemp("alone"), "--served-model-name", "demo") as running:
        body = {"model": "demo", "messages": MESSAGES, "temperature": 0, "max_tokens": 48}
        chat = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=30).json()
        plain = {"model": "demo", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 32}
        text = httpx.post(f"{running.url}/v1/completions", json=plain, timeout=30).json()
        return chat["choices"][0]["message"]["content"], text["choices"][0]["text"]


def test_a_chat(client, alone):
    answer = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=48)
    assert answer.choices[0].message.content == alone[0]
    assert answer.usage.completion_tokens == 48 or answer.choices[0].finish_reason == "stop"


def test_a_streamed_chat(client, alone):
    stream = client.chat.completions.create(
        model="demo",
        messages=MESSAGES,
        temperature=0,
        max_tokens=48,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == alone[0]
    assert chunks[-1].usage is not None
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_completion_streamed_and_not(client, alone):
    ask = {"model": "demo", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 32}
    assert client.completions.create(**ask).choices[0].text == alone[1]
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True)) == alone[1]


async def test_the_async_client(up, alone):
    async with openai.AsyncOpenAI(
        base_url=up.ready["openai_base_url"], api_key=up.ready["api_key"], max_retries=0
    ) as client:

        async def ask():
            stream = await client.chat.completions.create(
                model="demo", messages=MESSAGES, temperature=0, max_tokens=48, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

        assert set(await asyncio.gather(*(ask() for _ in range(8)))) == {alone[0]}


def test_the_models(client):
    assert "demo" in [model.id for model in client.models.list()]
    assert client.models.retrieve("demo").id == "demo"


def test_errors_are_the_ones_the_client_knows(up, client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    stranger = openai.OpenAI(base_url=up.ready["openai_base_url"], api_key="nbl_no_such", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.chat.completions.create(model="demo", messages=MESSAGES)
    assert refused.value.code == "invalid_api_key"


def test_every_answer_says_who_gave_it(client, up):
    raw = client.chat.completions.with_raw_response.create(model="demo", messages=MESSAGES, max_tokens=2)
    assert raw.headers["x-nebula-replica"] in {row["id"] for row in up.replicas()}
    assert raw.headers["x-request-id"]
    assert raw.headers["x-nebula-decision"]
    assert float(raw.headers["x-nebula-overhead-ms"]) >= 0


def test_a_client_that_leaves_frees_the_engine(client, up):
    stream = client.chat.completions.create(
        model="demo", messages=MESSAGES, stream=True, max_tokens=20_000, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    eventually(lambda: all(row["inflight"] == 0 for row in up.replicas()), "nothing in flight", 30)
    eventually(
        lambda: all((row["sample"] or {}).get("requests_running", 0) == 0 for row in up.replicas()), "idle engines", 30
    )


def test_an_adapter_is_a_model_of_the_whole_cluster(client, up):
    """From the file of its deployment to the command line of its engine, to /v1/models, to a key of its own."""
    spec = {"source": "sim", "engine": "simulated", "replicas": 1, "gpus": 0}
    up.api("PUT", "/deployments/base", spec | {"adapters": [{"name": "sql", "source": "/lora/sql"}]})
    try:
        rows = eventually(lambda: [row for row in up.replicas("base") if row["phase"] == "ready"], "base is ready")
        ask = {"messages": MESSAGES, "max_tokens": 4}

        def listed():
            return {entry.id: entry for entry in client.models.list()}

        eventually(lambda: client.models.list() and "sql" in listed(), "the adapter is listed")
        assert (listed()["sql"].parent, listed()["base"].parent) == ("base", None)
        raw = eventually(lambda: _tried(client, ask | {"model": "sql"}), "the adapter answers")
        assert raw.headers["x-nebula-replica"] == rows[0]["id"]
        assert raw.parse().model == "sql"
        narrow = up.api("POST", "/keys", {"name": "narrow", "models": ["sql"]})["key"]
        with openai.OpenAI(base_url=up.ready["openai_base_url"], api_key=narrow, max_retries=0) as own:
            eventually(lambda: _names(own) == ["sql"], "the key is known")
            assert own.chat.completions.create(model="sql", **ask).choices
            with pytest.raises(openai.PermissionDeniedError):
                own.chat.completions.create(model="base", **ask)
    finally:
        up.api("DELETE", "/deployments/base")
    eventually(lambda: "sql" not in _names(client), "the adapter is gone")


def _tried(client, ask):
    try:
        return client.chat.completions.with_raw_response.create(**ask)
    except openai.APIStatusError:
        return None


def _names(client):
    try:
        return [entry.id for entry in client.models.list()]
    except openai.AuthenticationError:
        return None
