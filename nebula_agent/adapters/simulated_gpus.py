"""Simulated GPUs: named as what they are, with figures that follow from the simulated engines placed on them.

Memory is a nominal share for weights plus the engine's own cache fill; utilization follows its running requests;
temperature and power follow utilization. An idle one holds nothing.
"""

from collections.abc import Mapping

from nebula_agent.adapters.gpus import GpuReading, Holder
from nebula_core.records.node import Gpu
from nebula_core.records.sample import GpuProcess, GpuSample

GIB = 1024**3
TOTAL_BYTES = 80 * GIB
_WEIGHTS_RATIO = 0.2
_CACHE_RATIO = 0.7
_IDLE_CELSIUS, _BUSY_CELSIUS = 34, 44
_IDLE_WATTS, _BUSY_WATTS = 70.0, 580.0
_LIMIT_WATTS = 700.0
#: So many running requests keep a GPU half busy.
_HALF_BUSY_AT = 8


class SimulatedGpus:
    """`gpus = "simulated:4"`."""

    simulated = True

    def __init__(self, node: str, count: int) -> None:
        self._inventory = tuple(
            Gpu(
                id=f"sim-{node}-{index}",
                index=index,
                name="Simulated GPU 80 GiB",
                memory_total_bytes=TOTAL_BYTES,
                vendor="simulated",
                simulated=True,
            )
            for index in range(count)
        )

    async def read(self, holders: Mapping[str, Holder]) -> GpuReading:
        samples = tuple(_sample(gpu, holders.get(gpu.id)) for gpu in self._inventory)
        return GpuReading(self._inventory, samples)

    async def aclose(self) -> None:
        """Nothing was started."""


def _sample(gpu: Gpu, holder: Holder | None) -> GpuSample:
    busy, used = 0.0, 0
    processes: tuple[GpuProcess, ...] = ()
    if holder is not None:
        running = (holder.sample.requests_running or 0) if holder.sample else 0
        cache = (holder.sample.kv_cache_usage or 0.0) if holder.sample else 0.0
        busy = running / (running + _HALF_BUSY_AT)
        used = round(TOTAL_BYTES * (_WEIGHTS_RATIO + _CACHE_RATIO * cache))
        if holder.pid is not None:
            processes = (
                GpuProcess(pid=holder.pid, name="nebula-sim-api", memory_used_bytes=used, replica=holder.replica),
            )
    return GpuSample(
        gpu=gpu.id,
        index=gpu.index,
        memory_used_bytes=used,
        memory_total_bytes=TOTAL_BYTES,
        utilization_ratio=round(busy, 4),
        temperature_celsius=round(_IDLE_CELSIUS + _BUSY_CELSIUS * busy),
        power_watts=round(_IDLE_WATTS + (_BUSY_WATTS - _IDLE_WATTS) * busy, 1),
        power_limit_watts=_LIMIT_WATTS,
        processes=processes,
    )
