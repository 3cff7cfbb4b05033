"""Requests that are turned away: the status and code of the contract, a hint, and the connection still sound."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from nebula_core.records.access import Role
from nebula_core.records.deployment import Limits as ReplicaLimits
from nebula_core.records.sample import EngineSample
from nebula_proxy.traffic.plane import Limits
from tests.support.data_plane import MODEL, endpoint, key, model, running_plane, until
from tests.support.scripted_engine import Conversation, ScriptedEngine, answer, completion

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"


def error_of(response: httpx.Response) -> tuple[int, str]:
    body = response.json()["error"]
    assert body["origin"] == "nebula"
    assert body["message"]
    assert body["hint"]
    assert response.headers["content-type"] == "application/json"
    return response.status_code, body["code"]


BAD_BODIES: list[tuple[bytes, str | None]] = [
    (b"", None),
    (b"{", None),
    (b"not json", None),
    (b"[1]", None),
    (b'"text"', None),
    (b"null", None),
    (b"\xff\xfe{}", None),
    (b'{"model": "m", "x": NaN}', None),
    (b"{}", "model"),
    (b'{"model": null}', "model"),
    (b'{"model": 3}', "model"),
    (b'{"model": ""}', "model"),
    (b'{"model": ["m"]}', "model"),
    (b'{"model": "m", "stream": "yes"}', "stream"),
    (b'{"model": "m", "stream_options": 3}', "stream_options"),
    (b'{"model": "m", "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", None),
]


@pytest.mark.parametrize(("body", "param"), BAD_BODIES, ids=[repr(body[:20]) for body, _ in BAD_BODIES])
async def test_bad_bodies_are_400(hot: bool, engine: ScriptedEngine, body: bytes, param: str | None) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        response = await client.post(PATH, content=body, headers={"content-type": "application/json"})
        assert error_of(response) == (400, "invalid_request")
        assert response.json()["error"]["param"] == param
        # The same connection goes on.
        assert (await client.post(PATH, json=CHAT)).status_code == 200
        assert running.server.connections == 1
    assert len(engine.conversations) == 1


async def test_odd_values_are_the_engines_affair(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        for odd in ({"model": MODEL}, CHAT | {"max_tokens": "x"}, CHAT | {"messages": 3}, CHAT | {"stream": None}):
            assert (await client.post(PATH, json=odd)).status_code == 200
    assert len(engine.conversations) == 4


async def test_unknown_models_and_paths(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        unknown = await client.post(PATH, json=CHAT | {"model": "nope"})
        assert error_of(unknown) == (404, "model_not_found")
        assert MODEL in unknown.json()["error"]["hint"]
        for path in ("/v1/nope", "/sleep", "/v1/chat/completions/", "/update_weights", "/docs", "/openapi.yaml"):
            assert error_of(await client.post(path, json=CHAT)) == (404, "not_found")
        assert error_of(await client.get(PATH)) == (405, "method_not_allowed")
        assert error_of(await client.post("/v1/models", json=CHAT)) == (405, "method_not_allowed")
        assert error_of(await client.get("/v1/models/nope")) == (404, "model_not_found")
    assert engine.conversations == []


BAD_CREDENTIALS: list[dict[str, str]] = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer nbl_x_y"},
    {"authorization": "Basic bmJsOg=="},
    {"authorization": "Bearer ÿ"},
    {"x-api-key": "sk-123"},
]


@pytest.mark.parametrize("headers", BAD_CREDENTIALS)
async def test_a_key_is_required(hot: bool, engine: ScriptedEngine, headers: dict[str, str]) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running,
        httpx.AsyncClient(base_url=running.url) as client,
    ):
        assert error_of(await client.post(PATH, json=CHAT, headers=raw)) == (401, "invalid_api_key")
        assert error_of(await client.get("/v1/models", headers=raw)) == (401, "invalid_api_key")
        altered = running.token[:-1] + ("A" if running.token[-1] != "A" else "B")
        response = await client.post(PATH, json=CHAT, headers={"authorization": f"Bearer {altered}"})
        assert error_of(response) == (401, "invalid_api_key")
        response = await client.post(PATH, json=CHAT, headers={"x-api-key": running.token})
        assert response.status_code == 200
    assert len(engine.conversations) == 1


async def test_a_key_counts_from_the_next_request(hot: bool, engine: ScriptedEngine) -> None:
    token, record = key()
    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot, extra_keys=[record]) as running,
        running.client(token) as client,
    ):
        assert (await client.post(PATH, json=CHAT)).status_code == 200
        running.plane.authenticator.update({record.id: record.model_copy(update={"revoked": True})})
        assert error_of(await client.post(PATH, json=CHAT)) == (401, "invalid_api_key")
        running.plane.authenticator.update({record.id: record.model_copy(update={"models": ("other",)})})
        assert error_of(await client.post(PATH, json=CHAT)) == (403, "model_not_allowed")
        assert (await client.get("/v1/models")).json()["data"] == []
        assert error_of(await client.get(f"/v1/models/{MODEL}")) == (403, "model_not_allowed")


async def test_a_key_has_its_limit(hot: bool, engine: ScriptedEngine) -> None:
    async def wait(conversation: Conversation) -> None:
        await conversation.gone.wait()

    engine.script = wait
    token, record = key(max_inflight=1)
    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot, extra_keys=[record]) as running,
        running.client(token) as client,
    ):
        first = asyncio.create_task(client.post(PATH, json=CHAT))
        await until(lambda: engine.conversations)
        response = await client.post(PATH, json=CHAT)
        assert error_of(response) == (429, "rate_limited")
        assert "retry-after" in response.headers
        first.cancel()


@pytest.mark.parametrize(
    ("view", "code"),
    [
        (model(starting=2, wanted=2), "model_starting"),
        (model(wanted=0), "no_replica"),
        (model(wanted=3), "no_capacity"),
    ],
)
async def test_a_known_model_without_replicas_is_503(hot: bool, view: Any, code: str) -> None:
    async with running_plane(view, hot_path=hot) as running, running.client() as client:
        response = await client.post(PATH, json=CHAT)
        assert error_of(response) == (503, code)
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert (await client.get("/health")).json()["engine_ready"] is False


FULL = [
    EngineSample(requests_waiting=8, kv_cache_usage=0.1),
    EngineSample(requests_waiting=0, kv_cache_usage=0.95),
]


@pytest.mark.parametrize("sample", FULL)
async def test_saturated_replicas_are_429(hot: bool, engine: ScriptedEngine, sample: EngineSample) -> None:
    full = model(endpoint("m-r0", engine.port, sample=sample), endpoint("m-r1", engine.port, sample=sample))
    async with running_plane(full, hot_path=hot) as running, running.client() as client:
        response = await client.post(PATH, json=CHAT)
        assert error_of(response) == (429, "overloaded")
        assert response.headers["x-should-retry"] == "true"
        # The sample grows old: overload is a lease, not a latch.
        stale = endpoint("m-r0", engine.port, sample=sample, sampled_at=0.0)
        running.table(model(stale))
        assert (await client.post(PATH, json=CHAT)).status_code == 200
    assert running.plane.meters.models[MODEL].admissions[("reject", "overloaded")] == 1


async def test_open_requests_fill_a_replica(hot: bool, engine: ScriptedEngine) -> None:
    async def wait(conversation: Conversation) -> None:
        await conversation.gone.wait()

    engine.script = wait
    small = endpoint("m-r0", engine.port, limits=ReplicaLimits(inflight=2))
    async with running_plane(model(small), hot_path=hot) as running, running.client() as client:
        open_ones = [asyncio.create_task(client.post(PATH, json=CHAT)) for _ in range(2)]
        await until(lambda: len(engine.conversations) == 2)
        assert error_of(await client.post(PATH, json=CHAT)) == (429, "overloaded")
        for task in open_ones:
            task.cancel()


async def test_bodies_have_a_limit(hot: bool, engine: ScriptedEngine) -> None:
    limits = Limits(max_body_bytes=10_000)
    big = CHAT | {"x": "y" * 20_000}

    async def in_chunks() -> Any:
        for _ in range(200):
            yield b"x" * 1000

    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot, limits=limits) as running,
        running.client() as client,
    ):
        assert error_of(await client.post(PATH, json=big)) == (413, "request_too_large")
        assert error_of(await client.post(PATH, content=in_chunks())) == (413, "request_too_large")
        assert (await client.post(PATH, json=CHAT)).status_code == 200
    assert len(engine.conversations) == 1


async def test_a_body_of_20_mb_is_answered(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        response = await client.post(PATH, json=CHAT | {"x": "y" * 20_000_000})
        assert error_of(response) == (413, "request_too_large")


async def test_a_body_of_7_mb_passes(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(answer({"size": len(conversation.body)}))

    engine.script = script
    body = json.dumps(CHAT | {"x": "y" * 7_000_000}).encode()
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        response = await client.post(PATH, content=body)
        assert response.json() == {"size": len(body)}


async def test_wishes_of_the_client(hot: bool, engine: ScriptedEngine, other: ScriptedEngine) -> None:
    operator, record = key(Role.OPERATOR)
    both = model(endpoint("m-r0", engine.port), endpoint("m-r1", other.port))

    async def ask(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
        return await client.post(PATH, json=CHAT, headers={n.replace("_", "-"): v for n, v in headers.items()})

    async with (
        running_plane(both, hot_path=hot, extra_keys=[record]) as running,
        running.client() as client,
        running.client(operator) as privileged,
    ):
        assert error_of(await ask(client, x_nebula_replica="m-r1")) == (403, "pin_not_allowed")
        for _ in range(3):
            pinned = await ask(privileged, x_nebula_replica="m-r1")
            assert pinned.headers["x-nebula-replica"] == "m-r1"
            assert pinned.headers["x-nebula-decision"].startswith("pinned")
        assert error_of(await ask(privileged, x_nebula_replica="m-r7")) == (503, "no_replica")
        assert error_of(await ask(client, x_nebula_strategy="nope")) == (400, "invalid_request")
        turns = [(await ask(client, x_nebula_strategy="round_robin")).headers["x-nebula-replica"] for _ in range(4)]
        assert sorted(turns) == ["m-r0", "m-r0", "m-r1", "m-r1"]
        assert error_of(await ask(client, x_nebula_priority="high")) == (400, "invalid_request")
        assert (await ask(client, x_request_id="bad id")).headers["x-request-id"].startswith("req-")


async def test_without_keys_anyone_may(hot: bool, engine: ScriptedEngine) -> None:
    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot, require_auth=False) as running,
        httpx.AsyncClient(base_url=running.url) as client,
    ):
        assert (await client.post(PATH, json=CHAT)).json() == completion("Hello there")


async def test_a_bug_of_ours_is_500_and_closes_the_ledger(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:

        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        running.plane.table.candidates = broken  # type: ignore[assignment,method-assign]
        response = await client.post(PATH, json=CHAT)
        assert error_of(response) == (500, "internal_error")
        assert len(running.plane.ledger) == 0


@pytest.mark.parametrize("beyond", [{"n": 9}, {"api_key": "sk-1"}, {"a": json.loads("[" * 64 + "]" * 64)}])
async def test_a_request_may_not_ask_for_too_much(hot: bool, engine: ScriptedEngine, beyond: dict[str, Any]) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        assert error_of(await client.post(PATH, json=CHAT | beyond)) == (400, "invalid_request")
        assert len(running.plane.ledger) == 0
        assert (await client.post(PATH, json=CHAT | {"n": 8})).status_code == 200
    assert len(engine.conversations) == 1
