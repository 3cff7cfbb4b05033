"""The agent's unit under a real systemd: ready by notify, ended when its loop stands still, engines that outlive it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from tests.support import nspawn
from tests.support.agent import eventually

pytestmark = [pytest.mark.flow, pytest.mark.timeout(240)]

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_hardened_and_understood(tmp_path):
    unit = DEPLOY / nspawn.AGENT
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(unit)],
        capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    level = re.search(r"Overall exposure level for [^:]+: ([0-9.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    assert float(level[1]) <= 2.0
    # The program it starts is not installed here; every other word of it must be understood without a remark.
    copy = tmp_path / nspawn.AGENT
    copy.write_text(re.sub(r"^ExecStart=.*$", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


async def test_it_is_active_when_it_says_so_and_runs_what_is_placed(node):
    await node.active()
    assert node.machine.run("stat", "-c", "%U %a", str(node.machine.state)) == "nebula 700"
    assert "node n1" in node.machine.show("StatusText")
    await node.cluster.place(node.cluster.placement())
    status = await node.cluster.until(Phase.READY, seconds=60)
    assert node.machine.alive(status.pid)
    assert int(node.machine.run("stat", "-c", "%u", f"/proc/{status.pid}")) != 0


async def test_a_restart_leaves_engines_running_and_adopts_them(node):
    engine = await node.reported_by(node.agent_pid)
    former = node.agent_pid
    node.machine.run("systemctl", "restart", nspawn.AGENT)
    await node.active()
    assert node.agent_pid != former
    after = await node.reported_by(node.agent_pid)
    assert (after.pid, after.engine_epoch, after.restarts) == (engine.pid, engine.engine_epoch, engine.restarts)


async def test_a_killed_agent_is_started_again_and_adopts(node):
    engine = await node.reported_by(node.agent_pid)
    restarts = int(node.machine.show("NRestarts"))
    former = node.agent_pid
    node.machine.run("kill", "-KILL", str(former))

    async def again():
        return int(node.machine.show("NRestarts")) > restarts and node.agent_pid not in {0, former}

    await eventually(again, "it is started again", 60)
    await node.active()
    assert (await node.reported_by(node.agent_pid)).pid == engine.pid


async def test_a_loop_that_stands_still_is_ended_by_the_watchdog(node):
    node.machine.watch_closely(nspawn.AGENT)
    node.machine.run("systemctl", "restart", nspawn.AGENT)
    engine = await node.reported_by(node.agent_pid)
    restarts, former = int(node.machine.show("NRestarts")), node.agent_pid
    node.machine.run("kill", "-STOP", str(former))
    node.machine.watch_as_usual(nspawn.AGENT)

    async def again():
        return int(node.machine.show("NRestarts")) > restarts and node.agent_pid not in {0, former}

    await eventually(again, "the watchdog ends it", 60)
    await node.active()
    await eventually(
        lambda: "watchdog" in node.machine.journal(nspawn.AGENT, "-n", "all").lower(), "the journal says so"
    )
    after = await node.reported_by(node.agent_pid)
    assert (after.pid, after.restarts) == (engine.pid, engine.restarts)


async def test_stop_leaves_engines_by_default_and_takes_them_when_told_to(node):
    engine = await node.reported_by(node.agent_pid)
    node.machine.run("systemctl", "stop", nspawn.AGENT)
    assert node.machine.show("ActiveState") == "inactive"
    assert node.machine.alive(engine.pid)
    node.machine.configure("agent", node.settings | {"stop_engines": True})
    node.machine.run("systemctl", "start", nspawn.AGENT)
    await node.active()
    assert (await node.reported_by(node.agent_pid)).pid == engine.pid
    node.machine.run("systemctl", "stop", nspawn.AGENT)
    assert not node.machine.alive(engine.pid)
    left = node.machine.run("sh", "-c", "pgrep -f [n]ebula_agent.simulator || true")
    assert left == ""
    await node.cluster.want(node.cluster.placement(), Wanted.STOP)
