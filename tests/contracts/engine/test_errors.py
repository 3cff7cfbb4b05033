"""What an engine says when it is asked for something it cannot do: the captured status and body, to the letter."""

import json
from typing import Any

import httpx
import pytest

from tests.contracts.engine.shapes import captures

CHAT = "/v1/chat/completions"
CAPTURED = [one for one in captures("errors") if one.request is not None and one.status >= 400]


@pytest.mark.parametrize("capture", CAPTURED, ids=lambda capture: str(sorted(capture.request)))
async def test_a_captured_error(client: httpx.AsyncClient, capture: Any) -> None:
    reply = await client.post(capture.path, json=capture.request)
    assert (reply.status_code, reply.json()) == (capture.status, json.loads(capture.body))


async def test_a_body_that_is_no_json(client: httpx.AsyncClient) -> None:
    reply = await client.post(
        CHAT, content=b'{"model":"tiny","messages":[', headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400
    assert reply.json() == json.loads(captures("errors")[0].body)


async def test_a_content_type_that_is_not_json(client: httpx.AsyncClient) -> None:
    reply = await client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
    assert reply.status_code == 400
    assert reply.json()["error"] == {
        "message": "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
        "type": "Bad Request",
        "param": None,
        "code": 400,
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_a_prompt_that_is_too_long_is_refused_before_the_stream(
    client: httpx.AsyncClient, path: str, stream: bool
) -> None:
    text = "word " * 3000
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    reply = await client.post(path, json={"model": "tiny", "stream": stream, "max_tokens": 5, **prompt})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["type"] == "BadRequestError"
    assert error["param"] == "input_tokens"
    assert error["message"].startswith("This model's maximum context length is 2048 tokens. However, ")


async def test_unknown_paths_and_wrong_methods(client: httpx.AsyncClient) -> None:
    nowhere = await client.get("/v1/nope")
    assert (nowhere.status_code, nowhere.json()) == (404, {"detail": "Not Found"})
    wrong = await client.get(CHAT)
    assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})
    assert wrong.headers["allow"] == "POST"
