"""A request that kills engines is stopped after two; those that merely were there go on."""

from typing import Any

import pytest

from tests.contracts.data_plane.test_resume import ANSWER, CHAT, TEXT, text_of
from tests.support.data_plane import MODEL, endpoint, model, running_plane
from tests.support.scripted_engine import Conversation, ScriptedEngine
from tests.support.token_engine import TokenEngine

POISON = CHAT | {"max_tokens": 50, "messages": [{"role": "user", "content": "poison"}]}


@pytest.mark.parametrize("begun", [False, True])
async def test_two_engines_die_and_not_the_fleet(hot: bool, begun: bool) -> None:
    deaths: list[int] = []

    def killed_by_poison(number: int, engine: ScriptedEngine) -> Any:
        talk = TokenEngine(ANSWER)

        async def script(conversation: Conversation) -> None:
            if b"poison" not in conversation.body and b"/v1/completions" not in conversation.line:
                await talk(conversation)
                return
            deaths.append(number)
            if begun:
                talk.cut = 5
                await talk(conversation)
            conversation.reset()
            await engine.stop_listening()

        return script

    engines = [ScriptedEngine() for _ in range(4)]
    for number, engine in enumerate(engines):
        engine.script = killed_by_poison(number, engine)
        await engine.__aenter__()
    try:
        routes = [endpoint(f"m-r{n}", each.port, engine="vllm", resume=True) for n, each in enumerate(engines)]
        async with running_plane(model(*routes), hot_path=hot) as running, running.client() as client:
            first = await client.post("/v1/chat/completions", json=POISON)
            if begun:
                assert first.status_code == 200
                assert first.content.count(b"event: error") == 1
                assert b"it was there when another engine died" in first.content
            else:
                assert first.status_code == 502
            again = await client.post("/v1/chat/completions", json=POISON)
            assert again.status_code == 422
            assert again.json()["error"]["code"] == "request_quarantined"
            assert "change the request" in again.json()["error"]["hint"]
            assert len(deaths) == 2
            other = await client.post("/v1/chat/completions", json=CHAT)
            assert text_of(other.content) == TEXT
            assert running.plane.meters.of(MODEL).statuses.get(422) == 1
            assert len(running.plane.quarantine) == 1
    finally:
        for engine in engines:
            await engine.__aexit__(None, None, None)


async def test_a_lost_connection_of_a_living_engine_counts_for_nothing(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine
) -> None:
    talk = TokenEngine(ANSWER)
    left = [3]

    async def flaky(conversation: Conversation) -> None:
        if left[0]:
            left[0] -= 1
            conversation.reset()
        else:
            await talk(conversation)

    engine.script = other.script = flaky
    routes = [endpoint("m-r0", engine.port), endpoint("m-r1", other.port)]
    async with running_plane(model(*routes), hot_path=hot) as running, running.client() as client:
        statuses = []
        for _ in range(4):
            statuses.append((await client.post("/v1/chat/completions", json=CHAT)).status_code)
            running.plane.ejections.clear("m-r0")
            running.plane.ejections.clear("m-r1")
        assert statuses[-2:] == [200, 200]
        assert len(running.plane.quarantine) == 0
