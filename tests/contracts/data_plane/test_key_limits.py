"""Limits of keys as a client meets them: what is let through, what is said, what is given back."""

import asyncio
from pathlib import Path
from typing import Any

import httpx

from nebula_core.records.event import ChangeKind
from nebula_core.store.store import Store
from nebula_proxy.traffic.waiting_room import RoomLimits
from tests.support.data_plane import MODEL, endpoint, key, model, running_plane, until
from tests.support.ports import free_port
from tests.support.proxy_process import proxy_process, write_cluster
from tests.support.scripted_engine import Conversation, ScriptedEngine, answer, completion

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
PATH = "/v1/chat/completions"


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_requests_per_minute(hot: bool, engine: ScriptedEngine) -> None:
    token, record = key(requests_per_minute=3)
    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot, extra_keys=[record]) as running,
        running.client(token) as client,
    ):
        for left in (2, 1, 0):
            response = await client.post(PATH, json=CHAT)
            assert response.status_code == 200
            assert response.headers["x-ratelimit-limit-requests"] == "3"
            assert response.headers["x-ratelimit-remaining-requests"] == str(left)
            assert response.headers["x-ratelimit-reset-requests"].endswith("s")
            assert "x-ratelimit-limit-tokens" not in response.headers
        response = await client.post(PATH, json=CHAT)
        assert code_of(response) == (429, "rate_limited")
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.headers["x-should-retry"] == "true"
        async with running.client() as other:
            response = await other.post(PATH, json=CHAT)
            assert response.status_code == 200, "another key has its own"
            assert not [name for name in response.headers if name.startswith("x-ratelimit")]
    assert len(engine.conversations) == 4


async def test_tokens_are_settled_by_what_the_engine_counted(hot: bool, engine: ScriptedEngine) -> None:
    token, record = key(tokens_per_minute=200)
    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot, extra_keys=[record]) as running,
        running.client(token) as client,
    ):
        # Each reserves about 75 and takes 5: by reservations alone the third would be refused.
        for _ in range(20):
            response = await client.post(PATH, json=CHAT)
            assert response.status_code == 200
        assert 0 <= int(response.headers["x-ratelimit-remaining-tokens"]) <= 60
        assert response.headers["x-ratelimit-limit-tokens"] == "200"
        large = CHAT | {"max_tokens": 100_000}
        assert code_of(await client.post(PATH, json=large)) == (429, "rate_limited")


async def test_an_answer_that_failed_costs_nothing(hot: bool, engine: ScriptedEngine) -> None:
    async def fail(conversation: Conversation) -> None:
        await conversation.send(answer({"error": {"message": "no"}}, status=500))

    engine.script = fail
    token, record = key(requests_per_minute=2, tokens_per_minute=100)
    view = model(endpoint("m-r0", engine.port), endpoint("m-r1", engine.port))
    async with (
        running_plane(view, hot_path=hot, extra_keys=[record]) as running,
        running.client(token) as client,
    ):
        for _ in range(6):
            assert (await client.post(PATH, json=CHAT)).status_code == 500


async def test_open_streams(hot: bool, engine: ScriptedEngine) -> None:
    async def wait(conversation: Conversation) -> None:
        if conversation.json.get("stream"):
            await conversation.gone.wait()
        else:
            await conversation.send(answer(completion("plain")))

    engine.script = wait
    token, record = key(max_streams=2)
    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot, extra_keys=[record]) as running,
        running.client(token) as client,
    ):
        streams = [asyncio.create_task(client.post(PATH, json=CHAT | {"stream": True})) for _ in range(2)]
        await until(lambda: len(engine.conversations) == 2)
        assert code_of(await client.post(PATH, json=CHAT | {"stream": True})) == (429, "rate_limited")
        assert (await client.post(PATH, json=CHAT)).status_code == 200
        streams[0].cancel()
        await until(lambda: len(running.plane.ledger) == 1)
        third = asyncio.create_task(client.post(PATH, json=CHAT | {"stream": True}))
        await until(lambda: len(engine.conversations) == 4)
        third.cancel()
        streams[1].cancel()
        await until(lambda: len(running.plane.ledger) == 0)
    share = running.plane.key_limits._shares[record.id]
    assert share.open_streams == 0


async def test_a_refusal_for_want_of_room_costs_nothing(hot: bool, engine: ScriptedEngine) -> None:
    token, record = key(requests_per_minute=2)
    async with (
        running_plane(model(starting=1, wanted=1), hot_path=hot, extra_keys=[record], room=RoomLimits(0)) as running,
        running.client(token) as client,
    ):
        for _ in range(5):
            assert code_of(await client.post(PATH, json=CHAT)) == (503, "model_starting")


async def test_sdks_are_told_what_to_try_again(hot: bool, engine: ScriptedEngine) -> None:
    statuses = iter([409, 400, 422, 429, 503])

    async def say(conversation: Conversation) -> None:
        await conversation.send(answer({"error": {"message": "no"}}, status=next(statuses)))

    engine.script = say
    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running,
        running.client() as client,
    ):
        for status, again in ((409, "false"), (400, "false"), (422, "false"), (429, "true"), (503, "true")):
            response = await client.post(PATH, json=CHAT)
            assert response.status_code == status
            assert response.headers["x-should-retry"] == again
            assert ("retry-after" in response.headers) == (again == "true")
        response = await client.post(PATH, json=CHAT | {"model": "nobody"})
        assert (response.status_code, response.headers["x-should-retry"]) == (404, "false")


async def test_two_worker_processes_keep_one_limit(engine: ScriptedEngine, store: Store, tmp_path: Path) -> None:
    """The whole way: two workers on one port, a real store, a key with limits, many connections."""
    await write_cluster(store, [engine.port])
    token, record = key(requests_per_minute=40)
    await store.put(ChangeKind.KEY, record.id, record)
    port = free_port()
    headers = {"authorization": f"Bearer {token}", "connection": "close"}
    async with (
        proxy_process(store.settings.url, tmp_path, port, workers=2) as proxy,
        httpx.AsyncClient(base_url=proxy.url, headers=headers, timeout=60) as client,
    ):
        await _ready(client)
        await until(lambda: "all_workers_ready" in proxy.log.read_text(), 90)
        loop = asyncio.get_running_loop()
        began = loop.time()
        found: list[Any] = []
        # Not all at once: a worker that does not hear the store for half a second goes on by itself, and rightly.
        for _ in range(10):
            found += await asyncio.gather(*(client.post(PATH, json=CHAT) for _ in range(10)))
        took = loop.time() - began
        statuses = [response.status_code for response in found]
        assert set(statuses) == {200, 429}
        assert 40 - 2 * 2 <= statuses.count(200) <= 40 * (1 + took / 60) + 1e-6
        proxy.terminate()
        await proxy.process.wait()


async def _ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(90):
        while True:
            try:
                if (await client.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
