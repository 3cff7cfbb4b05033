"""`nebula-agent check` on a node with Docker, with a Docker that is away, and without."""

import pytest

from nebula_agent.loops.docker_preflight import docker_findings
from nebula_agent.settings import AgentSettings, DockerSettings

pytestmark = pytest.mark.timeout(60, func_only=True)


async def found(**docker):
    findings = await docker_findings(AgentSettings(docker=DockerSettings(**docker), gpus="none"))
    return {one.name: one for one in findings}


async def test_docker_is_looked_at_from_all_sides(docker):
    here = await found(host=docker.address)
    assert {name: one.verdict for name, one in here.items() if name != "docker disk"} == {
        "docker": "ok",
        "docker live-restore": "warn",
        "docker gpus": "ok",
        "docker catalog": "ok",
    }
    assert "API 1." in here["docker"].detail
    assert "daemon.json" in here["docker live-restore"].hint
    assert str(docker.directory) in here["docker disk"].detail


async def test_what_is_away_off_or_wrong_is_told(tmp_path):
    away = await found(enabled=True, host="unix:///nowhere/docker.sock")
    assert away["docker"].verdict == "FAIL"
    assert "systemctl start docker" in away["docker"].hint
    assert (await found(host="unix:///nowhere/docker.sock"))["docker"].verdict == "warn"
    assert "switched off" in (await found(enabled=False))["docker"].detail


async def test_a_catalog_that_cannot_be_read_fails(docker, tmp_path):
    file = tmp_path / "catalog.toml"
    file.write_text("[[image]]\nengine = 'vllm'\n")
    broken = await found(host=docker.address, catalog_file=file)
    assert broken["docker catalog"].verdict == "FAIL"
    assert "entry 1" in broken["docker catalog"].detail
