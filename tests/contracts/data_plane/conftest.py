"""Each contract holds on the hot path and on the plain ASGI route, on the event loop of production."""

from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from tests.support.scripted_engine import ScriptedEngine


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(params=[True, False], ids=["hot", "asgi"])
def hot(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as running:
        yield running


@pytest.fixture
async def other() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as running:
        yield running
