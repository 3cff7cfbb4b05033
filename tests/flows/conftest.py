"""One cluster for all flows that do not break it."""

import pytest

from tests.support.up import cluster


@pytest.fixture(scope="session")
def up(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("up") / "data") as running:
        yield running
