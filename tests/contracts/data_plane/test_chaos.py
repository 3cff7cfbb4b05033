"""Whatever engines and clients do, in any order: every request ends in one way, and nothing is left over."""

import asyncio
import json
import random

import pytest

from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane, until
from tests.support.scripted_engine import (
    DONE,
    STREAM_HEAD,
    Conversation,
    ScriptedEngine,
    answer,
    chunked,
    completion,
    event,
    tokens,
)

REQUESTS = 150


def unruly(dice: random.Random) -> object:
    async def script(conversation: Conversation) -> None:
        whole = STREAM_HEAD + chunked(*tokens("a", "b", "c", "d"))
        if not conversation.json.get("stream"):
            whole = answer(completion("x" * 500))
        match dice.choice(["well", "well", "cut", "reset", "busy", "error", "abort", "500", "silent", "slow"]):
            case "well":
                await conversation.send(whole)
            case "cut":
                await conversation.send(whole[: dice.randrange(len(whole))])
                conversation.close()
            case "reset":
                await conversation.send(whole[: dice.randrange(len(whole))])
                await asyncio.sleep(0.002)
                conversation.reset()
            case "busy":
                await conversation.send(answer({"error": "full"}, dice.choice([429, 503])))
            case "500":
                await conversation.send(answer({"error": "bug"}, 500))
            case "error":
                error = b'data: {"error": {"message": "x", "code": 500}}\n\n'
                sound = [event("a")] * dice.randrange(3)
                await conversation.send(STREAM_HEAD + chunked(*sound, error, DONE))
            case "abort":
                await conversation.send(STREAM_HEAD + chunked(event("a"), event("", finish="abort"), DONE))
            case "silent":
                await asyncio.sleep(0.02)
                conversation.close()
            case "slow":
                for at in range(0, len(whole), 97):
                    await conversation.send(whole[at : at + 97])
                    await asyncio.sleep(0.001)

    return script


async def one(running: RunningPlane, dice: random.Random) -> str:
    """How one request ended, as its client sees it."""
    stream = dice.random() < 0.7
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        # Each its own prompt: the same one at every death would be quarantined, and rightly.
        messages = [{"role": "user", "content": f"hi {dice.random()}"}]
        body = {"model": MODEL, "messages": messages, "stream": stream}
        writer.write(running.request(body, headers={"connection": "close"}))
        if dice.random() < 0.2:
            await asyncio.sleep(dice.random() * 0.02)
            return "left"
        async with asyncio.timeout(60):
            raw = await reader.read(-1)
    finally:
        writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    status = int(head[9:12])
    if status != 200:
        json.loads(body)
        return "error"
    if b"text/event-stream" not in head:
        assert json.loads(body) == completion("x" * 500)
        return "whole"
    done, error = b"data: [DONE]\n\n" in body, b"event: error\n" in body
    assert done != error, body  # exactly one of them: never a silent end
    assert body.endswith(b"\r\n0\r\n\r\n")
    return "whole" if done else "told"


@pytest.mark.parametrize("seed", range(4))
async def test_every_request_ends_and_nothing_is_left(hot: bool, seed: int) -> None:
    dice = random.Random(seed)
    async with ScriptedEngine() as first, ScriptedEngine() as second, ScriptedEngine() as third:
        engines = [first, second, third]
        for engine in engines:
            engine.script = unruly(dice)  # type: ignore[assignment]
        endpoints = [endpoint(f"m-r{number}", engine.port) for number, engine in enumerate(engines)]
        async with running_plane(model(*endpoints), hot_path=hot) as running:
            plane = running.plane
            ends: list[str] = []
            for _ in range(REQUESTS // 15):
                ends += await asyncio.gather(*(one(running, dice) for _ in range(15)))
            assert len(ends) == REQUESTS
            assert {"whole", "left"} <= set(ends)
            await until(lambda: len(plane.ledger) == 0 and running.server.connections == 0)
            assert plane.ledger.replicas == {}
            assert plane.ledger.keys == {}
            finished = sum(plane.meters.of(MODEL).statuses.values())
            # A client may leave before its request has come.
            assert REQUESTS - ends.count("left") <= finished <= REQUESTS
            attempts = sum(len(engine.conversations) for engine in engines)
            assert attempts <= finished + plane.budget.reserve + 0.1 * finished + ends.count("left")
            await until(lambda: plane.client.open_connections == plane.client.idle_connections)
            # Who was given up while it connected takes its leave in the next turn.
            await until(
                lambda: (
                    not [
                        task for task in asyncio.all_tasks() if task.get_name().startswith(("connect", "client watch"))
                    ]
                )
            )
