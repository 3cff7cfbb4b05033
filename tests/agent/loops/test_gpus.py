"""A node with GPUs: real ones through the stub library, and simulated ones; what is wrong with one stops a start."""

import os

import pytest

from nebula_core.records.event import ChangeKind
from nebula_core.records.node import Node
from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from tests.support.agent import eventually
from tests.support.nvml import StubNvml

pytestmark = pytest.mark.timeout(90)


async def inventory(cluster, count):
    async def look():
        raw = await cluster.store.get(ChangeKind.NODE, "n1")
        node = None if raw is None else Node.from_json(raw)
        report = await cluster.report()
        reported = report is not None and len(report.gpus) == count
        return node if reported and node is not None and len(node.gpus) == count else None

    return await eventually(look, f"{count} GPUs in the inventory and in the report")


async def test_gpus_of_the_driver_are_inventory_and_samples(cluster, tmp_path):
    stub = StubNvml(tmp_path)
    cluster.agent(gpus="auto", env=stub.env()).start()
    node = await inventory(cluster, 2)
    assert node.driver_version == "580.00.stub"
    assert not node.simulated
    report = await cluster.report()
    assert [sample.memory_used_bytes for sample in report.gpus] == [1 << 30, 2 << 30]


async def test_a_hung_driver_stops_no_heartbeat_and_no_engine_starts_there(cluster, tmp_path):
    stub = StubNvml(tmp_path)
    cluster.agent(gpus="auto", env=stub.env()).start()
    await inventory(cluster, 2)
    stub.set("hang")

    async def told():
        report = await cluster.report()
        return report if any(problem.code == "nvml_hung" for problem in report.problems) else None

    first = await eventually(told, "the hang is told")
    assert all(sample.fault == "the driver hangs" for sample in first.gpus)

    async def beats_on():
        report = await cluster.report()
        return report.sequence >= first.sequence + 5

    await eventually(beats_on, "the heartbeat goes on")
    await cluster.place(cluster.placement(gpus=("GPU-stub-0",)))

    async def waits():
        status = await cluster.status()
        return status and status.phase_reason and "the driver hangs" in status.phase_reason and status

    assert (await eventually(waits, "the start waits")).phase is Phase.PENDING
    stub.set("ok")
    await cluster.until(Phase.READY)


async def test_no_engine_starts_on_a_gpu_that_a_stranger_fills(cluster, tmp_path):
    stub = StubNvml(tmp_path)
    stub.set("foreign")
    cluster.agent(gpus="auto", env=stub.env(os.getpid())).start()
    await inventory(cluster, 2)
    await cluster.place(cluster.placement(gpus=("GPU-stub-0",)))

    async def told():
        status = await cluster.status()
        return status and f"12.0 GiB are held by pid {os.getpid()}" in (status.phase_reason or "")

    await eventually(told, "the holder is named")
    stub.set("ok")
    await cluster.until(Phase.READY)


async def test_without_a_driver_there_are_no_gpus_and_it_says_so_once(cluster):
    agent = cluster.agent(gpus="auto", env={"LD_LIBRARY_PATH": ""}).start()

    async def told():
        report = await cluster.report()
        return report if report and report.problems else None

    report = await eventually(told, "no driver is told")
    if report.gpus:
        pytest.skip("this machine has NVIDIA GPUs")
    assert [(problem.code, problem.severity) for problem in report.problems] == [("no_gpu_driver", "info")]
    await cluster.place(cluster.placement())
    await cluster.until(Phase.READY)
    assert agent.log.count('"nvml_problem"') == 1


async def test_simulated_gpus_and_a_gpu_that_is_still_held(cluster):
    cluster.agent(gpus="simulated:2", term_seconds=2.0).start()
    node = await inventory(cluster, 2)
    assert node.simulated
    first, second = (gpu.id for gpu in node.gpus)
    placement = await cluster.place(
        cluster.placement(gpus=(first,), spec={"args": {"preset": "instant", "fault": "sigterm-hang"}})
    )
    await cluster.until(Phase.READY)

    async def used():
        report = await cluster.report()
        return [bool(sample.memory_used_bytes) for sample in report.gpus] == [True, False] and report

    report = await eventually(used, "memory is held")
    assert report.gpus[0].processes[0].replica == "chat-r1"
    await cluster.place(cluster.placement("chat-r2", gpus=(first,)))

    async def waits():
        status = await cluster.status("chat-r2")
        return status and "is still held by chat-r1" in (status.phase_reason or "")

    await eventually(waits, "the second waits for the GPU")
    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    await cluster.until(Phase.READY, "chat-r2")
    await cluster.place(cluster.placement("chat-r3", gpus=("GPU-elsewhere",)))

    async def unknown():
        status = await cluster.status("chat-r3")
        return status and "is not on this node" in (status.phase_reason or "")

    await eventually(unknown, "a GPU of another node is told")
    del second
