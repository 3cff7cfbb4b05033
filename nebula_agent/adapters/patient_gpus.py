"""What the readers of Ascend and AMD share: a slow or hanging source delays nobody, and old figures are not shown as new."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from nebula_agent.adapters.gpus import GpuReading, Holder
from nebula_core.errors import NebulaError
from nebula_core.records.report import Problem
from nebula_core.records.sample import GpuSample
from nebula_core.runtime.clock import Clock

log = structlog.get_logger(__name__)

#: How long a report waits.
PATIENCE_SECONDS = 0.8


class UnreadableGpus(NebulaError):
    """The accelerators of this node cannot be read; the message says what the source answered."""

    code = "gpus_unreadable"


class PatientGpus:
    """`look` reads everything once; it is asked every `every_seconds`, and believed for `stale_seconds`."""

    simulated = False

    def __init__(
        self,
        maker: str,
        look: Callable[[], Awaitable[GpuReading]],
        clock: Clock,
        *,
        every_seconds: float,
        stale_seconds: float,
    ) -> None:
        self._maker = maker
        self._look = look
        self._clock = clock
        self._every = every_seconds
        self._stale = stale_seconds
        self._pending: asyncio.Future[GpuReading] | None = None
        self._asked_at = float("-inf")
        self._last = GpuReading()

    async def read(self, holders: Mapping[str, Holder]) -> GpuReading:  # noqa: ARG002 - the driver knows better
        now = self._clock.monotonic()
        if self._pending is None:
            if now - self._asked_at < self._every:
                return self._last
            self._asked_at = now
            self._pending = asyncio.ensure_future(self._look())
        await asyncio.wait({self._pending}, timeout=PATIENCE_SECONDS)
        if not self._pending.done():
            silent = self._clock.monotonic() - self._asked_at
            if silent < self._stale:
                return self._last
            message = f"the {self._maker} driver has not answered for {silent:.0f} s"
            hint = "Look into the kernel log; a reboot may be needed"
            return self._faulty(
                Problem(code="gpus_hung", message=message, severity="crit", hint=hint), "the driver hangs"
            )
        pending, self._pending = self._pending, None
        try:
            self._last = self._with_vanished(pending.result())
        except (NebulaError, OSError) as error:
            message = f"the {self._maker} accelerators cannot be read: {error}"
            problem = Problem(
                code="gpus_unreadable", message=message, severity="crit", hint=getattr(error, "hint", None)
            )
            log.warning("gpus_unreadable", maker=self._maker, error=str(error))
            self._last = self._faulty(problem, "it cannot be read")
        return self._last

    async def aclose(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.gather(self._pending, return_exceptions=True)
            self._pending = None

    def _with_vanished(self, reading: GpuReading) -> GpuReading:
        """A card that was there and is not any more is lost, not forgotten."""
        seen = {gpu.id for gpu in reading.inventory}
        gone = tuple(gpu for gpu in self._last.inventory if gpu.id not in seen)
        if not gone:
            return reading
        fault = "lost: the driver does not list it any more"
        samples = tuple(GpuSample(gpu=gpu.id, index=gpu.index, fault=fault) for gpu in gone)
        return GpuReading(
            (*reading.inventory, *gone), (*reading.samples, *samples), reading.driver_version, reading.problems
        )

    def _faulty(self, problem: Problem, fault: str) -> GpuReading:
        last = self._last
        samples = tuple(
            GpuSample(gpu=gpu.id, index=gpu.index, memory_total_bytes=gpu.memory_total_bytes, fault=fault)
            for gpu in last.inventory
        )
        return GpuReading(last.inventory, samples, last.driver_version, (problem,))
