"""The books of admission after chaos (GOALS R21): clients that vanish, engines that die, limits that change, keys with limits."""

import asyncio
import random
from collections import Counter
from contextlib import suppress

import httpx
import pytest

from nebula_core.records.access import Role
from nebula_core.records.deployment import Limits as ReplicaLimits
from nebula_proxy.traffic.waiting_room import RoomLimits
from tests.faults.test_herd import sweeping
from tests.support.data_plane import MODEL, endpoint, key, model, running_plane, until
from tests.support.scripted_engine import STREAM_HEAD, Conversation, ScriptedEngine, answer, chunked, completion, tokens

REQUESTS = 150


def engine_of(dice: random.Random) -> ScriptedEngine:
    async def script(conversation: Conversation) -> None:
        await asyncio.sleep(dice.random() * 0.02)
        match dice.randrange(12):
            case 0:
                conversation.reset()
            case 1:
                await conversation.send(answer({"error": {"message": "busy"}}, status=503))
            case 2 if conversation.json.get("stream"):
                await conversation.send(STREAM_HEAD + chunked(*tokens("Hello", " there")[:1], end=False))
                conversation.close()
            case _ if conversation.json.get("stream"):
                await conversation.send(STREAM_HEAD + chunked(*tokens("Hello", " there")))
            case _:
                await conversation.send(answer(completion("done")))

    return ScriptedEngine(script)


@pytest.mark.parametrize("seed", range(3))
async def test_the_books_are_back_at_zero(seed: int) -> None:
    dice = random.Random(seed)
    limited, record = key(requests_per_minute=60, tokens_per_minute=20_000, max_streams=3, max_inflight=20)
    boss, operator = key(Role.OPERATOR)
    one, two = engine_of(dice), engine_of(dice)
    async with one, two:
        ports = [one.port, two.port]

        def view(inflight: int, *, ready: int = 2) -> object:
            limits = ReplicaLimits(inflight=inflight)
            found = [endpoint(f"m-r{n}", port, limits=limits) for n, port in enumerate(ports[:ready])]
            return model(*found, limits=limits, starting=2 - ready, wanted=2)

        room = RoomLimits(places=20, seconds=1.0, starting_seconds=0.5, held_bytes=40_000)
        async with running_plane(view(3), extra_keys=[record, operator], room=room) as running, sweeping(running):
            statuses: Counter[object] = Counter()
            pool = httpx.Limits(max_connections=200)

            async def ask(api: httpx.AsyncClient) -> None:
                body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * dice.randrange(3000)}]}
                headers = {"x-nebula-priority": str(dice.randint(-10, 10))}
                if dice.random() < 0.3:
                    headers["x-nebula-wait"] = f"{dice.random():.2f}"
                try:
                    async with asyncio.timeout(dice.choice([0.01, 0.05, 0.2, 20.0, 20.0])):
                        stream = dice.random() < 0.5
                        response = await api.post(
                            "/v1/chat/completions", json=body | {"stream": stream}, headers=headers
                        )
                        statuses[response.status_code] += 1
                except TimeoutError:
                    statuses["gone"] += 1

            async def meddle() -> None:
                while True:
                    await asyncio.sleep(0.03)
                    running.table(view(dice.choice([1, 2, 3, 8]), ready=dice.choice([0, 1, 2, 2])))  # type: ignore[arg-type]

            async with (
                running.client(limits=pool) as plain,
                running.client(limited, limits=pool) as small,
                running.client(boss, limits=pool) as high,
            ):
                meddler = asyncio.create_task(meddle())
                asked = []
                for _ in range(REQUESTS):
                    asked.append(asyncio.create_task(ask(dice.choice([plain, small, high]))))
                    await asyncio.sleep(dice.random() * 0.01)
                await asyncio.wait_for(asyncio.gather(*asked), 60)
                meddler.cancel()
                with suppress(asyncio.CancelledError):
                    await meddler
                plane = running.plane
                await until(lambda: len(plane.ledger) == 0)
            assert statuses[200] > 0
            assert statuses["gone"] > 0
            assert set(statuses) <= {200, 429, 500, 502, 503, "gone"}, statuses
            assert statuses[500] == 0, statuses
            assert (plane.room.waiting, plane.room._held_bytes) == (0, 0)
            assert all(len(one.line) == 0 for one in plane.room._rooms.values())
            meter = plane.meters.models[MODEL]
            assert meter.waiting == 0
            assert (plane.ledger.replicas, plane.ledger.keys) == ({}, {})
            share = plane.key_limits._shares[record.id]
            assert share.open_streams == 0
            assert not plane.key_limits._parked
            waited = sum(count for (decision, _), count in meter.admissions.items() if decision == "wait")
            assert waited == sum(meter.wait.counts), "who came into the room left it once"
            assert waited > 0
