"""A data plane in front of one scripted engine."""

from collections.abc import AsyncIterator

import pytest

from tests.support.data_plane import RunningPlane, endpoint, model, running_plane
from tests.support.scripted_engine import ScriptedEngine


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as running:
        yield running


@pytest.fixture
async def running(engine: ScriptedEngine) -> AsyncIterator[RunningPlane]:
    async with running_plane(model(endpoint("m-r0", engine.port)), model(name="cold", wanted=0)) as plane:
        yield plane
