"""A control plane of a test's own, on the shared store."""

import pytest

from tests.support.agent import Cluster


@pytest.fixture
async def cluster(tmp_path, store):
    made = Cluster(tmp_path, store)
    yield made
    made.close()
