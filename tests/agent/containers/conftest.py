"""A Docker for the tests of one module, with the image of the simulated engine and a registry beside it."""

import shutil
from collections.abc import Iterator

import pytest

from tests.support.docker import DockerDaemon, Registry, simulator_docker, why_no_docker


@pytest.fixture(scope="module")
def docker() -> Iterator[DockerDaemon]:
    """A running daemon; a test that kills it starts it again."""
    reason = why_no_docker()
    if reason is not None:
        pytest.skip(reason)
    with simulator_docker() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def registry(docker: DockerDaemon) -> Iterator[Registry]:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry not installed (apt: docker-registry)")
    made = Registry(docker.directory / "registry").start()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _emptied(docker: DockerDaemon) -> Iterator[None]:
    """No test finds the containers of another."""
    yield
    docker.revive()
    docker.empty()
