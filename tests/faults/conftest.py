"""A cluster per test: these break it."""

import pytest

from tests.support.up import cluster


@pytest.fixture
def up(tmp_path):
    with cluster(tmp_path / "data", "--nodes", "2", "--gpus", "2") as running:
        yield running
