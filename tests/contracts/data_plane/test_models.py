"""Which models there are: deployments and their adapters, as far as the caller's key may use them."""

import json
from typing import Any

import httpx
import openai

from tests.support.data_plane import MODEL, endpoint, key, model, running_plane
from tests.support.scripted_engine import Conversation, ScriptedEngine, answer, completion

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_an_adapter_is_a_model_of_its_own(hot: bool, engine: ScriptedEngine) -> None:
    view = model(endpoint("m-r0", engine.port), adapters=("sql", "poem"))
    async with running_plane(view, hot_path=hot) as running, running.client() as client:
        listed = {entry["id"]: entry for entry in (await client.get("/v1/models")).json()["data"]}
        assert list(listed) == [MODEL, "poem", "sql"]
        assert [(each["root"], each["parent"]) for each in listed.values()] == [
            (MODEL, None),
            (MODEL, MODEL),
            (MODEL, MODEL),
        ]
        assert (await client.get("/v1/models/sql")).json() == listed["sql"]
        raw = json.dumps({"model": "sql"} | CHAT, indent=3).encode()
        response = await client.post(PATH, content=raw, headers={"content-type": "application/json"})
        assert (response.status_code, response.headers["x-nebula-replica"]) == (200, "m-r0")
        assert running.plane.meters.models["sql"].statuses == {200: 1}
        assert error_of(await client.get("/v1/models/org/sql")) == (404, "model_not_found")
    assert engine.conversations[0].body == raw


async def test_a_key_may_have_the_adapter_alone(hot: bool, engine: ScriptedEngine) -> None:
    narrow, record = key(models=("sql",))
    view = model(endpoint("m-r0", engine.port), adapters=("sql", "poem"))
    async with running_plane(view, hot_path=hot, extra_keys=[record]) as running, running.client(narrow) as client:
        assert [entry["id"] for entry in (await client.get("/v1/models")).json()["data"]] == ["sql"]
        assert (await client.post(PATH, json={"model": "sql"} | CHAT)).status_code == 200
        for other in (MODEL, "poem"):
            assert error_of(await client.post(PATH, json={"model": other} | CHAT)) == (403, "model_not_allowed")
            assert error_of(await client.get(f"/v1/models/{other}")) == (403, "model_not_allowed")
        unknown = await client.post(PATH, json={"model": "nope"} | CHAT)
        assert error_of(unknown) == (403, "model_not_allowed")


async def test_a_replica_without_the_adapter_is_passed_over(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine
) -> None:
    """While a deployment is changed, replicas with the new adapter stand beside such without."""
    missing = {
        "error": {"message": "The model `sql` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}
    }

    async def without(conversation: Conversation) -> None:
        await conversation.send(answer(missing, 404))

    async def having(conversation: Conversation) -> None:
        await conversation.send(answer(completion("x")))

    engine.script, other.script = without, having
    view = model(endpoint("m-r0", engine.port), endpoint("m-r1", other.port), adapters=("sql",))
    async with running_plane(view, hot_path=hot) as running, running.client() as client:
        for _ in range(6):
            assert (await client.post(PATH, json={"model": "sql"} | CHAT)).status_code == 200
        assert running.plane.ejections.reasons(0.0) == {}
        other.script = without
        response = await client.post(PATH, json={"model": "sql"} | CHAT)
        assert (response.status_code, response.json()) == (404, missing)


async def test_names_that_were_taken_twice_all_the_same(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine
) -> None:
    first = model(endpoint("a-r0", engine.port, deployment="a", model="a"), name="a", adapters=("b",))
    second = model(endpoint("b-r0", other.port, deployment="b", model="b"), name="b")
    async with running_plane(first, second, hot_path=hot) as running, running.client() as client:
        response = await client.post(PATH, json={"model": "b"} | CHAT)
        assert response.headers["x-nebula-replica"] == "b-r0"


async def test_the_openai_client_lists_and_retrieves(hot: bool, engine: ScriptedEngine) -> None:
    view = model(endpoint("m-r0", engine.port), adapters=("sql",))
    async with (
        running_plane(view, hot_path=hot) as running,
        openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=running.token, max_retries=0) as client,
    ):
        assert [entry.id async for entry in await client.models.list()] == [MODEL, "sql"]
        assert (await client.models.retrieve("sql")).owned_by == "nebula"
