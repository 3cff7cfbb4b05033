"""A running control process for every test of the Control API."""

from collections.abc import AsyncIterator

import pytest

from tests.support.control import RunningControl, running_control
from tests.support.store import StoreServer


@pytest.fixture
async def control(store_server: StoreServer) -> AsyncIterator[RunningControl]:
    async with running_control(store_server) as running:
        yield running
