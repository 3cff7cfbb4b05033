"""The data plane before a real process that behaves like vLLM: the same text, and its deaths told."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.data_plane import MODEL, endpoint, model, running_plane, until
from tests.support.engine_process import SimulatedEngine
from tests.support.responses import check_grammar, parse

PROMPT = [{"role": "user", "content": "Tell me of the sea."}]
BODY = {"model": MODEL, "messages": PROMPT, "temperature": 0, "max_tokens": 60}


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[SimulatedEngine]:
    arguments = ("--served-model-name", MODEL, "--preset", "instant", "--allow-request-faults")
    with SimulatedEngine(tmp_path, *arguments, "--death-exit-seconds", "0.5") as engine:
        engine.wait_ready()
        yield engine


def port_of(engine: SimulatedEngine) -> int:
    port = urlsplit(engine.url).port
    assert port is not None
    return port


def text_of(body: bytes) -> str:
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    deltas = [json.loads(each)["choices"][0]["delta"] for each in events if json.loads(each)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


async def test_the_text_is_what_the_engine_alone_gives(hot: bool, simulated: SimulatedEngine) -> None:
    async with (
        running_plane(model(endpoint("m-r0", port_of(simulated))), hot_path=hot) as running,
        running.client() as client,
        httpx.AsyncClient(base_url=simulated.url) as direct,
    ):
        for path, body in (
            ("/v1/chat/completions", BODY),
            ("/v1/completions", {"model": MODEL, "prompt": "The sea", "temperature": 0, "max_tokens": 30}),
        ):
            ours, theirs = [(await each.post(path, json=body)).json() for each in (client, direct)]
            assert ours["choices"] == theirs["choices"]
            assert ours["usage"] == theirs["usage"]
        stream = BODY | {"stream": True, "stream_options": {"include_usage": True}}
        ours, theirs = [(await each.post("/v1/chat/completions", json=stream)).content for each in (client, direct)]
        assert text_of(ours) == text_of(theirs)
        assert ours.endswith(b"data: [DONE]\n\n")
        assert running.plane.meters.of(MODEL).completion_tokens > 60
        for path, request in (("/v1/responses", {"model": MODEL, "input": "The sea"}), ("/v1/messages", BODY)):
            response = await client.post(path, json=request | {"stream": True})
            assert response.status_code == 200
            assert b"event: error" not in response.content
            assert (await client.post(path, json=request)).status_code == 200
        too_long = await client.post("/v1/chat/completions", json=BODY | {"max_tokens": 10_000_000})
        assert too_long.status_code == 400
        assert (
            too_long.json()
            == (await direct.post("/v1/chat/completions", json=BODY | {"max_tokens": 10_000_000})).json()
        )


@pytest.mark.parametrize("fault", ["crash@5", "error@5"])
async def test_its_death_in_a_stream_is_told(hot: bool, simulated: SimulatedEngine, fault: str) -> None:
    async with (
        running_plane(model(endpoint("m-r0", port_of(simulated))), hot_path=hot) as running,
        running.client() as client,
    ):
        response = await client.post("/v1/chat/completions", json=BODY | {"stream": True, "nebula_fault": fault})
        if response.status_code == 200:
            assert b"event: error\n" in response.content
            assert b"[DONE]" not in response.content
        else:
            # All of it came in one read, the error too: then nothing had been sent yet.
            assert (response.status_code, response.json()["error"]["code"]) == (502, "engine_died")


async def test_its_death_before_the_answer_is_not_seen(hot: bool, simulated: SimulatedEngine, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    with SimulatedEngine(second, "--served-model-name", MODEL, "--preset", "instant") as other:
        other.wait_ready()
        both = model(endpoint("m-r0", port_of(simulated)), endpoint("m-r1", port_of(other)))
        async with running_plane(both, hot_path=hot) as running, running.client() as client:
            simulated.kill()
            responses = await asyncio.gather(*(client.post("/v1/chat/completions", json=BODY) for _ in range(20)))
            assert {response.status_code for response in responses} == {200}


async def test_a_client_that_leaves_frees_the_engine(hot: bool, tmp_path: Path) -> None:
    with SimulatedEngine(tmp_path, "--served-model-name", MODEL, "--preset", "h100-70b") as engine:
        engine.wait_ready()
        async with (
            running_plane(model(endpoint("m-r0", port_of(engine))), hot_path=hot) as running,
            running.client() as client,
            httpx.AsyncClient(base_url=engine.url) as direct,
        ):

            async def requests_running() -> float:
                lines = (await direct.get("/metrics")).text.splitlines()
                (line,) = [each for each in lines if each.startswith("vllm:num_requests_running{")]
                return float(line.rsplit(" ", 1)[1])

            body = BODY | {"stream": True, "max_tokens": 2000, "ignore_eos": True}
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                await anext(response.aiter_bytes())
                assert await requests_running() == 1
            async with asyncio.timeout(30):
                while await requests_running():
                    await asyncio.sleep(0.02)
            await until(lambda: len(running.plane.ledger) == 0)


async def test_streams_of_a_killed_engine_go_on_from_another(hot: bool, tmp_path: Path) -> None:
    """Every one becomes the text that an uncut run gives, with its usage."""
    arguments = ("--served-model-name", MODEL, "--preset")
    bodies = [
        BODY
        | {"messages": [{"role": "user", "content": f"Tell me of sea {n}."}], "max_tokens": 250, "ignore_eos": True}
        | {"stream": True, "stream_options": {"include_usage": True}}
        for n in range(8)
    ]
    # The one that dies is so slow that it has not come to the end by then, whatever the machine does meanwhile.
    with (
        SimulatedEngine(tmp_path, *arguments, "h100-70b") as one,
        SimulatedEngine(tmp_path, *arguments, "tiny") as two,
    ):
        one.wait_ready()
        two.wait_ready()
        async with httpx.AsyncClient(base_url=two.url, timeout=30) as direct:
            expected = [(await direct.post("/v1/chat/completions", json=body)).content for body in bodies[:2]]
        routes = [endpoint(f"m-r{n}", port_of(each), resume=True) for n, each in enumerate((one, two))]
        async with running_plane(model(*routes), hot_path=hot) as running, running.client() as client:

            def begun(replica: str) -> int:
                on_it = [
                    each for each in running.plane.ledger if each.route is not None and each.route.replica == replica
                ]
                return sum(flow is not None and flow.events > 0 for flow in (each.flow(0.0) for each in on_it))

            asked = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for body in bodies]
            meter = running.plane.meters.of(MODEL)
            await until(lambda: sum(meter.itl.counts) > 200 and begun("m-r0") >= 2)
            one.kill()
            answers = [await each for each in asked]
            assert meter.retries["resumed"] >= 2
        for answer in answers:
            assert b"event: error" not in answer.content
            assert answer.content.endswith(b"data: [DONE]\n\n")
            assert b'"completion_tokens":250' in answer.content
        for answer, uncut in zip(answers, expected, strict=False):
            assert text_of(answer.content) == text_of(uncut)


async def test_a_translated_response_is_resumed_like_the_chat_it_is(hot: bool, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    flags = ("--served-model-name", MODEL, "--preset", "h100-8b")
    ask = {"model": MODEL, "input": "Tell me of the sea.", "temperature": 0, "max_output_tokens": 80}
    with SimulatedEngine(folders[0], *flags) as first, SimulatedEngine(folders[1], *flags) as second:
        view = model(*(endpoint(f"m-r{n}", port_of(each), resume=True) for n, each in enumerate((first, second))))
        async with running_plane(view, hot_path=hot) as running, running.client() as client:
            for route in running.plane.table.models[MODEL].routes:
                route.speaks_responses = False
            whole = (await client.post("/v1/responses", json=ask)).json()
            raw = b""
            async with client.stream("POST", "/v1/responses", json=ask | {"stream": True}) as response:
                async for piece in response.aiter_bytes():
                    raw += piece
                    if b"output_text.delta" in raw:
                        (first if response.headers["x-nebula-replica"] == "m-r0" else second).kill()
            final = check_grammar(parse(raw))
            assert final["output"][0]["content"][0]["text"] == whole["output"][0]["content"][0]["text"]
            assert final["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
            assert b"token_ids" not in raw
