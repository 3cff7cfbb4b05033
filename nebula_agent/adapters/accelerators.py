"""Which makers' accelerators a node has, and all of them as one."""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from nebula_agent.adapters.gpus import GpuReading, Gpus, Holder, NoGpus
from nebula_core.runtime.clock import Clock

ROOT = Path("/")


class SeveralGpus:
    """Cards of several makers, read at the same time."""

    simulated = False

    def __init__(self, makers: Sequence[Gpus]) -> None:
        self._makers = tuple(makers)

    async def read(self, holders: Mapping[str, Holder]) -> GpuReading:
        readings = await asyncio.gather(*(maker.read(holders) for maker in self._makers))
        inventory = tuple(gpu for reading in readings for gpu in reading.inventory)
        versions = [reading.driver_version for reading in readings if reading.driver_version]
        return GpuReading(
            inventory,
            tuple(sample for reading in readings for sample in reading.samples),
            ", ".join(versions) or None,
            # That one maker's driver is not there is no news on a node that has another's.
            tuple(
                problem
                for reading in readings
                for problem in reading.problems
                if not (inventory and problem.severity == "info")
            ),
            {gpu: bus for reading in readings for gpu, bus in reading.buses.items()},
        )

    async def aclose(self) -> None:
        for maker in self._makers:
            await maker.aclose()


def open_gpus(wanted: str, clock: Clock, *, root: Path = ROOT, npu_smi: str | None = None) -> Gpus:
    """`wanted` is a setting `gpus` other than `simulated:N`. `auto` looks for all makers, NVIDIA whether found or not."""
    # Each only where it is asked for: an agent's memory is counted.
    if wanted == "none":
        return NoGpus()
    makers: list[Gpus] = []
    program = npu_smi or shutil.which("npu-smi")
    if wanted in {"auto", "nvidia"}:
        from nebula_agent.adapters.nvml import Nvml  # noqa: PLC0415

        makers.append(Nvml(clock))
    if wanted == "ascend" or (wanted == "auto" and program is not None):
        from nebula_agent.adapters.ascend import AscendNpus  # noqa: PLC0415

        makers.append(AscendNpus(program or "npu-smi", clock))
    if wanted == "amd" or (wanted == "auto" and (root / "sys/module/amdgpu").exists()):
        from nebula_agent.adapters.amd import AmdGpus  # noqa: PLC0415

        makers.append(AmdGpus(clock, root))
    return makers[0] if len(makers) == 1 else SeveralGpus(makers)
