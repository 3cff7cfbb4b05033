"""Every way in which an engine of vLLM's shape can end leaves nothing: no process, no shared memory, no GPU memory (R20).

Several ways at once on one node, each on a replica of its own: what is proven is also that none disturbs another.
"""

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from tests.agent.loops.test_life import ask
from tests.support.agent import eventually
from tests.support.ports import free_ports
from tests.support.vllm_shaped import VllmShaped

pytestmark = pytest.mark.timeout(120)

HEALTH = {"suspect_seconds": 1.0, "frozen_seconds": 3.0}


class Family:
    """The processes of one replica's engine."""

    def __init__(self, agent, status):
        mine = [process for process in agent.engines() if session(process.pid) == status.pid]
        self.pids = {process.pid for process in mine}
        self.leader = status.pid
        # EngineCore is the leader's child that is a copy of it; the others have programs of their own.
        self.core = next(
            process.pid for process in mine if process.ppid() == status.pid and "serve" in " ".join(process.cmdline())
        )
        assert len(self.pids) == 4, [process.cmdline() for process in mine]

    def left(self):
        return {pid for pid in self.pids if state(pid) != "Z"}


def session(pid):
    """None: it ended meanwhile, with another replica."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def state(pid):
    """One letter; a process that is gone counts as one that waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.fixture
def shaped(tmp_path):
    return VllmShaped(tmp_path)


class Node:
    def __init__(self, cluster, shaped, **settings):
        self.cluster = cluster
        self.shaped = shaped
        # A block of eight for each engine.
        first = free_ports(80)
        self.settings = {
            "port_range": [first, first + 79],
            "gpus": "simulated:9",
            "engines": {"vllm": {"program": str(shaped.program)}},
            "term_seconds": 2.0,
            "health": HEALTH,
            # The stand-in loads nothing: there is no hub here that could give it a model.
            "model_cache": {"enabled": False},
            **settings,
        }
        self.agent = cluster.agent(**self.settings).start()
        self.gpus = ()

    async def begin(self):
        report = await eventually(self.cluster.report, "a report")
        self.gpus = tuple(sample.gpu for sample in report.gpus)

    def placement(self, number, **changes):
        spec = {"engine": "vllm", "source": "tiny", "gpus": 1, "args": {}} | changes
        return self.cluster.placement(f"chat-r{number}", gpus=(self.gpus[number],), spec=spec)

    async def nothing_left(self, family, status):
        async def gone():
            return not family.left()

        await eventually(gone, f"nothing left of {status.id}: {[(pid, state(pid)) for pid in family.left()]}")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", status.endpoint.port))
        folder = self.agent.data / "tmp" / status.engine_epoch
        await eventually(lambda: not folder.exists(), "its folder is removed")

    async def stopped_and_clean(self):
        """All replicas are stopped: the machine is as it was."""
        assert self.agent.engines() == []
        assert self.shaped.holders() == {}
        assert self.shaped.shared_memory() == set()

        async def free():
            report = await self.cluster.report()
            return all(status.pid is None for status in report.replicas) and all(
                not gpu.processes for gpu in report.gpus
            )

        await eventually(free, "the report says that all GPUs are free")


async def stop_idle(node, placement, status, family):
    await node.cluster.want(placement, Wanted.STOP)


async def busy(node, status):
    """Requests that run for longer than any of this takes."""
    key = node.cluster.key_of(status)
    requests = [
        asyncio.create_task(asyncio.to_thread(ask, status, key, max_tokens=1900, ignore_eos=True)) for _ in range(2)
    ]

    async def running():
        sample = (await node.cluster.status(status.id)).sample
        return sample and sample.requests_running

    await eventually(running, "requests run")
    return asyncio.gather(*requests, return_exceptions=True)


async def stop_busy(node, placement, status, family):
    requests = await busy(node, status)
    await node.cluster.want(placement, Wanted.STOP)
    await requests


async def kill_parent(node, placement, status, family):
    os.kill(family.leader, signal.SIGKILL)
    await node.cluster.failed(status.id)


async def kill_engine_core(node, placement, status, family):
    os.kill(family.core, signal.SIGKILL)
    failed = await node.cluster.failed(status.id)
    assert "exit code 1" in failed.first_failure_reason


async def hang(node, placement, status, family):
    requests = await busy(node, status)
    os.kill(family.core, signal.SIGSTOP)
    failed = await node.cluster.failed(status.id)
    assert "frozen" in failed.first_failure_reason
    await requests


WAYS = {
    "SIGTERM, idle": (stop_idle, {}),
    "SIGTERM, busy": (stop_busy, {}),
    "SIGTERM is ignored": (stop_idle, {"args": {"fault": "sigterm-hang"}}),
    "the parent is killed": (kill_parent, {}),
    "EngineCore is killed": (kill_engine_core, {}),
    "EngineCore hangs": (hang, {}),
}
#: Starts that fail with the family up already, and what is said of them.
STARTS = {
    "out of GPU memory": {"args": {"trouble": "oom"}},
    "exit code 1": {"args": {"fault": "failed-start=0.2"}},
    "not ready within 3 s": {"args": {"fault": "slow-start=600"}, "start_deadline_seconds": 3.0},
}


async def test_every_way_an_engine_can_end(cluster, shaped):
    node = Node(cluster, shaped)
    await node.begin()
    asked = {name: changes for name, (_, changes) in WAYS.items()} | STARTS
    placements = {
        name: await cluster.place(node.placement(number, **changes))
        for number, (name, changes) in enumerate(asked.items())
    }

    async def stopped(placement):
        await cluster.want(placement, Wanted.STOP)
        await cluster.until(Phase.STOPPED, placement.replica, seconds=60)

    async def ends(name):
        way, _ = WAYS[name]
        placement = placements[name]
        status = await cluster.until(Phase.READY, placement.replica, seconds=60)
        family = Family(node.agent, status)
        assert len(shaped.shared_memory()) >= 3, "of a Worker one, of EngineCore two"
        await way(node, placement, status, family)
        await stopped(placement)
        await node.nothing_left(family, status)

    async def fails(reason):
        status = await cluster.until(Phase.FAILED, placements[reason].replica, seconds=60)
        assert reason in status.phase_reason
        await stopped(placements[reason])

    results = await asyncio.gather(*map(ends, WAYS), *map(fails, STARTS), return_exceptions=True)
    assert [(name, result) for name, result in zip(asked, results, strict=True) if result is not None] == []
    await node.stopped_and_clean()


async def test_an_agent_that_was_killed_finds_and_ends_all_of_it(cluster, shaped):
    """One engine lives on, of one the parent was killed meanwhile, of one EngineCore; all are to be stopped on return."""
    node = Node(cluster, shaped)
    await node.begin()
    placements = [await cluster.place(node.placement(number)) for number in (1, 2, 3)]
    statuses = [await cluster.until(Phase.READY, placement.replica, seconds=60) for placement in placements]
    families = [Family(node.agent, status) for status in statuses]
    node.agent.kill()
    os.kill(families[1].leader, signal.SIGKILL)
    os.kill(families[2].core, signal.SIGKILL)
    for placement in placements:
        await cluster.want(placement, Wanted.STOP)
    node.agent.start()
    for placement in placements:
        await cluster.until(Phase.STOPPED, placement.replica, seconds=60)
    for family, status in zip(families, statuses, strict=True):
        await node.nothing_left(family, status)
    await node.stopped_and_clean()


async def test_an_agent_that_takes_its_engines_along_leaves_nothing(cluster, shaped):
    node = Node(cluster, shaped, stop_engines=True)
    await node.begin()
    placement = await cluster.place(node.placement(1))
    status = await cluster.until(Phase.READY, placement.replica, seconds=60)
    family = Family(node.agent, status)
    assert await asyncio.to_thread(node.agent.stop) == 0
    await node.nothing_left(family, status)
    assert (node.agent.engines(), shaped.holders()) == ([], {})
    assert shaped.shared_memory() == set()
