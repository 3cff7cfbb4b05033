"""What a client sends reaches the engine byte for byte, whatever it is and whoever reads along."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nebula_core.wire.openai import Facts, read_facts
from nebula_proxy.decisions.calls import CALLS
from tests.support.data_plane import MODEL, endpoint, model, running_plane
from tests.support.scripted_engine import Conversation, ScriptedEngine, answer, completion

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
USER = [{"role": "user", "content": "hi"}]
BODIES: dict[str, Any] = {
    "tools": {
        "messages": USER,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
    },
    "structured output": {
        "messages": USER,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        "structured_outputs": {"regex": "[a-z]{1,5}"},
    },
    "logprobs": {"messages": USER, "logprobs": True, "top_logprobs": 5, "logit_bias": {"7": -100}},
    "vision": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 5000}},
                    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
                ],
            }
        ]
    },
    "numbers": {"messages": USER, "temperature": 1e-7, "seed": 2**63, "big": 123456789012345678901234567890, "x": -0.0},
    "an engine's own": {
        "messages": USER,
        "chat_template_kwargs": {"enable_thinking": False},
        "vllm_xargs": {"a": [None]},
    },
    "documents": {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1},
    "embedding": {"input": [[1, 2, 3], [4]], "encoding_format": "base64", "dimensions": 8},
}


async def ok(conversation: Conversation) -> None:
    await conversation.send(answer(completion("x")))


@pytest.mark.parametrize("name", BODIES)
async def test_every_call_passes_every_body_byte_for_byte(hot: bool, engine: ScriptedEngine, name: str) -> None:
    engine.script = ok
    given = {"model": MODEL} | BODIES[name]
    forms = [
        json.dumps(given).encode(),
        json.dumps(given, indent=2, ensure_ascii=False).encode(),
        b"\r\n\t " + json.dumps(given, separators=(",", ":"), sort_keys=True).encode() + b"\n\n",
        json.dumps(given).replace('"model"', '"mod\\u0065l"').encode(),
    ]
    async with (
        running_plane(model(endpoint("m-r0", engine.port, engine="vllm")), hot_path=hot) as running,
        running.client() as client,
    ):
        for path in CALLS:
            for form in forms:
                engine.conversations.clear()
                headers = {"content-type": "application/json; charset=utf-8"}
                response = await client.post(path.decode(), content=form, headers=headers)
                assert response.status_code == 200
                (seen,) = engine.conversations
                assert (seen.path, seen.body) == (path, form)
                assert seen.headers[b"content-type"] == b"application/json; charset=utf-8"


@pytest.mark.parametrize("name", BODIES)
async def test_an_engine_with_another_name_for_its_model_gets_that_name_alone_changed(
    hot: bool, engine: ScriptedEngine, name: str
) -> None:
    engine.script = ok
    given = {"model": MODEL} | BODIES[name]
    theirs = endpoint("m-r0", engine.port, engine="external", served_model="Qwen/Qwen2.5-7B")
    async with running_plane(model(theirs), hot_path=hot) as running, running.client() as client:
        sent = json.dumps(given, separators=(",", ":")).encode()
        response = await client.post("/v1/chat/completions", content=sent)
        assert response.status_code == 200
        (seen,) = engine.conversations
        assert seen.body == json.dumps(given | {"model": "Qwen/Qwen2.5-7B"}, separators=(",", ":")).encode()


KEYS = st.sampled_from(["model", "mod\\u0065l", "\\u006dodel", "Model", "model ", "x"])


@given(st.lists(st.tuples(KEYS, st.sampled_from(["m", "secret", "a\\u0062"])), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_the_proxy_reads_the_model_that_an_engine_reads(pairs: list[tuple[str, str]]) -> None:
    """A key written twice or in escapes: permissions would be worth nothing if the two took different ones (M13)."""
    body = ("{" + ",".join(f'"{key}":"{value}"' for key, value in pairs) + "}").encode()
    facts = read_facts(body)
    theirs = json.loads(body).get("model")
    assert (facts.model if isinstance(facts, Facts) else None) == theirs
