"""The engines under contract: the simulated one always, vLLM with the marker `engine`, one of each for all tests.

Tests that end their engine ask for `doomed_engine`; they run last, so that vLLM is started as rarely as possible.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.engine_process import EngineProcess, SimulatedEngine, VllmEngine, missing_vllm
from tests.support.ports import free_port

ARGUMENTS = ("--served-model-name", "tiny", "--max-model-len", "2048", "--max-num-seqs", "16")
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if _HERE in item.path.parents]
    ours.sort(key=lambda item: ("vllm" in item.name, "doomed_engine" in getattr(item, "fixturenames", ())))
    places = [index for index, item in enumerate(items) if _HERE in item.path.parents]
    for place, item in zip(places, ours, strict=True):
        items[place] = item


@pytest.fixture(
    scope="session",
    params=["simulated", pytest.param("vllm", marks=[pytest.mark.engine, pytest.mark.timeout(420)])],
)
def start_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., EngineProcess]]:
    """Gives the running engine; starts it first if there is none, or none that lives, or a `fresh` one is cheap."""
    directory = tmp_path_factory.mktemp(request.param)
    running: list[EngineProcess] = []

    def start(*, fresh: bool = False) -> EngineProcess:
        if running and running[-1].alive and not (fresh and request.param == "simulated"):
            return running[-1]
        if request.param == "simulated":
            engine: EngineProcess = SimulatedEngine(directory, *ARGUMENTS, "--death-exit-seconds", "2")
        else:
            reason = missing_vllm()
            if reason is not None:
                pytest.skip(reason)
            engine = VllmEngine(directory, *ARGUMENTS, port=free_port())
        running.append(engine)
        return engine.wait_ready()

    yield start
    for engine in running:
        engine.kill()


@pytest.fixture
def engine(start_engine: Callable[..., EngineProcess]) -> EngineProcess:
    return start_engine()


@pytest.fixture
def doomed_engine(start_engine: Callable[..., EngineProcess]) -> Iterator[EngineProcess]:
    """An engine the test may end; it is not used again."""
    engine = start_engine(fresh=True)
    yield engine
    with contextlib.suppress(ProcessLookupError):
        engine.kill()


@pytest.fixture
async def client(engine: EngineProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=engine.url, timeout=60.0, trust_env=False) as opened:
        yield opened
