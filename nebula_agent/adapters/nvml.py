"""NVIDIA GPUs through NVML, in a thread of its own: a driver that hangs must not stop the heartbeat.

One thread makes every call. Whoever asks waits a limited time for its answer; while a call hangs, no other is made, the
last figures are withheld after a few seconds, and every GPU carries the fault "the driver does not answer", so that nothing
is placed there. When the call returns after all, the next reading is a fresh one.

Each figure is asked for by itself: one that a card does not support is None, a card that is lost has a fault and the
others go on.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import pynvml
import structlog

from nebula_agent.adapters.gpus import GpuReading, Holder
from nebula_core.records.node import Gpu
from nebula_core.records.report import Problem
from nebula_core.records.sample import GpuProcess, GpuSample
from nebula_core.runtime.clock import Clock

log = structlog.get_logger(__name__)

#: How long a report waits for the driver.
PATIENCE_SECONDS = 0.8
#: Figures older than this are not shown as current.
STALE_SECONDS = 3.0
#: Without a driver, look again now and then: it may be installed while the agent runs.
RETRY_SECONDS = 60.0

_UNSUPPORTED = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_NOT_FOUND,
    }
)
_LOST = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "lost: it fell off the bus; the machine needs a reboot",
    pynvml.NVML_ERROR_RESET_REQUIRED: "needs a reset",
    pynvml.NVML_ERROR_UNKNOWN: "the driver reports an unknown error",
}
_ABSENT = frozenset({pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})

EngineOf = Callable[[int], str | None]


class Nvml:
    """All NVIDIA GPUs of this machine. `engine_of` names the replica a pid belongs to."""

    simulated = False

    def __init__(self, clock: Clock, engine_of: EngineOf = lambda _pid: None) -> None:
        self._clock = clock
        self._engine_of = engine_of
        self._asks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending: asyncio.Future[GpuReading] | None = None
        self._asked_at = 0.0
        self._last = GpuReading()
        self._last_at: float | None = None
        self._next_try = float("-inf")
        # Only the thread touches these.
        self._initialized = False

    async def read(self, holders: Mapping[str, Holder]) -> GpuReading:  # noqa: ARG002 - the driver knows better
        now = self._clock.monotonic()
        if self._pending is None:
            if now < self._next_try:
                return self._last
            self._pending = self._ask(asyncio.get_running_loop())
            self._asked_at = now
        await asyncio.wait({self._pending}, timeout=PATIENCE_SECONDS)
        if not self._pending.done():
            return self._overdue(self._clock.monotonic() - self._asked_at)
        reading = self._pending.result()
        self._pending = None
        if reading != self._last and reading.problems and reading.problems != self._last.problems:
            log.info("nvml_problem", problems=[problem.message for problem in reading.problems])
        absent = not reading.inventory and bool(reading.problems)
        self._next_try = self._clock.monotonic() + RETRY_SECONDS if absent else float("-inf")
        self._last, self._last_at = reading, self._clock.monotonic()
        return reading

    def close(self) -> None:
        """Ends the thread, unless it hangs: then it ends with the process."""
        self._asks.put(None)

    def _overdue(self, seconds: float) -> GpuReading:
        """What is said while the driver does not answer."""
        if seconds < STALE_SECONDS:
            return self._last
        text = f"the NVIDIA driver has not answered for {seconds:.0f} s"
        problem = Problem(
            code="nvml_hung", message=text, severity="crit", hint="Look into the kernel log; a reboot may be needed"
        )
        return _faulty(self._last, "the driver hangs", problem)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[GpuReading]":
        answer: asyncio.Future[GpuReading] = loop.create_future()

        def settle(reading: GpuReading) -> None:
            if not answer.done():
                answer.set_result(reading)

        def work() -> None:
            reading = self._read_all()
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, reading)

        if self._thread is None:
            # A daemon: a call that never returns must not keep the agent from ending.
            self._thread = threading.Thread(target=self._work, name="nvml", daemon=True)
            self._thread.start()
        self._asks.put(work)
        return answer

    def _work(self) -> None:
        while (ask := self._asks.get()) is not None:
            try:
                ask()
            except RuntimeError:
                return  # the loop was closed between the look and the call

    # In the thread

    def _read_all(self) -> GpuReading:
        try:
            if not self._initialized:
                pynvml.nvmlInit()
                self._initialized = True
            count = pynvml.nvmlDeviceGetCount()
            version = _ask(pynvml.nvmlSystemGetDriverVersion)
        except pynvml.NVMLError as error:
            # What was there once is not gone because the driver is: it is at fault.
            return _faulty(self._last, _LOST.get(error.value, f"the driver says: {error}"), _why_none(error))
        gpus: list[Gpu] = []
        samples: list[GpuSample] = []
        known = {gpu.index: gpu for gpu in self._last.inventory}
        for index in range(count):
            gpu, sample = self._read_one(index, known.get(index))
            if gpu is not None:
                gpus.append(gpu)
                samples.append(sample or GpuSample(gpu=gpu.id, index=index))
        return GpuReading(tuple(gpus), tuple(samples), _text(version))

    def _read_one(self, index: int, known: Gpu | None) -> tuple[Gpu | None, GpuSample | None]:
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
            gpu = Gpu(
                id=_text(pynvml.nvmlDeviceGetUUID(handle)) or f"index-{index}",
                index=index,
                name=_text(_ask(pynvml.nvmlDeviceGetName, handle)) or "NVIDIA GPU",
                memory_total_bytes=None if memory is None else int(memory.total),
            )
            use = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
            power = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
            limit = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
            sample = GpuSample(
                gpu=gpu.id,
                index=index,
                memory_used_bytes=None if memory is None else int(memory.used),
                memory_total_bytes=gpu.memory_total_bytes,
                utilization_ratio=None if use is None else use.gpu / 100,
                temperature_celsius=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
                power_watts=None if power is None else power / 1000,
                power_limit_watts=None if limit is None else limit / 1000,
                sm_clock_mhz=_ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
                processes=self._processes(handle),
            )
        except pynvml.NVMLError as error:
            fault = _LOST.get(error.value, f"the driver says: {error}")
            if known is None:
                log.error("gpu_unreadable", index=index, error=fault)
                return None, None
            return known, GpuSample(gpu=known.id, index=index, memory_total_bytes=known.memory_total_bytes, fault=fault)
        return gpu, sample

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...]:
        found = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
        return tuple(
            GpuProcess(
                pid=each.pid,
                name=_name(each.pid),
                memory_used_bytes=None if each.usedGpuMemory is None else int(each.usedGpuMemory),
                replica=self._engine_of(each.pid),
            )
            for each in found or ()
        )


def _faulty(last: GpuReading, fault: str, problem: Problem) -> GpuReading:
    samples = tuple(
        GpuSample(gpu=gpu.id, index=gpu.index, memory_total_bytes=gpu.memory_total_bytes, fault=fault)
        for gpu in last.inventory
    )
    return GpuReading(last.inventory, samples, last.driver_version, (problem,))


def _ask(call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None for what this card, driver or user does not have. Raises NVMLError for everything else."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in _UNSUPPORTED:
            return None
        raise


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _name(pid: int) -> str | None:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return None


def _why_none(error: Any) -> Problem:
    if error.value in _ABSENT:
        return Problem(
            code="no_gpu_driver",
            message="no NVIDIA driver on this node: it has no GPUs",
            severity="info",
            hint='Install the driver, or set gpus = "none" if there are none',
        )
    return Problem(
        code="nvml_failed",
        message=f"NVML cannot be used: {error}",
        severity="crit",
        hint="Check that driver and library are of one version (nvidia-smi says)",
    )
