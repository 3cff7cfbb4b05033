"""Huawei Ascend NPUs, through the program `npu-smi`: there is no library for it that is open."""

import subprocess

from nebula_agent.adapters.gpus import GpuReading
from nebula_agent.adapters.own_thread import OwnThread
from nebula_agent.adapters.patient_gpus import PatientGpus, UnreadableGpus
from nebula_agent.decisions.npu_smi import Npu, parse_table
from nebula_core.records.node import Gpu
from nebula_core.records.sample import GpuProcess, GpuSample
from nebula_core.runtime.clock import Clock

#: The program takes a second or two of a core: not every second.
EVERY_SECONDS = 5.0
STALE_SECONDS = 20.0
#: One call; a driver that hangs holds the program, which is then killed.
CALL_SECONDS = 15.0


class AscendNpus(PatientGpus):
    """`program` is npu-smi, by name or path."""

    def __init__(self, program: str, clock: Clock) -> None:
        self._thread = OwnThread("npu-smi")
        self._program = program
        self._running: subprocess.Popen[bytes] | None = None

        async def look() -> GpuReading:
            return reading_of(await self._thread.ask(self._output))

        super().__init__("Ascend", look, clock, every_seconds=EVERY_SECONDS, stale_seconds=STALE_SECONDS)

    async def aclose(self) -> None:
        await super().aclose()
        running = self._running
        if running is not None:
            running.kill()
        self._thread.close()

    def _output(self) -> str:
        """In the thread. Raises UnreadableGpus."""
        try:
            with subprocess.Popen(
                [self._program, "info"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process:
                self._running = process
                try:
                    output, _ = process.communicate(timeout=CALL_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise UnreadableGpus(
                        f"npu-smi did not end within {CALL_SECONDS:g} s", hint="Look into the kernel log"
                    ) from None
                finally:
                    self._running = None
        except OSError as error:
            raise UnreadableGpus(
                f"{self._program}: {error.strerror}", hint="Install the Ascend driver's tools"
            ) from error
        text = output.decode("utf-8", "replace")
        if process.returncode:
            said = " ".join(text.split())[:200]
            raise UnreadableGpus(f"npu-smi ended with {process.returncode}: {said}", hint="Run `npu-smi info` by hand")
        return text


def reading_of(text: str) -> GpuReading:
    """Raises UnreadableGpus when the text is no table of npu-smi."""
    table = parse_table(text)
    if not table.chips:
        said = " ".join(text.split())[:200] or "nothing"
        raise UnreadableGpus(f"npu-smi said: {said}", hint="Run `npu-smi info` by hand; check driver and permissions")
    gpus = tuple(
        Gpu(
            id=_id(npu),
            index=npu.number,
            name=f"Ascend {npu.name.removeprefix('Ascend')}".strip(),
            memory_total_bytes=npu.memory_total_bytes,
            vendor="huawei",
        )
        for npu in table.chips
    )
    return GpuReading(gpus, tuple(map(_sample, table.chips)), table.version)


def _id(npu: Npu) -> str:
    return f"NPU-{npu.bus}" if "x" not in npu.bus else f"NPU-{npu.card}-{npu.chip}"


def _sample(npu: Npu) -> GpuSample:
    return GpuSample(
        gpu=_id(npu),
        index=npu.number,
        memory_used_bytes=npu.memory_used_bytes,
        memory_total_bytes=npu.memory_total_bytes,
        utilization_ratio=npu.utilization_ratio,
        temperature_celsius=npu.celsius,
        power_watts=npu.watts,
        processes=tuple(
            GpuProcess(pid=each.pid, name=each.name, memory_used_bytes=each.memory_used_bytes) for each in npu.processes
        ),
        fault=npu.fault,
    )
