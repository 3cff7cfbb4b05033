"""A real NVIDIA GPU: readings that make sense, and a process that is seen to hold memory. Marker `gpu`."""

import asyncio
import shutil
import subprocess
import sys

import pytest

from nebula_agent.adapters.nvml import Nvml
from nebula_core.runtime.clock import SystemClock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA GPU on this machine"),
]


@pytest.fixture
async def nvml():
    made = Nvml(SystemClock())
    yield made
    await made.aclose()


async def until(nvml, holds, seconds=30.0):
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not holds(reading := await nvml.read({})):
        assert loop.time() < deadline, reading
    return reading


async def test_readings_are_those_of_nvidia_smi(nvml):
    reading = await until(nvml, lambda reading: reading.inventory)
    fields = "uuid,memory.total,temperature.gpu,power.limit"
    said = subprocess.run(  # noqa: ASYNC221 - one quick call
        ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]
    assert [gpu.id for gpu in reading.inventory if gpu.parent is None] == [row[0] for row in rows]
    for sample, row in zip(reading.samples, rows, strict=True):
        assert abs(sample.memory_total_bytes / 1024**2 - float(row[1])) < 0.05 * float(row[1])
        assert abs(sample.temperature_celsius - float(row[2])) < 15
        assert sample.power_watts is not None
        assert 0 <= sample.utilization_ratio <= 1
        assert sample.fault is None


async def test_a_process_that_holds_memory_is_listed(nvml):
    torch = pytest.importorskip("torch", reason="no torch here: nothing to hold memory with")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    script = (
        "import torch, sys; held = torch.zeros(1 << 28, device='cuda'); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(  # noqa: ASYNC220 - ends with this test
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        await asyncio.to_thread(holder.stdout.readline)

        def listed(reading):
            return any(process.pid == holder.pid for sample in reading.samples for process in sample.processes)

        await until(nvml, listed)
    finally:
        holder.kill()
        holder.communicate()
    await until(nvml, lambda reading: not listed(reading))
