"""Which web pages may read answers: none by default, those of allowed origins where an operator says so."""

import pytest

from tests.support.data_plane import MODEL, endpoint, model, running_plane
from tests.support.scripted_engine import ScriptedEngine

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"
PAGE = "https://page.example"
ALLOW = "access-control-allow-origin"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}


async def test_nobody_by_default(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        headers = {"origin": PAGE}
        for response in (
            await client.post(PATH, json=CHAT, headers=headers),
            await client.get("/v1/models", headers=headers),
            await client.options(PATH, headers=headers | PREFLIGHT),
        ):
            assert ALLOW not in response.headers
        assert response.status_code == 405


@pytest.mark.parametrize(("allowed", "told"), [([PAGE], PAGE), (["*"], "*"), (["https://other.example"], None)])
async def test_those_that_are_allowed(hot: bool, engine: ScriptedEngine, allowed: list[str], told: str | None) -> None:
    view = model(endpoint("m-r0", engine.port))
    async with (
        running_plane(view, hot_path=hot, allowed_origins=allowed) as running,
        running.client() as client,
    ):
        headers = {"origin": PAGE}
        answers = [
            await client.post(PATH, json=CHAT, headers=headers),
            await client.post(PATH, json=CHAT | {"stream": True}, headers=headers),
            await client.post(PATH, json={}, headers=headers),
            await client.get("/v1/models", headers=headers),
            await client.options(PATH, headers=headers | PREFLIGHT),
        ]
        assert [answer.headers.get(ALLOW) for answer in answers] == [told] * 5
        assert [answer.status_code for answer in answers[:4]] == [200, 200, 400, 200]
        if told is not None:
            assert answers[4].status_code == 200
            assert "x-nebula-replica" in answers[0].headers["access-control-expose-headers"]
            assert answers[1].content.endswith(b"data: [DONE]\n\n")
        if told == PAGE:
            assert "origin" in answers[0].headers["vary"].lower()
        plain = await client.post(PATH, json=CHAT)
        assert plain.status_code == 200


async def test_a_bug_in_an_endpoint_is_an_envelope_too(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        running.plane.table.models = None  # type: ignore[assignment]
        response = await client.get("/v1/models")
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
        assert response.json()["error"]["hint"]
        running.plane.table.models = {}
