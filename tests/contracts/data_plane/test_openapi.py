"""The description of the data plane against the data plane itself: schemathesis sends what it allows and what it does not."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from nebula_proxy.decisions import refusal
from nebula_proxy.decisions.calls import CALLS
from nebula_proxy.endpoints.application import application
from nebula_proxy.endpoints.openapi import description
from nebula_proxy.traffic.plane import Plane
from tests.support.data_plane import MODEL, endpoint, model, running_plane
from tests.support.scripted_engine import Conversation, ScriptedEngine, answer, completion, talk

#: Cases per operation; a long run is `NEBULA_SCHEMATHESIS_EXAMPLES=2000`.
LONG = os.environ.get("NEBULA_SCHEMATHESIS_EXAMPLES")
EXAMPLES = int(LONG or "20")
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,negative_data_rejection,ignored_auth,unsupported_method,missing_required_header"
)


def test_it_describes_every_route() -> None:
    described = description()["paths"]
    served = {route.path.replace(":path", "") for route in application(Plane()).routes}  # type: ignore[attr-defined]
    assert set(described) == served
    assert {path for path, item in described.items() if "post" in item} == {path.decode() for path in CALLS}


def test_it_names_every_status_of_ours() -> None:
    """499 is for the log: nobody is left to read it."""
    folder = Path(refusal.__file__).parents[1]
    sources = "".join(path.read_text() for path in folder.rglob("*.py"))
    ours = {int(status) for status in re.findall(r"Refusal\(\s*(\d{3})", sources)} - {499}
    assert {404, 422, 429, 503} <= ours
    described = description()["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {str(status) for status in ours} <= set(described)


async def test_anybody_may_read_it_and_it_names_nothing(hot: bool, engine: ScriptedEngine) -> None:
    view = model(endpoint("secret-r0", engine.port), name="secret")
    async with running_plane(view, hot_path=hot) as running, httpx.AsyncClient(base_url=running.url) as client:
        response = await client.get("/openapi.json")
        assert response.status_code == 200
        assert response.json() == description()
        assert "secret" not in response.text


async def test_the_shapes_are_the_answers(hot: bool, engine: ScriptedEngine) -> None:
    document = description()

    def fits(name: str, value: Any) -> bool:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        return bool(jsonschema_rs.is_valid(schema, value))

    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running, running.client() as client:
        assert fits("ModelList", (await client.get("/v1/models")).json())
        assert fits("ModelCard", (await client.get(f"/v1/models/{MODEL}")).json())
        assert fits("HealthAnswer", (await client.get("/health")).json())
        assert fits("AliveAnswer", (await client.get("/healthz")).json())
        assert fits("ReadyAnswer", (await client.get("/readyz")).json())
        for path, body in (("/v1/chat/completions", {}), ("/v1/completions", {"model": "nope"}), ("/nope", {})):
            assert fits("Error", (await client.post(path, json=body)).json())
        assert not fits("Error", {"error": "Unauthorized"})
        assert not fits("InferenceRequest", {"model": ""})
        assert not fits("InferenceRequest", {"model": "m", "stream": "yes"})
        assert fits("InferenceRequest", {"model": "m", "stream": None, "n": "odd", "anything": [1]})


async def any_call(conversation: Conversation) -> None:
    if conversation.path == b"/v1/chat/completions":
        await talk(conversation)
    elif conversation.json.get("stream") and conversation.path in {b"/v1/completions", b"/v1/messages"}:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        body = b"event: message_stop\ndata: {}\n\ndata: [DONE]\n\n"
        await conversation.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    else:
        await conversation.send(answer(completion("x")))


@pytest.mark.timeout(1200)
async def test_schemathesis_finds_nothing(engine: ScriptedEngine, tmp_path: Path) -> None:
    """No 5xx of our own, no answer that is not described, no way round the key."""
    engine.script = any_call
    document = description()
    # Names that reach an engine, and one that does not.
    names = {"type": "string", "enum": [MODEL, "nope"]}
    document["components"]["schemas"]["InferenceRequest"]["properties"]["model"] = names
    described = tmp_path / "openapi.json"
    described.write_text(json.dumps(document))
    kind = "llamacpp"  # so that Responses are translated, which is more of ours
    async with running_plane(model(endpoint("m-r0", engine.port, engine=kind))) as running:
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("schemathesis")), "run", str(described), "--url", running.url),
            *("--header", f"Authorization: Bearer {running.token}", "--checks", CHECKS, "--no-color", "--no-shrink"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--warnings", "off"),
            *("--continue-on-failure", "--generation-database", "none", "--request-timeout", "60"),
            # How fast the machine makes up cases says nothing of the proxy.
            *("--suppress-health-check", "too_slow"),
            # The suite must say the same twice; a long run goes where nobody has been.
            *(() if LONG else ("--seed", "1")),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()[-8000:]
        print(output.decode()[-400:])  # noqa: T201 - how many cases, for a long run (pytest -s)
        statuses: dict[int, int] = {}
        for meter in (running.plane.meters.nobody, *running.plane.meters.models.values()):
            for status, count in meter.statuses.items():
                statuses[status] = statuses.get(status, 0) + count
        assert statuses.get(200, 0) > EXAMPLES
        assert sum(statuses.values()) > 100
        assert max(statuses) < 500
        assert len(running.plane.ledger) == 0
