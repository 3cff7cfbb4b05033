"""The script of sixty calls: sync and async, with the engine's own Responses API and with the translated one (GOALS E2)."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from tests.flows.openai_script import STEPS, Target, run
from tests.support.data_plane import MODEL, RunningPlane, endpoint, key, model, running_plane
from tests.support.engine_process import SimulatedEngine

pytestmark = pytest.mark.flow
EMBEDDING = "embedding"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """A simulated engine that writes and one that embeds."""
    folder = tmp_path_factory.mktemp("engines")
    common = ("--preset", "instant", "--max-model-len", "8192")
    writes = SimulatedEngine(folder, "--served-model-name", MODEL, "--enable-auto-tool-choice", *common)
    embeds = SimulatedEngine(folder, "--served-model-name", EMBEDDING, "--runner", "pooling", *common)
    with writes, embeds:
        yield port_of(writes), port_of(embeds)


def port_of(engine: SimulatedEngine) -> int:
    port = urlsplit(engine.url).port
    assert port is not None
    return port


@asynccontextmanager
async def served(engines: tuple[int, int], kind: str) -> AsyncIterator[tuple[RunningPlane, Target]]:
    limited, record = key(max_inflight=1)
    models = (
        model(endpoint("m-r0", engines[0], engine=kind)),
        model(endpoint("e-r0", engines[1], model=EMBEDDING, deployment=EMBEDDING), name=EMBEDDING),
    )
    async with running_plane(*models, extra_keys=[record]) as running:
        yield running, Target(f"{running.url}/v1", running.token, MODEL, EMBEDDING, limited)


def test_it_has_sixty_calls() -> None:
    assert len(STEPS) >= 60


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("kind", ["vllm", "llamacpp"], ids=["passed", "translated"])
async def test_every_call_passes(engines: tuple[int, int], kind: str, asynchronous: bool) -> None:
    async with served(engines, kind) as (running, target):
        results = [result async for result in run(target, asynchronous=asynchronous)]
        assert [result for result in results if result.problem is not None] == []
        assert len(results) == len(STEPS)
        assert len(running.plane.ledger) == 0
