"""What only the simulated engine is asked for: saying that it is one, keys, pooling, tools, schemas, preemption."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import openai
import pytest

from tests.contracts.engine.shapes import captures, families, frames, shape, total
from tests.support.engine_process import SimulatedEngine
from tests.support.responses import check_grammar, parse

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Callable[..., httpx.AsyncClient]]:
    engines: list[SimulatedEngine] = []
    clients: list[httpx.AsyncClient] = []

    def begin(*arguments: str, **environment: str) -> httpx.AsyncClient:
        engines.append(SimulatedEngine(tmp_path, "--preset", "instant", *arguments, environment=environment))
        url = engines[-1].wait_ready().url
        clients.append(httpx.AsyncClient(base_url=url, timeout=30.0, trust_env=False))
        return clients[-1]

    yield begin
    for client in clients:
        await client.aclose()
    for engine in engines:
        engine.kill()


async def test_nobody_can_mistake_it_for_a_real_engine(serve):
    client = serve("--served-model-name", "demo")
    version = await client.get("/version")
    assert version.json() == {"version": "0.32.0", "simulated": True}
    assert version.headers["server"] == "nebula-simulator"
    assert version.headers["x-nebula-simulated"] == "1"
    assert (await client.get("/v1/models")).json()["data"][0]["owned_by"] == "nebula-simulator"
    assert total((await client.get("/metrics")).text, "nebula_simulated_engine") == 1
    reply = (await client.post(CHAT, json={"messages": HELLO})).json()
    assert "simulated" in reply["choices"][0]["message"]["content"]
    assert "simulated" in reply["system_fingerprint"]


async def test_a_key_guards_v1_and_nothing_else(serve, tmp_path):
    file = tmp_path / "key"
    file.write_text("secret\n")
    client = serve("--api-key-file", str(file), VLLM_API_KEY="other")
    for headers in (
        {},
        {"authorization": "Bearer bad"},
        {"authorization": "secret"},
        {"authorization": "Basic secret"},
    ):
        refused = await client.get("/v1/models", headers=headers)
        assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
        assert "vary" not in refused.headers
    for key in ("secret", "other"):
        assert (await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200
    for path in ("/health", "/metrics", "/version", "/load", "/ping"):
        assert (await client.get(path)).status_code == 200
    assert (await client.post("/tokenize", json={"prompt": "x"})).status_code == 200


async def test_a_pooling_server_embeds_and_does_not_chat(serve):
    client = serve("--runner", "pooling", "--served-model-name", "tiny")
    assert (await client.post(CHAT, json={"messages": HELLO})).json() == {"detail": "Not Found"}
    body = {"model": "tiny", "input": ["a", "b"]}
    plain = (await client.post("/v1/embeddings", json=body)).json()
    coded = (await client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})).json()
    head = captures("embeddings")[0].body.partition('"embedding":')[0]
    assert [name for name, _ in shape(plain)][:5] == [
        name for name, _ in shape(json.loads(head.partition(',"data"')[0] + "}"))
    ] + ["data"]
    for one, other in zip(plain["data"], coded["data"], strict=True):
        vector = struct.unpack("<128f", base64.b64decode(other["embedding"]))
        assert vector == pytest.approx(one["embedding"], abs=1e-6)
        assert sum(value * value for value in vector) == pytest.approx(1.0, abs=1e-5)
    assert plain["data"][0]["embedding"] != plain["data"][1]["embedding"]
    assert plain["usage"]["prompt_tokens"] == 2


async def test_a_pooling_server_scores_and_ranks(serve):
    client = serve("--runner", "pooling")
    documents = ["nothing alike", "red house by the river", "the red river"]
    body = {"query": "the red river", "documents": documents}
    ranked = (await client.post("/v1/rerank", json=body)).json()
    assert [result["index"] for result in ranked["results"]] == [2, 1, 0]
    assert ranked["results"][0]["document"] == {"text": "the red river", "multi_modal": None}
    assert ranked["results"][0]["relevance_score"] == 1.0
    assert len((await client.post("/rerank", json={**body, "top_n": 1})).json()["results"]) == 1
    scored = (await client.post("/v1/score", json={"text_1": "the red river", "text_2": documents})).json()
    by_index = {result["index"]: result["relevance_score"] for result in ranked["results"]}
    assert {one["index"]: one["score"] for one in scored["data"]} == by_index
    assert (await client.post("/v1/score", json={"text_1": "x"})).status_code == 400
    assert (await client.post("/v1/score", json={"text_1": ["a", "b"], "text_2": ["a", "b", "c"]})).status_code == 400


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_forced_tool_call_streamed_and_whole(serve, choice):
    client = serve()
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    body: dict[str, Any] = {"messages": HELLO, "tools": tools, "tool_choice": choice}
    named = choice != "required"
    whole = (await client.post(CHAT, json=body)).json()["choices"][0]
    call = whole["message"]["tool_calls"][0]
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "simulated"}
    assert whole["finish_reason"] == ("stop" if named else "tool_calls")
    seen = [frame.data for frame in frames((await client.post(CHAT, json={**body, "stream": True})).text)][1:-1]
    calls = [delta["tool_calls"][0] for one in seen if "tool_calls" in (delta := one["choices"][0]["delta"])]
    assert calls[0]["function"]["name"] == "weather"
    assert "".join(one["function"]["arguments"] for one in calls) == call["function"]["arguments"]
    assert seen[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


async def test_an_answer_that_has_to_fit_a_schema_fits_and_can_be_resumed(serve):
    client = serve()
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    shaped = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
    reply = (await client.post(CHAT, json={"messages": HELLO, "return_token_ids": True, **shaped})).json()
    choice = reply["choices"][0]
    assert json.loads(choice["message"]["content"]) == {"ok": True}
    assert choice["finish_reason"] == "stop"
    prompt = reply["prompt_token_ids"] + choice["token_ids"][:2]
    rest = (
        await client.post(
            "/v1/completions", json={"prompt": prompt, "max_tokens": 50, "return_token_ids": True, **shaped}
        )
    ).json()
    assert choice["token_ids"][:2] + rest["choices"][0]["token_ids"] == choice["token_ids"]


async def test_too_few_blocks_lead_to_preemption_and_everybody_finishes(serve):
    # Steps take a millisecond: of an instant engine the first requests are answered before a busy client has sent the third.
    client = serve(
        *("--preset", "tiny", "--speed", "3", "--max-model-len", "512", "--max-num-seqs", "16"),
        *("--num-gpu-blocks", "33", "--block-size", "16"),
    )
    body = {"messages": HELLO, "max_tokens": 200, "ignore_eos": True}
    replies = await asyncio.gather(*(client.post(CHAT, json=body) for _ in range(20)))
    assert [reply.json()["choices"][0]["finish_reason"] for reply in replies] == ["length"] * 20
    text = (await client.get("/metrics")).text
    preemptions = total(text, "vllm:num_preemptions_total")
    assert preemptions > 0
    assert total(text, "vllm:request_num_preemptions_sum") == preemptions
    assert total(text, "vllm:generation_tokens_total") == 4000
    assert total(text, "vllm:num_requests_running") == total(text, "vllm:num_requests_waiting") == 0


async def test_the_prefix_cache_is_reset_in_development_mode_only(serve):
    assert (await serve().post("/reset_prefix_cache")).status_code == 404
    client = serve("--dev-mode")
    tokens = {"prompt": list(range(300, 400)), "max_tokens": 1}

    async def hits() -> float:
        await client.post("/v1/completions", json=tokens)
        return total((await client.get("/metrics")).text, "vllm:prefix_cache_hits_total")

    assert [await hits(), await hits()] == [0, 96]
    assert (await client.post("/reset_prefix_cache")).json() == {"success": True}
    assert await hits() == 96


async def test_without_prefix_caching_nothing_is_looked_up(serve):
    client = serve("--no-enable-prefix-caching")
    for _ in range(2):
        await client.post("/v1/completions", json={"prompt": list(range(300, 400)), "max_tokens": 1})
    text = (await client.get("/metrics")).text
    assert total(text, "vllm:prefix_cache_queries_total") == total(text, "vllm:prefix_cache_hits_total") == 0


async def test_the_official_client_is_content(serve):
    http = serve("--served-model-name", "demo")
    async with openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["demo"]
        stream = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            temperature=0,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        whole = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "hello"}], temperature=0
        )
        assert whole.choices[0].message.content == text
        assert chunks[-1].usage == whole.usage.model_copy(
            update={"prompt_tokens_details": None, "completion_tokens_details": None}
        )
        answer = await client.responses.create(model="demo", input="hello", temperature=0)
        assert answer.output_text == text
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="nope", prompt="x")


#: What clients get wrong, and worse.
ODD_VALUES = [
    *(None, True, 0, -1, 3.5, 10**30, "", "x", "required", [], [1], [[1, 2]], [None], [{}], {}, {"function": 5}),
    *("\ud800", [{"role": "user", "content": "\ud800"}], [{"role": "user", "content": [{"type": "text", "text": 5}]}]),
    {"type": "json_schema", "json_schema": {"schema": {"type": "array", "minItems": "x"}}},
    [{"type": "function", "function": {"name": "f", "parameters": {"properties": 5}}}],
]
ODD_FIELDS = [
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "stop_token_ids",
    "seed",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "echo",
    "tools",
    "tool_choice",
    "response_format",
    "structured_outputs",
    "continue_final_message",
    "ignore_eos",
    "min_tokens",
    "input",
    "instructions",
    "max_output_tokens",
    "system",
    "stop_sequences",
    "tokens",
    "request_id",
    "metadata",
]


async def test_no_body_makes_it_fail(serve):
    client = serve()
    random = Random(5)
    sound = {"messages": HELLO, "prompt": "x", "input": "x", "tokens": [1], "max_tokens": 2, "max_output_tokens": 2}
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize", "/detokenize")
    for _ in range(400):
        body = sound | {random.choice(ODD_FIELDS): random.choice(ODD_VALUES) for _ in range(random.randint(1, 3))}
        reply = await client.post(
            random.choice(paths), content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert reply.status_code < 500, body
        assert not reply.text.startswith('data: {"error"'), body


async def test_metrics_say_the_settings_of_the_cache(serve):
    client = serve("--num-gpu-blocks", "600", "--block-size", "16")
    text = (await client.get("/metrics")).text
    assert (
        total(text, "vllm:cache_config_info", num_gpu_blocks="600", block_size="16", kv_cache_size_tokens="9600") == 1
    )
    assert "vllm:num_requests_running" in families(text)


FORECAST = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
async def test_a_response_calls_a_forced_tool_in_the_whole_row_of_events(serve, choice):
    engine = serve()
    tools = [{"type": "function", "name": "weather", "parameters": FORECAST}]
    body = {"input": "Weather?", "tools": tools, "tool_choice": choice, "temperature": 0}
    whole = (await engine.post("/v1/responses", json=body)).json()
    (call,) = whole["output"]
    assert (call["type"], call["name"], whole["status"]) == ("function_call", "weather", "completed")
    events = parse((await engine.post("/v1/responses", json=body | {"stream": True})).content)
    final = check_grammar(events)
    assert json.loads(final["output"][0]["arguments"]) == json.loads(call["arguments"])
    assert json.loads(call["arguments"]).keys() == {"city"}


async def test_a_response_keeps_to_a_schema(serve):
    wanted = {"format": {"type": "json_schema", "name": "a", "schema": FORECAST}}
    answer = (await serve().post("/v1/responses", json={"input": "A city?", "text": wanted})).json()
    assert json.loads(answer["output"][0]["content"][0]["text"]).keys() == {"city"}


async def test_a_message_that_is_cut_off_inside_a_call(serve):
    tools = [{"name": "weather", "input_schema": FORECAST}]
    body = {"messages": HELLO, "tools": tools, "tool_choice": {"type": "any"}, "max_tokens": 1}
    answer = (await serve().post("/v1/messages", json=body)).json()
    assert answer["stop_reason"] == "max_tokens"
    assert answer["content"][0]["input"] == {}


async def test_a_picture_costs_tokens_and_is_looked_at_by_nobody(serve):
    engine = serve()
    text = {"type": "text", "text": "hi"}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    counts = []
    for parts in ([text], [text, picture]):
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
        counts.append((await engine.post("/v1/chat/completions", json=body)).json()["usage"]["prompt_tokens"])
    assert counts[0] < counts[1]
