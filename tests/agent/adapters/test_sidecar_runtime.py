"""The container beside an agent: the real entry point, run as a process, takes commands from the shared folder."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from nebula_agent.adapters.runtime import Room
from nebula_agent.adapters.sidecar_runtime import SidecarBusy, SidecarRuntime
from nebula_agent.decisions.lifecycle import Life
from nebula_agent.engines.base import Command
from nebula_core.runtime.clock import SystemClock
from tests.agent.engines.test_commands import launch
from tests.support.agent import eventually
from tests.support.engine_process import gone
from tests.support.ports import free_ports

pytestmark = pytest.mark.timeout(90)

ENTRY_POINT = Path(__file__).resolve().parents[3] / "deploy" / "sidecar-entrypoint.sh"
FOR_EVER = "echo ready; while true; do sleep 0.1; done"


class Beside:
    """A container that is a process here."""

    def __init__(self, directory):
        self.directory = directory
        self.container = None
        self.number = 0
        self.port = free_ports(1)
        self.runtime = SidecarRuntime(directory, self.port, "boot", SystemClock())

    def boot(self):
        env = {**os.environ, "NEBULA_SIDECAR_GRACE": "1"}
        self.container = subprocess.Popen(
            ["sh", str(ENTRY_POINT), str(self.directory)], env=env, start_new_session=True
        )

    def crash(self):
        """As a container is killed: everything in it at once."""
        running = [int(pid) for pid in subprocess.run(
            ["pgrep", "-P", str(self.container.pid)], capture_output=True, text=True, check=False
        ).stdout.split()]  # fmt: skip
        for pid in running:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        os.killpg(self.container.pid, signal.SIGKILL)
        self.container.wait(10)

    async def start(self, program, **command):
        self.number += 1
        room = Room("chat-r1", f"e{self.number}", self.directory / "unused.log")
        seen = self.runtime.inside(launch(gpus=(), key=None))
        return await self.runtime.start(seen, Command(("sh", "-c", program), **command), room)

    def close(self):
        """A crash too: nothing of a test that failed is to stay."""
        if self.container is not None and self.container.poll() is None:
            self.crash()


@pytest.fixture
def beside(tmp_path):
    made = Beside(tmp_path)
    made.boot()
    yield made
    made.close()


def said(started):
    return Path(started.log_file).read_text()[started.log_offset :]


async def test_it_runs_what_is_written_with_its_environment_and_key(beside):
    program = "echo $GREETING; cat engine.key; sleep 60"
    started = await beside.start(
        f"cd {beside.directory}; {program}", env={"GREETING": "it's; $HOME"}, key_file_content="k\n"
    )
    assert (started.port, started.probe_host, started.pid) == (beside.port, "127.0.0.1", None)
    await eventually(lambda: "it's; $HOME\nk" in said(started), "its words")
    assert (beside.directory / "engine.key").stat().st_mode & 0o007 == 0
    assert beside.runtime.look(started).life is Life.RUNNING
    ended = await beside.runtime.stop(started, term_seconds=5)
    assert ended.failed is None
    assert beside.runtime.look(started).life is Life.ENDED
    assert not (beside.directory / "engine.key").exists()


async def test_an_end_is_told_with_its_status_and_nothing_is_run_again(beside):
    started = await beside.start("echo once; exit 7")
    await beside.runtime.ended(started, 20)
    assert beside.runtime.look(started).status == 7
    await asyncio.sleep(1.2)  # two rounds of the entry point: what has ended stays ended
    assert said(started).count("once") == 1
    assert (await beside.runtime.stop(started, term_seconds=1)).status == 7
    second = await beside.start("echo again; exit 0")
    await beside.runtime.ended(second, 20)
    assert beside.runtime.look(second).status == 0


async def test_who_ignores_sigterm_is_killed_with_all_it_started(beside):
    program = "trap '' TERM; (trap '' TERM; exec sleep 900) & echo child $!; while true; do sleep 0.1; done"
    started = await beside.start(program)
    await eventually(lambda: "child" in said(started), "it runs")
    child = int(said(started).split()[1])
    assert (await beside.runtime.stop(started, term_seconds=1)).failed is None
    await eventually(lambda: gone(child), "its child is gone")


async def test_a_container_that_was_restarted_says_that_its_engine_is_gone_and_waits(beside):
    started = await beside.start("echo ready; sleep 600")
    await eventually(lambda: "ready" in said(started), "it runs")
    beside.crash()
    assert beside.runtime.look(started).life is Life.RUNNING  # nobody can know yet
    beside.boot()
    await beside.runtime.ended(started, 20)
    look = beside.runtime.look(started)
    assert (look.life, look.status, look.said) == (Life.ENDED, None, "its container was restarted")
    await asyncio.sleep(1.2)
    assert said(started).count("ready") == 1


async def test_another_agent_finds_it_in_the_folder(beside):
    started = await beside.start(FOR_EVER)
    other = SidecarRuntime(beside.directory, beside.port, "boot", SystemClock())
    await other.know(started, "chat-r1")
    assert other.look(started).life is Life.RUNNING
    assert (await other.stop(started, term_seconds=5)).failed is None


async def test_one_container_runs_one_engine(beside):
    started = await beside.start(FOR_EVER)
    with pytest.raises(SidecarBusy, match="still runs there"):
        await beside.start(FOR_EVER)
    await beside.runtime.stop(started, term_seconds=5)


async def test_a_folder_that_nobody_looks_into_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("nebula_agent.adapters.sidecar_runtime.TAKE_UP_SECONDS", 0.5)
    alone = Beside(tmp_path)
    with pytest.raises(SidecarBusy, match="nobody takes commands"):
        await alone.start(FOR_EVER)
    assert not (tmp_path / "start_command.sh").exists()
