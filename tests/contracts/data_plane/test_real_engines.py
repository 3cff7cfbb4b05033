"""Streams of a real vLLM, broken off at many places, go on token by token (GOALS R3). The same with the simulated engine.

The engine stands twice in the routing table: behind a relay that breaks its answers off, and by itself.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.contracts.data_plane.test_resume import anew, chunks, text_of
from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane, until
from tests.support.engine_process import EngineProcess, SimulatedEngine, VllmEngine, missing_vllm
from tests.support.ports import free_port
from tests.support.relay import Relay

ARGUMENTS = ("--served-model-name", MODEL, "--max-model-len", "2048", "--max-num-seqs", "16")
PROMPTS = ("Hello there, write a class", "é€𝄞 in one line", "import os", "Tell me of the sea", "1 2 3", "ünïcödé")


@pytest.fixture(
    scope="module",
    params=["simulated", pytest.param("vllm", marks=[pytest.mark.engine, pytest.mark.timeout(420)])],
)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "simulated":
        engine: EngineProcess = SimulatedEngine(directory, *ARGUMENTS, "--preset", "tiny")
    else:
        reason = missing_vllm()
        if reason is not None:
            pytest.skip(reason)
        engine = VllmEngine(directory, *ARGUMENTS, port=free_port())
    with engine:
        engine.wait_ready()
        yield engine


@pytest.fixture
async def broken(real: EngineProcess) -> AsyncIterator[tuple[RunningPlane, Relay]]:
    port = urlsplit(real.url).port
    assert port is not None
    async with Relay("127.0.0.1", port) as relay:
        routes = [endpoint(f"m-r{n}", each, engine="vllm", resume=True) for n, each in enumerate((relay.port, port))]
        async with running_plane(model(*routes)) as running:
            yield running, relay


async def ask(running: RunningPlane, path: str, body: dict[str, Any]) -> bytes:
    async with running.client() as client:
        return (await client.post(path, json=body, timeout=60)).content


def same(stream: bytes, whole: dict[str, Any]) -> None:
    choice = whole["choices"][0]
    assert b"event: error" not in stream
    assert text_of(stream) == (choice["message"]["content"] if "message" in choice else choice["text"])
    last = [c for each in chunks(stream) for c in each["choices"]][-1]
    assert (last["finish_reason"], last["stop_reason"]) == (choice["finish_reason"], choice["stop_reason"])
    usage = chunks(stream)[-1]["usage"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[name] == whole["usage"][name]
    assert stream.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "fields",
    [{}, {"stop": ["class", "the sea is"]}, {"ignore_eos": True, "repetition_penalty": 1.2}, {"min_tokens": 30}],
)
async def test_every_stream_goes_on_as_if_uncut(
    broken: tuple[RunningPlane, Relay], real: EngineProcess, fields: dict[str, Any]
) -> None:
    running, relay = broken
    settings = {"model": MODEL, "temperature": 0, "max_tokens": 40} | fields
    async with httpx.AsyncClient(base_url=real.url, timeout=60) as direct:
        # The simulated engine is asked always, so in short.
        for number, prompt in enumerate(PROMPTS if isinstance(real, VllmEngine) else PROMPTS[:2]):
            for path, asked in (
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}),
                ("/v1/completions", {"prompt": prompt}),
            ):
                body = settings | asked
                whole = (await direct.post(path, json=body)).json()
                for cut in (700 + 97 * number, 2000 + 131 * number, 5500 + 89 * number):
                    anew(running)
                    relay.cut_after = cut
                    stream = body | {"stream": True, "stream_options": {"include_usage": True}}
                    same(await ask(running, path, stream), whole)
    retries = running.plane.meters.of(MODEL).retries
    assert retries["resumed"] >= 6
    assert "resume_failed" not in retries


async def test_a_sampled_stream_goes_on_too(broken: tuple[RunningPlane, Relay]) -> None:
    running, relay = broken
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Go on"}], "temperature": 0.9, "seed": 4}
    stream = body | {"max_tokens": 40, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    relay.cut_after = 4000
    answer = await ask(running, "/v1/chat/completions", stream)
    assert running.plane.meters.of(MODEL).retries == {"resumed": 1}
    assert b"event: error" not in answer
    assert chunks(answer)[-1]["usage"]["completion_tokens"] == 40


async def test_without_a_limit_it_runs_until_the_context_is_full(broken: tuple[RunningPlane, Relay]) -> None:
    running, relay = broken
    body = {"model": MODEL, "messages": [{"role": "user", "content": "On and on. " * 330}], "temperature": 0}
    stream = body | {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    # The first stream without a limit makes the proxy ask how many tokens fit.
    whole = await ask(running, "/v1/chat/completions", stream)
    assert chunks(whole)[-1]["usage"]["total_tokens"] == 2048
    await until(lambda: running.plane.contexts.of(running.plane.table.models[MODEL].routes[1]) is not None)
    anew(running)
    relay.cut_after = 20_000
    answer = await ask(running, "/v1/chat/completions", stream)
    assert b"event: error" not in answer
    assert text_of(answer) == text_of(whole)
    assert chunks(answer)[-1]["usage"] == chunks(whole)[-1]["usage"]
    assert running.plane.meters.of(MODEL).retries["resumed"] >= 1
