"""What follows from a broken GPU and from memory that is held by somebody: a real agent, the stub driver, a log of Xids."""

import os
import subprocess

import pytest

from nebula_core.records.replica import Phase
from tests.support.agent import eventually
from tests.support.nvml import StubNvml

pytestmark = pytest.mark.timeout(90)

GONE = "4,1,1,-;NVRM: Xid (PCI:0000:3c:00): 79, pid=1, name=vllm, GPU has fallen off the bus.\n"
FAULT_OF_A_PROGRAM = "4,2,2,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=1, name=vllm, MMU Fault\n"


async def test_a_card_that_fell_off_the_bus_stops_its_engine_alone(cluster, tmp_path):
    stub = StubNvml(tmp_path)
    kernel = tmp_path / "kmsg"
    kernel.write_text("6,0,0,-;booted\n")
    cluster.agent(gpus="nvidia", kernel_log=str(kernel), env=stub.env()).start()
    await cluster.place(cluster.placement("chat-r1", gpus=("GPU-stub-0",)))
    await cluster.place(cluster.placement("chat-r2", gpus=("GPU-stub-1",)))
    neighbour = await cluster.until(Phase.READY, "chat-r1")
    await cluster.until(Phase.READY, "chat-r2")
    with kernel.open("a") as log:
        log.write(FAULT_OF_A_PROGRAM + GONE)

    async def waits():
        status = await cluster.status("chat-r2")
        reason = (status.phase_reason or "") if status else ""
        return status if status and status.endpoint is None and "fell off the bus" in reason else None

    status = await eventually(waits, "the engine on it is stopped and not started again")
    assert status.phase in {Phase.FAILED, Phase.PENDING}
    report = await cluster.report()
    first, second = report.gpus
    assert (first.fault, first.xid) == (None, 31)
    assert (second.fault, second.xid) == ("Xid 79: fell off the bus; reboot the machine", 79)
    assert {"gpu_lost", "xid"} <= {problem.code for problem in report.problems}
    still = await cluster.status("chat-r1")
    assert (still.phase, still.pid, still.restarts) == (Phase.READY, neighbour.pid, 0)


async def test_an_agent_that_starts_later_reads_what_was_logged_before(cluster, tmp_path):
    stub = StubNvml(tmp_path)
    kernel = tmp_path / "kmsg"
    kernel.write_text(GONE)
    cluster.agent(gpus="auto", kernel_log=str(kernel), env=stub.env()).start()

    async def held():
        report = await cluster.report()
        return report and len(report.gpus) == 2 and report.gpus[1].fault

    assert "Xid 79" in await eventually(held, "the card is held from the beginning")


async def test_an_orphan_of_ours_is_ended_and_its_memory_comes_free(cluster, tmp_path):
    stub = StubNvml(tmp_path)
    orphan = _unmarked()
    try:
        stub.set("foreign")
        agent = cluster.agent(gpus="nvidia", env=stub.env(orphan.pid)).start()

        async def seen():
            report = await cluster.report()
            return report and report.gpus and report.gpus[0].processes and report

        report = await eventually(seen, "the process is seen")
        assert not report.gpus[0].processes[0].orphan
        assert "gpu_held" in {problem.code for problem in report.problems}
        orphan.stdin.write(f"{(agent.data / 'agent_id').read_text().strip()}/old-r1/epoch-0\n".encode())
        orphan.stdin.close()
        await eventually(lambda: _ended(orphan), "it is ended")
        assert '"orphan"' in agent.log
    finally:
        if orphan.poll() is None:
            orphan.kill()
        orphan.wait(10)


def _unmarked():
    """Its pid must be known to the stub before the agent starts, its mark can only be made after."""
    script = 'read mark; exec env "NEBULA_ENGINE=$mark" sleep 600'
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)


async def _ended(process):
    return process.poll() is not None


async def test_whose_a_process_is_stands_in_the_report(cluster, tmp_path):
    stub = StubNvml(tmp_path)
    stub.set("foreign")
    cluster.agent(gpus="nvidia", env=stub.env(os.getpid())).start()

    async def told():
        report = await cluster.report()
        return report.gpus[0] if report and report.gpus and report.gpus[0].processes else None

    gpu = await eventually(told, "the process is listed")
    (process,) = gpu.processes
    assert (process.pid, process.replica, process.orphan) == (os.getpid(), None, False)
    assert process.user
    assert gpu.memory_unexplained_bytes == 0
