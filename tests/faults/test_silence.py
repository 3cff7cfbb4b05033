"""A node that is only slow is not lost (GOALS R5): starved of CPU, with a Docker that answers nothing, with a disk that hangs.

Real agents on a real store, heard by the watcher that the control process has. Gaps between two signs of life are printed; what is
asserted is what the product would say: never lost. The nodes suffer side by side, for longer than a node may be silent;
`NEBULA_LONG=1` plays each for two minutes.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.snapshot import ClusterSnapshot, NodeState
from nebula_core.store.store import Store
from nebula_core.store.watcher import Changed, Watcher
from tests.support.agent import Cluster, eventually
from tests.support.stand_in import vllm_stand_in

pytestmark = [pytest.mark.fault, pytest.mark.timeout(400)]

#: A node is lost after 10 s of silence.
SECONDS = 120.0 if os.environ.get("NEBULA_LONG") else 12.0
STALL = Path(__file__).parent.parent / "support" / "stall.c"


class Ear:
    """Hears one node as the control process does, and remembers how it stood."""

    def __init__(self, watcher: Watcher, node: str = "n1") -> None:
        self.gaps: list[float] = []
        self.states: set[NodeState] = set()
        self._watcher = watcher
        self._node = node
        self._heard: float | None = None
        watcher.add_listener(self._listen)

    def _listen(self, _snapshot: ClusterSnapshot, changed: Changed) -> None:
        if self._node in changed.nodes:
            now = time.monotonic()
            if self._heard is not None:
                self.gaps.append(now - self._heard)
            self._heard = now

    async def listen(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.states.add(self._watcher.snapshot.node_state(self._node, time.monotonic()))
            await asyncio.sleep(0.1)

    def report(self, what: str) -> str:
        gaps = sorted(self.gaps) or [0.0]
        words = (
            f"{what}: {len(gaps)} signs of life, gap p50 {gaps[len(gaps) // 2]:.2f}, p99 {gaps[int(len(gaps) * 0.99)]:.2f}, "
            f"max {gaps[-1]:.2f} s; states {sorted(state.value for state in self.states)}; load {os.getloadavg()[0]:.1f}"
        )
        sys.stdout.write(f"{words}\n")
        return words


@asynccontextmanager
async def heard(store: Store, cluster: Cluster, *nodes: str) -> AsyncIterator[dict[str, Ear]]:
    for node in nodes:
        await eventually(partial(cluster.report, node), f"{node} reports", 60)
    async with Watcher(store) as watcher:
        await watcher.wait_for(lambda view: set(nodes) <= view.reports.keys(), 60)
        yield {node: Ear(watcher, node) for node in nodes}


async def listen(ears: dict[str, Ear]) -> None:
    await asyncio.gather(*(ear.listen(SECONDS) for ear in ears.values()))


@pytest.fixture
def cluster(tmp_path: Path, store: Store) -> Iterator[Cluster]:
    made = Cluster(tmp_path, store)
    yield made
    made.close()


@asynccontextmanager
async def rationed(pid: int, seconds: float = 0.004, every: float = 1.5) -> AsyncIterator[None]:
    """So much of a core's time and no more, then none for a while: less than nice 19 gets beside four busy loops.

    Stopped and continued instead, so that it is no less for what else runs on the machine, and takes nothing from that.
    """

    def used() -> float:
        tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    async def ration() -> None:
        while True:
            enough = used() + seconds
            os.kill(pid, signal.SIGCONT)
            while used() < enough:
                await asyncio.sleep(0.001)
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(every)

    task = asyncio.create_task(ration())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        os.kill(pid, signal.SIGCONT)


async def test_starved_of_cpu_it_is_not_lost(store: Store, cluster: Cluster) -> None:
    """A 375th of a core."""
    agent = cluster.agent().start()
    async with heard(store, cluster, "n1") as ears, rationed(agent.pid):
        await listen(ears)
    words = ears["n1"].report("starved")
    assert NodeState.LOST not in ears["n1"].states, words


@pytest.fixture(scope="session")
def stalling(tmp_path_factory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    library: Path = tmp_path_factory.mktemp("stall") / "stall.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, STALL, "-ldl"], check=True)
    return library


async def test_what_hangs_silences_nobody(store: Store, cluster: Cluster, tmp_path: Path, stalling: Path) -> None:
    """Three nodes: a Docker that says nothing, a data folder that hangs, a mount of models that hangs."""
    docker, disk, mount = "docker", "disk", "mount"
    flag = tmp_path / "hangs"

    def stalls(directory: Path) -> dict[str, str]:
        return {"LD_PRELOAD": str(stalling), "NEBULA_STALL_FLAG": str(flag), "NEBULA_STALL_DIR": str(directory)}

    with silent_docker(tmp_path / "d.sock") as host:
        cluster.agent(docker, docker={"enabled": True, "host": host}).start()
        agent = cluster.agent(disk, env=stalls(tmp_path / disk)).start()
        weights = tmp_path / "mnt" / "weights"
        weights.mkdir(parents=True)
        vllm = {"program": str(vllm_stand_in(tmp_path))}
        cluster.agent(mount, env=stalls(weights.parent), engines={"vllm": vllm}).start()
        async with heard(store, cluster, docker, disk, mount) as ears:
            # Engines of the other kind are started and looked after meanwhile.
            await cluster.place(cluster.placement("docker-r1", docker, spec={"runtime": "process"}))
            story = DiskStory(cluster, disk)
            await story.before()
            flag.touch()
            await cluster.until(Phase.READY, "docker-r1", docker)
            await asyncio.gather(listen(ears), story.meanwhile(), waits_for_its_model(cluster, mount, weights))
            words = [ear.report(f"hanging {node}") for node, ear in ears.items()]
            for node, ear in ears.items():
                assert NodeState.LOST not in ear.states, "\n".join(words) + agent.log[-2000:] + node
            flag.unlink()
            await story.after()
            await cluster.until(Phase.READY, "path-r1", mount, seconds=60)
        # Nor does a disk that hangs keep an agent from ending.
        flag.touch()
        await cluster.place(cluster.placement("never-r1", disk))
        await eventually(lambda: "never-r1" in agent.log, "the order is on its way to the disk")
        assert await asyncio.to_thread(agent.stop) == 0


@contextmanager
def silent_docker(path: Path) -> Iterator[str]:
    """It takes every connection and says nothing, as a daemon that was stopped (SIGSTOP) or is deadlocked."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen(512)
        yield f"unix://{path}"


async def waits_for_its_model(cluster: Cluster, node: str, weights: Path) -> None:
    """A path that cannot be looked at keeps its replica waiting, with words; others of that node are started and stopped."""
    spec = {"engine": "vllm", "args": {}, "source": str(weights)}
    await cluster.place(cluster.placement("path-r1", node, spec=spec))
    other = await cluster.place(cluster.placement("other-r1", node))

    async def told() -> bool:
        status = await cluster.status("path-r1", node)
        return status is not None and "cannot be looked at" in (status.phase_reason or "")

    await eventually(told, "the replica says what it waits for")
    await cluster.until(Phase.READY, "other-r1", node)
    await cluster.want(other, Wanted.STOP)
    await cluster.until(Phase.STOPPED, "other-r1", node)
    status = await cluster.status("path-r1", node)
    assert status is not None
    assert status.phase is Phase.PENDING, status.phase_reason


class DiskStory:
    """A node whose data folder hangs: an engine runs on, one dies, the stop of one is under way, and orders come.

    Nothing that is to be on the disk comes to be there; orders wait for it, signs of life and what was seen do not.
    """

    def __init__(self, cluster: Cluster, node: str) -> None:
        self.cluster = cluster
        self.node = node
        self.ready: dict[str, ReplicaStatus] = {}
        self.placed: dict[str, Placement] = {}

    async def before(self) -> None:
        stubborn = {"args": {"preset": "instant", "fault": "sigterm-hang"}}
        for replica, spec in (("runs-r1", {}), ("dies-r1", {}), ("ends-r1", stubborn), ("ordered-r1", {})):
            self.placed[replica] = await self.cluster.place(self.cluster.placement(replica, self.node, spec=spec))
        for replica in self.placed:
            self.ready[replica] = await self.cluster.until(Phase.READY, replica, self.node, 60)
        await self.cluster.want(self.placed["ends-r1"], Wanted.STOP)
        await eventually(partial(self.says, "ends-r1", "stopping"), "a stop is under way")

    async def meanwhile(self) -> None:
        dying = self.ready["dies-r1"].pid
        assert dying is not None
        os.kill(dying, signal.SIGKILL)
        await self.cluster.want(self.placed["ordered-r1"], Wanted.STOP)
        for number in range(1, 11):
            await self.cluster.place(self.cluster.placement(f"late-r{number}", self.node))

        async def out_of_routing() -> bool:
            status = await self.cluster.status("dies-r1", self.node)
            return status is not None and status.phase is not Phase.READY

        await eventually(out_of_routing, "a dead engine is told as such")
        # The first engine does not listen to SIGTERM; that it is gone is told though it cannot be written down.
        await self.cluster.until(Phase.STOPPED, "ends-r1", self.node)
        assert self.ready["ends-r1"].pid not in psutil.pids()
        await eventually(partial(self.problems, "disk_silent"), "the node names what hangs")
        for replica in ("runs-r1", "ordered-r1"):
            assert await self.untouched(replica), f"{replica}: an order is obeyed once it is on the disk"
        assert await self.cluster.status("late-r1", self.node) is None

    async def after(self) -> None:
        """All that was ordered is done, in the end."""
        for number in range(1, 11):
            await self.cluster.until(Phase.READY, f"late-r{number}", self.node, 60)
        await self.cluster.until(Phase.STOPPED, "ordered-r1", self.node)
        await self.cluster.until(Phase.STOPPED, "ends-r1", self.node)
        again = await self.cluster.until(Phase.READY, "dies-r1", self.node, 60)
        assert again.restarts == 1
        await eventually(self.problems, "the node has no problem any more")
        assert await self.untouched("runs-r1")

    async def untouched(self, replica: str) -> bool:
        status, former = await self.cluster.status(replica, self.node), self.ready[replica]
        return status is not None and (status.phase, status.pid, status.restarts) == (Phase.READY, former.pid, 0)

    async def problems(self, *codes: str) -> bool:
        report = await self.cluster.report(self.node)
        return report is not None and tuple(problem.code for problem in report.problems) == codes

    async def says(self, replica: str, word: str) -> bool:
        status = await self.cluster.status(replica, self.node)
        return status is not None and word in (status.phase_reason or "")
