"""Waiting for room: who is held goes on when something changes, in a just order, and leaves no trace when it ends."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from nebula_core.records.access import Role
from nebula_core.records.deployment import Limits as ReplicaLimits
from nebula_core.records.sample import EngineSample
from nebula_proxy.traffic.waiting_room import RoomLimits
from tests.support.data_plane import AHEAD_SECONDS, MODEL, RunningPlane, endpoint, key, model, running_plane, until
from tests.support.scripted_engine import Conversation, ScriptedEngine, answer, completion, talk

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"
ROOM = RoomLimits(places=8, seconds=30.0, starting_seconds=30.0)


class Gate:
    """An engine that answers when it is told to, in the order of arrival."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine
        self.names: list[str] = []
        self._held: list[asyncio.Event] = []
        engine.script = self._script

    async def _script(self, conversation: Conversation) -> None:
        self.names.append(conversation.json["messages"][0]["content"])
        event = asyncio.Event()
        self._held.append(event)
        gone = asyncio.ensure_future(conversation.gone.wait())
        done = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            done.cancel()
            await asyncio.gather(gone, done, return_exceptions=True)
        if not conversation.gone.is_set():
            await conversation.send(answer(completion("done")))

    def release(self) -> None:
        self._held.pop(0).set()


def one_at_a_time(engine: ScriptedEngine, **limits: Any) -> Any:
    return endpoint("m-r0", engine.port, limits=ReplicaLimits(inflight=1, **limits))


@asynccontextmanager
async def full_plane(
    engine: ScriptedEngine, hot: bool, *, room: RoomLimits = ROOM, extra: Any = ()
) -> AsyncIterator[tuple[RunningPlane, httpx.AsyncClient, Gate]]:
    """A model whose one replica takes one request at a time, and is busy with "first"."""
    gate = Gate(engine)
    async with (
        running_plane(model(one_at_a_time(engine)), hot_path=hot, room=room, extra_keys=extra) as running,
        running.client() as client,
    ):
        first = asyncio.create_task(ask(client, "first"))
        await until(lambda: gate.names == ["first"])
        yield running, client, gate
        while gate._held:
            gate.release()
        await first
        await until(lambda: len(running.plane.ledger) == 0)
        assert running.plane.room.waiting == 0
        assert running.plane.room._held_bytes == 0
        assert running.plane.ledger.replicas == {}


def ask(client: httpx.AsyncClient, name: str, **headers: str) -> Any:
    body = {"model": MODEL, "messages": [{"role": "user", "content": name}]}
    return client.post(PATH, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


async def queued(running: RunningPlane, client: httpx.AsyncClient, *names: str, **headers: str) -> list[Any]:
    tasks = []
    for name in names:
        before = running.plane.room.waiting
        tasks.append(asyncio.create_task(ask(client, name, **headers)))
        await until(lambda before=before: running.plane.room.waiting > before)  # type: ignore[misc]
    return tasks


async def test_who_waits_goes_on_when_a_request_ends(hot: bool, engine: ScriptedEngine) -> None:
    async with full_plane(engine, hot) as (running, client, gate):
        began = time.monotonic()
        (second,) = await queued(running, client, "second")
        assert gate.names == ["first"]
        for _ in range(10):
            await client.get("/healthz")  # most of its time it waits
        assert running.plane.meters.models[MODEL].waiting == 1
        gate.release()
        await until(lambda: gate.names == ["first", "second"])
        gate.release()
        response = await second
        assert response.status_code == 200
        took = time.monotonic() - began
        meter = running.plane.meters.models[MODEL]
        assert float(response.headers["x-nebula-overhead-ms"]) / 1000 + meter.wait.sum <= took, "waiting is none of it"
        assert meter.admissions[("wait", "saturated")] == 1
        assert meter.admissions[("admit", "waited")] == 1
        assert meter.admitted == 1
        assert meter.rejected == 0
        assert sum(meter.wait.counts) == 1


async def test_nobody_overtakes(hot: bool, engine: ScriptedEngine) -> None:
    async with full_plane(engine, hot) as (running, client, gate):
        tasks = await queued(running, client, "second", "third")
        # Room comes, and before anybody's turn a newcomer: it stands behind.
        running.table(model(endpoint("m-r0", engine.port, limits=ReplicaLimits(inflight=2))))
        tasks.append(asyncio.create_task(ask(client, "fourth")))
        for _ in range(3):
            await until(lambda: gate._held)
            gate.release()
        await until(lambda: len(gate.names) == 4)
        gate.release()
        assert [one.status_code for one in await asyncio.gather(*tasks)] == [200] * 3
        assert gate.names == ["first", "second", "third", "fourth"]


async def test_keys_take_turns_and_classes_come_first(hot: bool, engine: ScriptedEngine) -> None:
    token, record = key()
    boss, operator = key(Role.OPERATOR)
    async with (
        full_plane(engine, hot, extra=[record, operator]) as (running, client, gate),
        running.client(token) as other,
        running.client(boss) as high,
    ):
        tasks = await queued(running, client, "a1", "a2", "a3")
        tasks += await queued(running, other, "b1", "b2")
        tasks += await queued(running, client, "low", x_nebula_priority="-3")
        tasks += await queued(running, high, "high", x_nebula_priority="5")
        for _ in range(7):
            await until(lambda: gate._held)
            gate.release()
        await until(lambda: len(gate.names) == 8)
        gate.release()
        await asyncio.gather(*tasks)
        assert gate.names == ["first", "high", "a1", "b1", "a2", "b2", "a3", "low"]


async def test_a_full_room_says_so_and_a_client_that_leaves_makes_place(hot: bool, engine: ScriptedEngine) -> None:
    async with full_plane(engine, hot, room=ROOM._replace(places=2)) as (running, client, gate):
        second, third = await queued(running, client, "second", "third")
        response = await ask(client, "fourth")
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.headers["x-should-retry"] == "true"
        second.cancel()
        await until(lambda: running.plane.room.waiting == 1)
        (fifth,) = await queued(running, client, "fifth")
        gate.release()
        await until(lambda: len(gate.names) == 2)
        gate.release()
        await until(lambda: len(gate.names) == 3)
        gate.release()
        assert [(await task).status_code for task in (third, fifth)] == [200, 200]
        assert gate.names == ["first", "third", "fifth"], "who left never reached an engine"


async def test_a_higher_class_pushes_out_of_a_full_room(hot: bool, engine: ScriptedEngine) -> None:
    boss, operator = key(Role.OPERATOR)
    async with (
        full_plane(engine, hot, room=ROOM._replace(places=1), extra=[operator]) as (running, client, gate),
        running.client(boss) as high,
    ):
        (second,) = await queued(running, client, "second")
        urgent = asyncio.create_task(ask(high, "urgent", x_nebula_priority="1"))
        response = await second
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        gate.release()
        await until(lambda: gate.names == ["first", "urgent"])
        gate.release()
        assert (await urgent).status_code == 200


async def test_bodies_that_wait_are_bounded(hot: bool, engine: ScriptedEngine) -> None:
    async with full_plane(engine, hot, room=ROOM._replace(held_bytes=2000)) as (running, client, gate):
        response = await ask(client, "x" * 3000)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        (small,) = await queued(running, client, "small")
        gate.release()
        await until(lambda: len(gate.names) == 2)
        gate.release()
        assert (await small).status_code == 200


async def test_a_wait_has_an_end(hot: bool, engine: ScriptedEngine) -> None:
    async with full_plane(engine, hot, room=ROOM._replace(seconds=200.0)) as (running, client, _gate):
        patient = await queued(running, client, "patient")
        before = time.monotonic()
        hasty = await queued(running, client, "hasty", x_nebula_wait="5")
        after = time.monotonic()
        running.plane.sweep(before + 4.9)
        assert running.plane.room.waiting == 2
        running.plane.sweep(after + 5.1)
        response = await hasty[0]
        assert (response.status_code, response.json()["error"]["code"]) == (503, "wait_expired")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.headers["x-should-retry"] == "true"
        assert running.plane.room.waiting == 1
        running.plane.sweep(time.monotonic() + 201.0)
        assert (await patient[0]).status_code == 503
        # Who does not want to wait does not.
        response = await ask(client, "now", x_nebula_wait="0")
        assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
        response = await ask(client, "nonsense", x_nebula_wait="-1")
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


async def test_a_deployment_has_its_own_room(hot: bool, engine: ScriptedEngine) -> None:
    async with full_plane(engine, hot) as (running, client, _gate):
        limits = ReplicaLimits(inflight=1, room=0)
        running.table(model(endpoint("m-r0", engine.port, limits=limits), limits=limits))
        response = await ask(client, "second")
        assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
        limits = ReplicaLimits(inflight=1, wait_seconds=3.0)
        running.table(model(endpoint("m-r0", engine.port, limits=limits), limits=limits))
        (second,) = await queued(running, client, "second")
        running.plane.sweep(time.monotonic() + 4.0)
        assert (await second).status_code == 503


async def test_a_sample_that_comes_and_one_that_grows_old_let_go_on(hot: bool, engine: ScriptedEngine) -> None:
    full = EngineSample(requests_waiting=8, kv_cache_usage=0.1)
    view = model(endpoint("m-r0", engine.port, sample=full))
    async with running_plane(view, hot_path=hot, room=ROOM) as running, running.client() as client:
        (first,) = await queued(running, client, "first")
        running.table(model(endpoint("m-r0", engine.port)))
        assert (await first).status_code == 200
        running.table(view)
        (second,) = await queued(running, client, "second")
        # The same figures, older than the lease: unknown, not full.
        for route in running.plane.table.models[MODEL].routes:
            route.sampled_at -= AHEAD_SECONDS + 5.0
        running.plane.table.models[
            MODEL
        ].field = None  # kept until a sample grows old by the clock, which was not moved
        running.plane.sweep(time.monotonic())
        assert (await second).status_code == 200


async def test_a_model_that_starts_is_waited_for(hot: bool, engine: ScriptedEngine) -> None:
    engine.script = talk
    async with (
        running_plane(model(starting=1, wanted=1), hot_path=hot, room=ROOM) as running,
        running.client() as client,
    ):
        first, second = await queued(running, client, "first", "second", x_nebula_wait="8")
        running.plane.sweep(time.monotonic() + 9.0)
        response = await first
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_starting")
        assert (await second).status_code == 503
        (third,) = await queued(running, client, "third")
        running.table(model(endpoint("m-r0", engine.port)))
        assert (await third).status_code == 200
        meter = running.plane.meters.models[MODEL]
        assert meter.admissions[("wait", "starting")] == 3
        assert meter.admissions[("reject", "model_starting")] == 2


async def test_a_deployment_that_goes_ends_the_wait(hot: bool, engine: ScriptedEngine) -> None:
    async with full_plane(engine, hot) as (running, client, gate):
        (second,) = await queued(running, client, "second")
        running.table()
        gate.release()
        response = await second
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_replica")


async def test_a_stop_of_the_proxy_ends_the_wait(hot: bool, engine: ScriptedEngine) -> None:
    async with full_plane(engine, hot) as (running, client, _gate):
        (second,) = await queued(running, client, "second")
        await running.plane.aclose()
        response = await second
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_replica")


async def test_a_pin_does_not_wait(hot: bool, engine: ScriptedEngine) -> None:
    boss, operator = key(Role.OPERATOR)
    async with (
        full_plane(engine, hot, extra=[operator]) as (running, client, gate),
        running.client(boss) as high,
    ):
        (second,) = await queued(running, client, "second")
        pinned = asyncio.create_task(ask(high, "pinned", x_nebula_replica="m-r0"))
        await until(lambda: gate.names == ["first", "pinned"])
        gate.release()
        gate.release()
        await until(lambda: len(gate.names) == 3)
        gate.release()
        assert [one.status_code for one in await asyncio.gather(pinned, second)] == [200, 200]


async def test_a_key_gets_no_more_priority_than_it_may_have(hot: bool, engine: ScriptedEngine) -> None:
    boss, operator = key(Role.OPERATOR)
    given, record = key(max_priority=3)
    async with (
        full_plane(engine, hot, extra=[operator, record]) as (running, client, gate),
        running.client(boss) as high,
        running.client(given) as middle,
    ):
        tasks = await queued(running, client, "plain")
        tasks += await queued(running, client, "greedy", x_nebula_priority="10")
        tasks += await queued(running, middle, "three", x_nebula_priority="9")
        tasks += await queued(running, high, "five", x_nebula_priority="5")
        for _ in range(4):
            await until(lambda: gate._held)
            gate.release()
        await until(lambda: len(gate.names) == 5)
        gate.release()
        assert [one.status_code for one in await asyncio.gather(*tasks)] == [200] * 4
        assert gate.names == ["first", "five", "three", "plain", "greedy"]


async def test_what_waits_is_measured(hot: bool, engine: ScriptedEngine) -> None:
    async with full_plane(engine, hot) as (running, client, gate):
        (second,) = await queued(running, client, "second")
        text = (await client.get("/metrics")).text
        assert f'nebula_proxy_waiting{{model="{MODEL}"}} 1.0' in text
        assert f'nebula_proxy_admission_total{{decision="wait",model="{MODEL}",reason="saturated"}} 1.0' in text
        (traffic,) = running.plane.meters.traffic()
        assert traffic.waiting == 1
        gate.release()
        await until(lambda: len(gate.names) == 2)
        gate.release()
        await second
        text = (await client.get("/metrics")).text
        assert f'nebula_proxy_waiting{{model="{MODEL}"}} 0.0' in text
        assert f'nebula_proxy_wait_seconds_count{{model="{MODEL}"}} 1.0' in text


async def test_a_retry_waits_like_any_other(hot: bool, engine: ScriptedEngine) -> None:
    async def busy(conversation: Conversation) -> None:
        await conversation.send(answer({"error": {"message": "busy"}}, status=503))

    async with ScriptedEngine(busy) as other:
        gate = Gate(engine)
        view = model(one_at_a_time(engine), endpoint("m-r1", other.port, limits=ReplicaLimits(inflight=1)))
        async with running_plane(view, hot_path=hot, room=ROOM) as running, running.client() as client:
            boss, operator = key(Role.OPERATOR)
            running.plane.authenticator.update({operator.id: operator})
            headers = {"authorization": f"Bearer {boss}"}
            first = asyncio.create_task(ask(client, "first", **headers, x_nebula_replica="m-r0"))
            await until(lambda: gate.names == ["first"])
            (second,) = await queued(running, client, "second", **headers)
            assert len(other.conversations) == 1
            running.table(model(one_at_a_time(engine)))
            gate.release()
            await until(lambda: len(gate.names) == 2)
            gate.release()
            assert [one.status_code for one in await asyncio.gather(first, second)] == [200, 200]
