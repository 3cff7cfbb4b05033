"""An agent beside an engine's container: placed, ready, its log told, adopted by the next agent, stopped; its loop asks no disk."""

import subprocess
import sys
from pathlib import Path

import pytest

from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from tests.support.disk_audit import asked
from tests.support.ports import free_ports

pytestmark = pytest.mark.timeout(90)

ENTRY_POINT = Path(__file__).resolve().parents[3] / "deploy" / "sidecar-entrypoint.sh"


async def test_a_pod_runs_what_is_placed_on_it(cluster, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    container = subprocess.Popen(["sh", str(ENTRY_POINT), str(volume)], start_new_session=True)  # noqa: ASYNC220
    try:
        port = free_ports(1)
        settings = {"directory": str(volume), "port": port, "programs": {"simulated": sys.executable}}
        audit = tmp_path / "audit"
        agent = cluster.agent(sidecar=settings, audit=audit).start()
        placement = await cluster.place(cluster.placement())
        status = await cluster.until(Phase.READY, seconds=60)
        assert (status.runtime, status.endpoint.port, status.pid) == ("sidecar", port, None)
        assert (volume / "running").read_text().strip() == status.engine_epoch
        agent.kill()
        agent = cluster.agent(sidecar=settings, audit=audit).start()
        await cluster.returned(agent)
        again = await cluster.until(Phase.READY)
        assert (again.engine_epoch, again.restarts) == (status.engine_epoch, 0)
        await cluster.want(placement, Wanted.STOP)
        await cluster.until(Phase.STOPPED)
        assert (volume / "ended").read_text().split()[0] == status.engine_epoch
        assert "simulated" in (volume / "engine.log").read_text()
        assert agent.stop() == 0
        assert not asked(audit)
    finally:
        container.terminate()
        container.wait(40)
