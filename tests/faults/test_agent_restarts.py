"""Agents killed and stopped in turn under traffic: the benchmark of GOALS R6, a dozen restarts of its thousand."""

import pytest

from benchmarks.agent_restarts import arguments, measure
from tests.support.docker import why_no_docker


# Minutes of it are for others who may have Docker when this one wants it.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("containers", [False, True], ids=["processes", "containers"])
async def test_every_engine_is_adopted_as_it_was_and_no_stream_fails(tmp_path, containers):
    if containers and (reason := why_no_docker()) is not None:
        pytest.skip(reason)
    restarts = 4 if containers else 12
    flags = ["--restarts", str(restarts), "--nodes", "2", "--clients", "2", *(["--containers"] if containers else [])]
    result = await measure(arguments(flags), tmp_path)
    assert (result["restarts"], result["engines"], result["containers"]) == (restarts, 4, containers)
    assert result["lost"] == []
    assert result["failed"] == []
    assert result["requests"] > 0
