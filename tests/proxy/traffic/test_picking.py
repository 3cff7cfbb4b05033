"""Where requests go, over HTTP: prefixes, sessions, responses that are gone on from, tenants, slow starts."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from nebula_core.records.access import Role
from nebula_core.records.report import ProxyReport
from nebula_core.records.snapshot import ReceivedProxy
from nebula_core.security.credentials import mint_key
from nebula_proxy.traffic import routing_table
from nebula_proxy.traffic.plane import Routing
from nebula_proxy.traffic.response_holders import KEPT, REPORTED, REPORTED_SECONDS, Holder, ResponseHolders
from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane, until
from tests.support.scripted_engine import Conversation, ScriptedEngine, answer


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as scripted:
        yield scripted


async def chat(running: RunningPlane, client: httpx.AsyncClient, *texts: str, **headers: str) -> httpx.Response:
    messages = [{"role": "user", "content": text} for text in texts]
    body = {"model": MODEL, "messages": messages}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await client.post("/v1/chat/completions", json=body, headers=named)
    assert response.status_code == 200, response.text
    return response


async def test_a_conversation_stays_where_it_began(engine: ScriptedEngine) -> None:
    view = model(*(endpoint(f"m-r{n}", engine.port) for n in range(6)))
    async with running_plane(view) as running, running.client() as client:
        homes = set()
        for talk in range(12):
            texts = [f"conversation {talk} " * 100]
            replicas = set()
            for turn in range(4):
                replicas.add((await chat(running, client, *texts)).headers["x-nebula-replica"])
                texts.append(f"turn {turn} " * 100)
            assert len(replicas) == 1
            homes |= replicas
        assert len(homes) > 2
        assert running.plane.meters.models[MODEL].routes[("prefix_cache_aware", "prefix")] == 36
        # Nothing is left on the books.
        assert running.plane.ledger.unread == {}


async def test_an_engine_that_was_started_anew_is_cold(engine: ScriptedEngine) -> None:
    ends = [endpoint(f"m-r{n}", engine.port) for n in range(2)]
    async with running_plane(model(*ends)) as running, running.client() as client:
        home = (await chat(running, client, "x" * 3000)).headers["x-nebula-replica"]
        place = [each.replica for each in ends].index(home)
        running.table(
            model(*(endpoint(f"m-r{n}", engine.port, engine_epoch="e2" if n == place else "e1") for n in range(2)))
        )
        await chat(running, client, "x" * 3000)
        assert running.plane.meters.models[MODEL].routes.get(("prefix_cache_aware", "prefix")) is None


async def test_prompts_without_a_first_token_are_on_the_books(engine: ScriptedEngine) -> None:
    goes_on = asyncio.Event()

    async def slow(conversation: Conversation) -> None:
        await goes_on.wait()
        await conversation.send(answer({"choices": []}))

    engine.script = slow
    async with running_plane(model(endpoint("m-r0", engine.port))) as running, running.client() as client:
        task = asyncio.create_task(chat(running, client, "x" * 3000))
        await until(lambda: running.plane.ledger.unread.get("m-r0", 0) > 3000)
        goes_on.set()
        await task
        assert running.plane.ledger.unread == {}


async def test_keys_share_prefixes_unless_they_must_not(engine: ScriptedEngine) -> None:
    token, record = mint_key("other", Role.CLIENT, now=time.time(), created_by="test")
    view = model(*(endpoint(f"m-r{n}", engine.port) for n in range(2)))
    for shared, expected in ((True, 1), (False, 0)):
        routing = Routing(prefixes_shared=shared)
        async with running_plane(view, extra_keys=[record], routing=routing) as running, running.client() as client:
            await chat(running, client, "x" * 3000)
            await chat(running, client, "x" * 3000, authorization=f"Bearer {token}")
            routes = running.plane.meters.models[MODEL].routes
            assert routes.get(("prefix_cache_aware", "prefix"), 0) == expected


async def test_a_session_header_keeps_requests_together(engine: ScriptedEngine) -> None:
    view = model(*(endpoint(f"m-r{n}", engine.port, strategy="session_affinity") for n in range(6)))
    async with running_plane(view) as running, running.client() as client:
        for session in ("a", "b", "c"):
            found = {
                (await chat(running, client, f"{n}", x_session_id=session)).headers["x-nebula-replica"]
                for n in range(5)
            }
            assert len(found) == 1


def _response(name: str) -> dict[str, Any]:
    return {"id": name, "object": "response", "status": "completed", "output": [{"id": "msg_1"}]}


async def test_a_response_is_gone_on_from_where_it_is_held(engine: ScriptedEngine) -> None:
    count = iter(range(100))

    async def respond(conversation: Conversation) -> None:
        await conversation.send(answer(_response(f"resp_{next(count)}")))

    engine.script = respond
    ends = [endpoint(f"m-r{n}", engine.port, engine="vllm") for n in range(4)]
    async with running_plane(model(*ends)) as running, running.client() as client:

        async def ask(**fields: object) -> httpx.Response:
            return await client.post("/v1/responses", json={"model": MODEL, "input": "hi", **fields})

        for _ in range(6):
            first = await ask()
            assert first.status_code == 200, first.text
            home, name = first.headers["x-nebula-replica"], first.json()["id"]
            for _ in range(3):
                following = await ask(previous_response_id=name)
                assert following.headers["x-nebula-replica"] == home
                assert following.headers["x-nebula-decision"].startswith("session_affinity; held")
                name = following.json()["id"]
        # An id that nobody knows may go anywhere: the engine says what it thinks of it.
        assert (await ask(previous_response_id="resp_unknown")).status_code == 200
        running.table(model(*(each for each in ends if each.replica != home)))
        gone = await ask(previous_response_id=name)
        assert gone.status_code == 404
        error = gone.json()["error"]
        assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")
        assert home in error["message"]
        running.table(model(*(endpoint(each.replica, engine.port, engine="vllm", engine_epoch="e2") for each in ends)))
        assert (await ask(previous_response_id=name)).status_code == 404


def _seen(proxy: str, sequence: int, **responses: tuple[str, str | None]) -> ReceivedProxy:
    report = ProxyReport(
        proxy=proxy, sequence=sequence, pid=1, version="1", at=0.0, started_at=0.0, revision=0, responses=responses
    )
    return ReceivedProxy(ProxyReport.from_json(report.to_json()), 0.0)


def test_other_processes_learn_who_holds_a_response() -> None:
    mine, other = ResponseHolders(), ResponseHolders()
    event = b'event: response.created\ndata: {"response": {"output": [{"id": "msg_7"}], "id": "resp_7"}}\n\n'
    mine.note(event, "m-r1", "e1", 10.0)
    assert mine.holder("resp_7") == Holder("m-r1", "e1")
    told = mine.told(11.0)
    assert told == {"resp_7": ("m-r1", "e1")}
    other.follow("other", [_seen("mine", 1, **told), _seen("other", 1, resp_own=("x", None))])
    assert other.holder("resp_7") == Holder("m-r1", "e1")
    assert other.holder("resp_own") is None
    assert other.holder(["resp_7"]) is None
    # Once a report has been heard it is not read again; ids are told for a moment only.
    other.follow("other", [_seen("mine", 1, resp_8=("m-r1", "e1"))])
    assert other.holder("resp_8") is None
    assert mine.told(10.0 + REPORTED_SECONDS + 0.1) == {}


def test_the_memory_of_responses_is_bounded() -> None:
    holders = ResponseHolders()
    for number in range(KEPT + 10):
        holders.note(json.dumps({"id": f"resp_{number}"}).encode(), "r", "e", 0.0)
    assert len(holders) == KEPT
    assert len(holders.told(0.0)) == REPORTED
    assert holders.holder("resp_0") is None
    assert holders.holder(f"resp_{KEPT + 9}") == Holder("r", "e")
    holders.note(b'{"id": "chatcmpl-1"}', "r", "e", 0.0)
    assert len(holders) == KEPT


async def test_a_new_replica_is_asked_slowly(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    # While the requests come it stays as new as it is: a busy machine may need seconds for them.
    monkeypatch.setattr(routing_table, "slow_start", lambda seconds: 0.2 if seconds < 1000.0 else 1.0)
    goes_on = asyncio.Event()

    async def slow(conversation: Conversation) -> None:
        await goes_on.wait()
        await conversation.send(answer({"choices": []}))

    engine.script = slow
    view = model(
        endpoint("m-old", engine.port, strategy="least_pending"),
        endpoint("m-new", engine.port, strategy="least_pending", ready_seconds=6.0),
    )
    async with running_plane(view) as running, running.client() as client:
        tasks = [asyncio.create_task(chat(running, client, str(n))) for n in range(24)]
        await until(lambda: sum(running.plane.ledger.replicas.values()) == 24)
        counts = dict(running.plane.ledger.replicas)
        goes_on.set()
        await asyncio.gather(*tasks)
    # A fifth of a share beside a whole one.
    assert 2 <= counts["m-new"] <= 6
