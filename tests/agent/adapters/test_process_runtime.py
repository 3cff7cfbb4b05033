"""Processes by their identity: pid, boot, and a beginning that no clock can move."""

import asyncio
import os
import secrets
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from nebula_agent.adapters.process_runtime import ProcessRuntime, born, probe_host
from nebula_agent.adapters.runtime import Room
from nebula_agent.adapters.start_folders import StartFolders
from nebula_agent.decisions.lifecycle import Life
from nebula_agent.engines.base import Command
from nebula_core.errors import NebulaError
from nebula_core.runtime.clock import SystemClock
from tests.agent.engines.test_commands import launch
from tests.support.engine_process import gone

#: A leader with a worker that ignores SIGTERM and one that went into a session of its own.
FAMILY = """
import os, signal, subprocess, sys, time
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
for own in (False, True):
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=own)
    child.stdout.readline()
print("ready", flush=True)
time.sleep(600)
"""


#: Of this test process alone: whoever has the same ends the other's processes as its own.
AGENT = secrets.token_hex(4)


@pytest.fixture
def runtime(tmp_path):
    return ProcessRuntime(agent_id=AGENT, boot_id="boot", directory=tmp_path, clock=SystemClock())


@pytest.fixture
async def family(runtime, tmp_path):
    command = Command((sys.executable, "-c", FAMILY))
    log = tmp_path / "logs" / "chat-r1.log"
    started = await runtime.start(launch(), command, Room("chat-r1", "e1", log, dict(os.environ)))
    async with asyncio.timeout(60):
        while "ready" not in log.read_text():
            await asyncio.sleep(0.02)
    yield started
    await runtime.stop(started, term_seconds=0.2)


async def test_all_of_a_family_is_ended_also_who_left_the_group(runtime, family):
    members = await runtime.members(family)
    assert len(members) == 3
    assert {runtime.replica_of(pid) for pid in members} == {"chat-r1"}
    ended = await runtime.stop(family, term_seconds=0.3)
    assert ended.killed
    assert ended.survivors == ()
    assert all(map(gone, members))
    assert runtime.look(family).life is Life.ENDED


async def test_another_agent_process_finds_it_after_the_clock_was_stepped(runtime, family, tmp_path, monkeypatch):
    other = ProcessRuntime(agent_id=AGENT, boot_id="boot", directory=tmp_path, clock=SystemClock())
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 1e9)
    assert other.look(family).life is Life.RUNNING
    members = await other.members(family)
    assert len(members) == 3
    # The parent is this very process: it has to reap, as init does for an engine whose agent died.
    stopping = asyncio.create_task(other.stop(family, term_seconds=0.3))
    while not stopping.done():
        runtime.look(family)
        await asyncio.sleep(0.02)
    assert stopping.result().survivors == ()
    assert all(map(gone, members))


async def test_a_pid_that_was_given_to_a_stranger_is_not_ours(runtime, family):
    recycled = family.model_copy(
        update={"pid": os.getpid(), "pid_born": 1.0, "marker": f"NEBULA_ENGINE={AGENT}/chat-r1/none"}
    )
    other = ProcessRuntime(agent_id=AGENT, boot_id="boot", directory=os.curdir, clock=SystemClock())
    assert other.look(recycled).life is Life.ENDED
    assert await other.members(recycled) == frozenset()
    assert (await other.stop(recycled, term_seconds=0.1)).survivors == ()
    rebooted = family.model_copy(update={"boot_id": "another"})
    assert runtime.look(rebooted).life is Life.ENDED
    assert await runtime.members(rebooted) == frozenset()


async def test_temporary_files_are_the_starts_own_and_go_with_it(runtime, family, tmp_path):
    folder = Path(psutil.Process(family.pid).environ()["TMPDIR"])
    assert folder.parent == tmp_path / "tmp" or f"nebula-{AGENT}" in str(folder)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "11111111-2222-3333-4444-555555555555"))
    (folder / "deep").mkdir()
    await runtime.stop(family, term_seconds=0.2)
    assert not await asyncio.to_thread(folder.exists)


async def test_folders_of_unknown_starts_are_removed(runtime, family):
    root = Path(psutil.Process(family.pid).environ()["TMPDIR"]).parent
    (root / "unknown").mkdir()
    (root / "unknown" / "socket").touch()
    await runtime.forget_others({"e1"})
    assert sorted(path.name for path in root.iterdir()) == ["e1"]


def test_a_deep_data_folder_is_no_place_for_sockets(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folders = StartFolders(tmp_path / ("deep" * 20), "a1")
    assert folders.make("e1") == tmp_path / "nebula-a1" / "e1"
    folders.make("e2")
    folders.remove("e1")
    assert [each.name for each in (tmp_path / "nebula-a1").iterdir()] == ["e2"]
    folders.remove("e2")
    assert not (tmp_path / "nebula-a1").exists()
    (tmp_path / "nebula-a1").symlink_to(tmp_path)
    with pytest.raises(NebulaError, match="another user"):
        folders.make("e1")


async def test_the_end_is_noticed_at_once_with_its_status(runtime, family):
    waiting = asyncio.create_task(runtime.ended(family, 600))
    await asyncio.sleep(0)
    os.kill(family.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        await waiting
    assert runtime.look(family).status == -9


async def test_strays_are_what_no_note_explains(runtime, family):
    assert await runtime.strays({"e1"}) == []
    (stray,) = await runtime.strays(set())
    assert stray.engine_epoch == "e1"
    assert stray.pid in await runtime.members(family)
    other = ProcessRuntime(agent_id=f"{AGENT}2", boot_id="boot", directory=os.curdir, clock=SystemClock())
    assert await other.strays(set()) == []


async def test_the_environment_is_what_was_allowed(runtime, family):
    found = psutil.Process(family.pid).environ()
    assert found["NEBULA_ENGINE"] == f"{AGENT}/chat-r1/e1"
    assert (family.gpus, family.ports[0]) == (("GPU-a", "GPU-b"), 20000)


def test_small_parts():
    assert born(os.getpid()) > 0
    assert born(2**22 + 1) is None
    assert probe_host("0.0.0.0") == "127.0.0.1"
    assert probe_host("10.0.0.1") == "10.0.0.1"
