"""Thundering herd after recovery (reliability 3, row 35), in small: everybody comes at once to engines that are just back.

Retries honour `Retry-After`, at a hundredth of its length. What must hold: nobody who was let in is dropped, the engines
are never asked for more than their limits, attempts upstream stay near one per request, and refusals are spread.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from nebula_core.records.deployment import Limits as ReplicaLimits
from nebula_proxy.traffic.waiting_room import RoomLimits
from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane, until
from tests.support.scripted_engine import Conversation, ScriptedEngine, answer, completion

CLIENTS = 64
SLOTS = 8
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


class Busy:
    """Counts what is open in one engine; each answer takes a moment."""

    def __init__(self) -> None:
        self.open = self.most = self.answered = 0

    async def __call__(self, conversation: Conversation) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(0.005)
            await conversation.send(answer(completion("done")))
            self.answered += 1
        finally:
            self.open -= 1


@asynccontextmanager
async def sweeping(running: RunningPlane) -> AsyncIterator[None]:
    """As the worker's task does it, a little faster."""

    async def run() -> None:
        while True:
            await asyncio.sleep(0.1)
            running.plane.sweep(time.monotonic())

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def client(api: httpx.AsyncClient, statuses: Counter[int], waits: list[int]) -> None:
    """An SDK: comes back when it is told to."""
    while True:
        response = await api.post("/v1/chat/completions", json=CHAT)
        statuses[response.status_code] += 1
        if response.status_code == 200:
            assert response.json()["choices"][0]["message"]["content"] == "done"
            return
        assert response.status_code in {429, 503}, response.text
        assert response.headers["x-should-retry"] == "true"
        waits.append(int(response.headers["retry-after"]))
        await asyncio.sleep(waits[-1] / 100)


@pytest.mark.parametrize("places", [0, 32])
async def test_everybody_at_once_after_an_outage(places: int) -> None:
    random.seed(35)
    one, two = Busy(), Busy()
    first, second = ScriptedEngine(one), ScriptedEngine(two)
    await first.__aenter__()
    await second.__aenter__()
    limits = ReplicaLimits(inflight=SLOTS)
    view = model(
        *(endpoint(f"m-r{n}", engine.port, limits=limits) for n, engine in enumerate((first, second))), limits=limits
    )
    try:
        async with (
            running_plane(view, room=RoomLimits(places=places, seconds=5.0)) as running,
            sweeping(running),
            # One for all: to make one costs tens of milliseconds.
            running.client(limits=httpx.Limits(max_connections=CLIENTS)) as api,
        ):
            await first.die()
            await second.die()
            statuses: Counter[int] = Counter()
            waits: list[int] = []
            herd = [asyncio.create_task(client(api, statuses, waits)) for _ in range(CLIENTS)]
            await until(lambda: statuses[503], 60)
            await first.__aenter__()
            await second.__aenter__()
            await asyncio.wait_for(asyncio.gather(*herd), 60)
            # Once more: of the first herd most may be served by the engine that happened to be tried first.
            await asyncio.wait_for(asyncio.gather(*(client(api, statuses, waits) for _ in range(CLIENTS))), 60)
            assert statuses[200] == 2 * CLIENTS
            assert set(statuses) <= {200, 429, 503}
            # Let in and dropped: none. Asked of the engines: once per request.
            assert one.answered + two.answered == 2 * CLIENTS
            assert len(first.conversations) + len(second.conversations) <= 2 * CLIENTS * 1.1
            assert max(one.most, two.most) <= SLOTS
            assert min(one.answered, two.answered) > CLIENTS / 5, "both are used again"
            assert len(set(waits)) > 1, "those turned away together do not come back together"
            assert len(running.plane.ledger) == 0
            assert running.plane.room.waiting == 0
            assert sum(running.plane.ledger.replicas.values()) == 0
    finally:
        await first.__aexit__(None, None, None)
        await second.__aexit__(None, None, None)


async def test_who_waits_for_room_outlives_an_engine(httpx_limit: httpx.Limits) -> None:
    """One of two engines dies under load: those in the waiting room are served by the other, nobody is lost."""
    one, two = Busy(), Busy()
    async with ScriptedEngine(one) as first, ScriptedEngine(two) as second:
        limits = ReplicaLimits(inflight=2)
        view = model(
            endpoint("m-r0", first.port, limits=limits), endpoint("m-r1", second.port, limits=limits), limits=limits
        )
        async with running_plane(view, room=RoomLimits(places=64, seconds=30.0)) as running, sweeping(running):
            async with running.client(limits=httpx_limit) as api:
                asked = [asyncio.create_task(api.post("/v1/chat/completions", json=CHAT)) for _ in range(60)]
                await until(lambda: two.answered >= 3, 60)
                await second.die()
                found = [response.status_code for response in await asyncio.wait_for(asyncio.gather(*asked), 60)]
            assert found.count(200) >= 58, "only what was inside the engine may be lost, and that is retried"
            assert running.plane.room.waiting == 0
            assert len(running.plane.ledger) == 0


@pytest.fixture
def httpx_limit() -> httpx.Limits:
    return httpx.Limits(max_connections=100)
