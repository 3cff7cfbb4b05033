"""NVIDIA GPUs through NVML, in a process of its own: a driver that hangs or crashes must not stop the heartbeat.

`nvml_child` is asked with a line and answers with a line. Whoever reads here waits a limited time; while an answer is
due no other is asked for, the last figures are withheld after a few seconds, and every GPU carries the fault "the driver
hangs", so that nothing is placed there. A child that says nothing for long is left to the kernel (no signal ends a
call inside a driver) and another is started, a few times at most; one that crashed is started again, more and more slowly.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from nebula_agent.adapters.gpus import GpuReading, Holder
from nebula_agent.decisions.xid import short_bus
from nebula_core.records.node import Gpu
from nebula_core.records.report import Problem
from nebula_core.records.sample import GpuProcess, GpuSample
from nebula_core.runtime.clock import Clock

log = structlog.get_logger(__name__)

#: How long a report waits for the driver.
PATIENCE_SECONDS = 0.8
#: Figures older than this are not shown as current.
STALE_SECONDS = 3.0
#: A child that is silent for so long is given up.
ABANDON_SECONDS = 60.0
#: So many given up at once are enough: the driver does not come back by asking again.
MOST_ABANDONED = 3
#: Without a driver, look again now and then: it may be installed while the agent runs.
RETRY_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 60.0
_LINE_BYTES = 4 * 1024 * 1024

_CHILD = Path(__file__).with_name("nvml_child.py")

#: NVML's codes (`nvmlReturn_t`); the binding itself is loaded by the child alone.
GPU_IS_LOST, RESET_REQUIRED, UNKNOWN, LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED = 15, 16, 999, 12, 9
_LOST = {
    GPU_IS_LOST: "lost: it fell off the bus; the machine needs a reboot",
    RESET_REQUIRED: "needs a reset",
    UNKNOWN: "the driver reports an unknown error",
}
_ABSENT = frozenset({LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED})


class Nvml:
    """All NVIDIA GPUs of this machine; `env` is the environment of the child, None: this process's own."""

    simulated = False

    def __init__(self, clock: Clock, env: Mapping[str, str] | None = None) -> None:
        self._clock = clock
        self._env = None if env is None else dict(env)
        self._child: asyncio.subprocess.Process | None = None
        self._abandoned: list[asyncio.subprocess.Process] = []
        self._answer: asyncio.Task[bytes] | None = None
        self._asked_at = 0.0
        self._last = GpuReading()
        self._next_try = float("-inf")
        self._crashes = 0
        #: PCIe throughput as it was last asked for, by card: (received, sent).
        self._throughput: dict[int, tuple[float | None, float | None]] = {}

    async def read(self, holders: Mapping[str, Holder]) -> GpuReading:  # noqa: ARG002 - the driver knows better
        if self._answer is None and (self._clock.monotonic() < self._next_try or not await self._ask()):
            return self._last
        answer = self._answer
        assert answer is not None  # noqa: S101 - just asked for
        await asyncio.wait({answer}, timeout=PATIENCE_SECONDS)
        if not answer.done():
            return self._overdue(self._clock.monotonic() - self._asked_at)
        self._answer = None
        line = b"" if answer.exception() is not None else answer.result()
        self._last = self._told(line) if line.endswith(b"\n") else await self._crashed()
        return self._last

    async def aclose(self) -> None:
        """Ends the child. One that hangs in the driver is left to the kernel."""
        if self._answer is not None:
            self._answer.cancel()
            await asyncio.gather(self._answer, return_exceptions=True)
            self._answer = None
        children = [*self._abandoned, *([self._child] if self._child is not None else [])]
        self._child, self._abandoned = None, []
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await _reap(child)

    # --- the child

    async def _ask(self) -> bool:
        """Sends the next question; False when there is nobody to ask."""
        if self._child is None:
            try:
                self._child = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",
                    str(_CHILD),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    # Its last words go where ours go: a bug of it must not be a riddle.
                    env=self._env,
                    limit=_LINE_BYTES,
                    start_new_session=True,
                )
            except OSError as error:
                log.error("nvml_child_not_started", error=str(error))
                self._next_try = self._clock.monotonic() + RETRY_SECONDS
                return False
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None and stdout is not None  # noqa: S101, PT018 - pipes were asked for
        stdin.write(b"\n")
        self._answer = asyncio.create_task(stdout.readline(), name="nvml-answer")
        self._asked_at = self._clock.monotonic()
        return True

    def _overdue(self, seconds: float) -> GpuReading:
        """What is said while the driver does not answer."""
        if seconds < STALE_SECONDS:
            return self._last
        if seconds >= ABANDON_SECONDS:
            self._abandon()
        text = f"the NVIDIA driver has not answered for {seconds:.0f} s"
        hint = "Look into the kernel log; a reboot may be needed"
        problem = Problem(code="nvml_hung", message=text, severity="crit", hint=hint)
        # Kept: a child that follows one given up has said nothing yet, and the figures before it are a minute old.
        self._last = _faulty(self._last, "the driver hangs", problem)
        return self._last

    def _abandon(self) -> None:
        self._abandoned = [child for child in self._abandoned if child.returncode is None]
        if self._child is None or len(self._abandoned) >= MOST_ABANDONED:
            return
        log.error("nvml_child_abandoned", pid=self._child.pid)
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()
        if self._answer is not None:
            self._answer.cancel()
        self._answer = None
        self._abandoned.append(self._child)
        self._child = None

    async def _crashed(self) -> GpuReading:
        """The child ended: the library took it along."""
        child, self._child = self._child, None
        status = None if child is None else await _reap(child)
        self._crashes += 1
        pause = min(_LONGEST_PAUSE_SECONDS, 2.0 ** (self._crashes - 1))
        self._next_try = self._clock.monotonic() + pause
        log.error("nvml_child_crashed", status=status, times=self._crashes, pause_seconds=pause)
        problem = Problem(
            code="nvml_crashed",
            message=f"NVIDIA's library crashed the process that asked it, {self._crashes} times in a row",
            severity="crit",
            hint="Check that driver and library are of one version; look into the kernel log",
        )
        return _faulty(self._last, "the driver's library crashes", problem)

    # --- its answer

    def _told(self, line: bytes) -> GpuReading:
        said = json.loads(line)
        self._crashes = 0
        failed = said.get("failed")
        if failed is not None:
            code = int(failed["code"])
            problem = _why_none(code, str(failed["text"]))
            if problem not in self._last.problems:
                log.info("nvml_problem", problems=[problem.message])
            # What was there once is not gone because the driver is: it is at fault.
            reading = _faulty(self._last, _LOST.get(code, f"the driver says: {failed['text']}"), problem)
            if not reading.inventory:
                self._next_try = self._clock.monotonic() + RETRY_SECONDS
            return reading
        known = {gpu.index: gpu for gpu in self._last.inventory if gpu.parent is None}
        gpus: list[Gpu] = []
        samples: list[GpuSample] = []
        buses: dict[str, str] = {}
        for card in said["cards"]:
            for gpu, sample in self._card(card, known.get(card["index"])):
                gpus.append(gpu)
                samples.append(sample)
                if card.get("bus"):
                    buses[gpu.id] = short_bus(card["bus"])
        for gpu in self._vanished({*(gpu.id for gpu in gpus), *(gpu.parent for gpu in gpus)}):
            gpus.append(gpu)
            samples.append(_at_fault(gpu, "lost: the driver does not list it any more"))
        order = sorted(range(len(gpus)), key=lambda at: gpus[at].index)
        return GpuReading(
            tuple(gpus[at] for at in order),
            tuple(samples[at] for at in order),
            said.get("driver"),
            buses={**self._last.buses, **buses},
        )

    def _vanished(self, seen: set[str | None]) -> list[Gpu]:
        """Cards that were there and are not listed any more: lost, not forgotten. Parts may be made and unmade."""
        return [gpu for gpu in self._last.inventory if gpu.id not in seen and gpu.parent is None]

    def _card(self, card: dict[str, Any], known: Gpu | None) -> list[tuple[Gpu, GpuSample]]:
        index = int(card["index"])
        error = card.get("error")
        if error is not None:
            fault = _LOST.get(int(error["code"]), f"the driver says: {error['text']}")
            if known is None:
                log.error("gpu_unreadable", index=index, error=fault)
                return []
            return [(known, _at_fault(known, fault))]
        gpu = Gpu(
            id=card.get("uuid") or f"index-{index}",
            index=index,
            name=card.get("name") or "NVIDIA GPU",
            memory_total_bytes=card.get("total"),
        )
        sample = self._sample(gpu, card)
        parts = card.get("parts") or ()
        if not parts:
            return [(gpu, sample)]
        return [_part(gpu, sample, part) for part in parts]

    def _sample(self, gpu: Gpu, card: dict[str, Any]) -> GpuSample:
        if "pcie_receive" in card:
            self._throughput[gpu.index] = (card["pcie_receive"], card["pcie_send"])
        received, sent = self._throughput.get(gpu.index, (None, None))
        throttles = card.get("throttles")
        return GpuSample(
            gpu=gpu.id,
            index=gpu.index,
            memory_used_bytes=card.get("used"),
            memory_total_bytes=gpu.memory_total_bytes,
            utilization_ratio=_scaled(card.get("utilization"), 0.01, most=1.0),
            temperature_celsius=_scaled(card.get("celsius"), 1.0, most=250.0),
            power_watts=_scaled(card.get("milliwatts"), 0.001, most=10_000.0),
            power_limit_watts=_scaled(card.get("limit_milliwatts"), 0.001, most=10_000.0),
            sm_clock_mhz=card.get("sm_mhz"),
            memory_clock_mhz=card.get("memory_mhz"),
            throttle_reasons=None if throttles is None else tuple(throttles),
            ecc_corrected_total=card.get("ecc_corrected"),
            ecc_uncorrected_total=card.get("ecc_uncorrected"),
            ecc_uncorrected_lifetime_total=card.get("ecc_uncorrected_lifetime"),
            row_remap_pending=card.get("rows_pending"),
            pcie_generation=card.get("pcie_generation"),
            pcie_generation_max=card.get("pcie_generation_max"),
            pcie_width=card.get("pcie_width"),
            pcie_width_max=card.get("pcie_width_max"),
            pcie_receive_bytes_per_second=received,
            pcie_send_bytes_per_second=sent,
            nvlinks_active=card.get("nvlinks_active"),
            nvlinks_total=card.get("nvlinks_total"),
            nvlink_errors_total=card.get("nvlink_errors"),
            processes=_processes(card.get("processes") or ()),
        )


#: MIG instances are numbered behind all whole cards: part 2 of card 0 is 102.
PARTS_FROM = 100


def _part(card: Gpu, sample: GpuSample, part: dict[str, Any]) -> tuple[Gpu, GpuSample]:
    """A MIG instance: memory and processes of its own, heat and power of its card, and no utilization (NVML has none)."""
    gpu = Gpu(
        id=part["uuid"],
        index=PARTS_FROM * (card.index + 1) + int(part["index"]),
        name=part.get("name") or f"part of {card.name}",
        memory_total_bytes=part.get("total"),
        parent=card.id,
    )
    own = {
        "gpu": gpu.id,
        "index": gpu.index,
        "memory_used_bytes": part.get("used"),
        "memory_total_bytes": part.get("total"),
        "utilization_ratio": None,
        "processes": _processes(part.get("processes") or ()),
    }
    return gpu, sample.model_copy(update=own)


def _processes(found: Any) -> tuple[GpuProcess, ...]:
    return tuple(GpuProcess(pid=pid, memory_used_bytes=used) for pid, used in found)


def _scaled(value: float | None, factor: float, *, most: float) -> float | None:
    """None for what no card can mean."""
    if value is None or not 0 <= value * factor <= most:
        return None
    return value * factor if factor != 1.0 else value


def _at_fault(gpu: Gpu, fault: str) -> GpuSample:
    return GpuSample(gpu=gpu.id, index=gpu.index, memory_total_bytes=gpu.memory_total_bytes, fault=fault)


def _faulty(last: GpuReading, fault: str, problem: Problem) -> GpuReading:
    samples = tuple(_at_fault(gpu, fault) for gpu in last.inventory)
    return GpuReading(last.inventory, samples, last.driver_version, (problem,), last.buses)


async def _reap(child: asyncio.subprocess.Process) -> int | None:
    """Its exit status; None when the kernel does not let it go yet."""
    if child.stdin is not None:
        child.stdin.close()
    try:
        return await asyncio.wait_for(child.wait(), 1.0)
    except TimeoutError:
        return None


def _why_none(code: int, text: str) -> Problem:
    if code in _ABSENT:
        return Problem(
            code="no_gpu_driver",
            message="no NVIDIA driver on this node: it has no GPUs",
            severity="info",
            hint='Install the driver, or set gpus = "none" if there are none',
        )
    return Problem(
        code="nvml_failed",
        message=f"NVML cannot be used: {text}",
        severity="crit",
        hint="Check that driver and library are of one version (nvidia-smi says)",
    )
