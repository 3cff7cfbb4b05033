"""AMD GPUs, through what the amdgpu driver shows in sysfs (Linux kernel: Documentation/gpu/amdgpu; KFD for processes).

Everything is one small file per figure, so no library is needed. A figure that a card does not have has no file: None.
"""

import re
from pathlib import Path

from nebula_agent.adapters.gpus import GpuReading
from nebula_agent.adapters.own_thread import OwnThread
from nebula_agent.adapters.patient_gpus import PatientGpus
from nebula_core.records.node import Gpu
from nebula_core.records.sample import GpuProcess, GpuSample
from nebula_core.runtime.clock import Clock

EVERY_SECONDS = 1.0
STALE_SECONDS = 3.0

_VENDOR = "0x1002"
_CARD = re.compile(r"card(\d+)")
_CURRENT_CLOCK = re.compile(r"(\d+)Mhz \*", re.IGNORECASE)
_SPEED = re.compile(r"([\d.]+) GT/s")
#: Gigatransfers per second of each PCIe generation.
_GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
_ECC = re.compile(r"ue: (\d+)\s+ce: (\d+)")


class AmdGpus(PatientGpus):
    """`root` is the root of the file system whose `/sys` is read."""

    def __init__(self, clock: Clock, root: Path = Path("/")) -> None:
        thread = OwnThread("amdgpu")

        async def look() -> GpuReading:
            return await thread.ask(lambda: read_all(root))

        super().__init__("AMD", look, clock, every_seconds=EVERY_SECONDS, stale_seconds=STALE_SECONDS)
        self._thread = thread

    async def aclose(self) -> None:
        await super().aclose()
        self._thread.close()


def cards(root: Path) -> list[Path]:
    """The device folders of AMD cards, in the order of their numbers; those of connectors and virtual cards are none."""
    found = []
    for path in (root / "sys/class/drm").glob("card*"):
        number = _CARD.fullmatch(path.name)
        device = path / "device"
        if number and _text(device / "vendor") == _VENDOR and (device / "mem_info_vram_total").exists():
            found.append((int(number.group(1)), device))
    return [device for _, device in sorted(found)]


def read_all(root: Path) -> GpuReading:
    processes = _processes(root)
    gpus: list[Gpu] = []
    samples: list[GpuSample] = []
    buses: dict[str, str] = {}
    for index, device in enumerate(cards(root)):
        # A link on a live system; in a fixture the address stands in `uevent` alone.
        bus = _slot(device)
        unique = _text(device / "unique_id")
        gpu = Gpu(
            id=f"AMD-{unique}" if unique and unique != "0" else f"AMD-{bus or index}",
            index=index,
            name=_text(device / "product_name") or f"AMD GPU {_text(device / 'device') or ''}".strip(),
            memory_total_bytes=_number(device / "mem_info_vram_total"),
            vendor="amd",
        )
        gpus.append(gpu)
        samples.append(_sample(gpu, device, processes.get(bus or "", ())))
        if bus:
            buses[gpu.id] = bus
    return GpuReading(tuple(gpus), tuple(samples), _text(root / "sys/module/amdgpu/version"), buses=buses)


def _sample(gpu: Gpu, device: Path, processes: tuple[GpuProcess, ...]) -> GpuSample:
    heat = next(iter(sorted((device / "hwmon").glob("hwmon*"))), device / "hwmon" / "none")
    busy = _number(device / "gpu_busy_percent")
    millidegrees = _number(heat / "temp1_input")
    microwatts = _number(heat / "power1_average")
    if microwatts is None:
        microwatts = _number(heat / "power1_input")
    limit = _number(heat / "power1_cap")
    ecc = _ECC.search(_text(device / "ras/umc_err_count") or "")
    return GpuSample(
        gpu=gpu.id,
        index=gpu.index,
        memory_used_bytes=_number(device / "mem_info_vram_used"),
        memory_total_bytes=gpu.memory_total_bytes,
        utilization_ratio=None if busy is None else busy / 100,
        temperature_celsius=None if millidegrees is None else millidegrees / 1000,
        power_watts=None if microwatts is None else microwatts / 1e6,
        power_limit_watts=None if limit is None else limit / 1e6,
        sm_clock_mhz=_clock(device / "pp_dpm_sclk"),
        memory_clock_mhz=_clock(device / "pp_dpm_mclk"),
        ecc_uncorrected_total=int(ecc.group(1)) if ecc else None,
        ecc_corrected_total=int(ecc.group(2)) if ecc else None,
        pcie_generation=_generation(device / "current_link_speed"),
        pcie_generation_max=_generation(device / "max_link_speed"),
        pcie_width=_number(device / "current_link_width"),
        pcie_width_max=_number(device / "max_link_width"),
        processes=processes,
    )


def _processes(root: Path) -> dict[str, tuple[GpuProcess, ...]]:
    """By bus address, from KFD: each process has a file `vram_<gpu id>`, each GPU's node says its address."""
    where: dict[str, str] = {}
    for node in (root / "sys/class/kfd/kfd/topology/nodes").glob("*"):
        identity = _text(node / "gpu_id")
        fields = dict(line.split(maxsplit=1) for line in (_text(node / "properties") or "").splitlines() if " " in line)
        if identity and identity != "0" and fields.get("location_id", "").isdecimal():
            location, domain = int(fields["location_id"]), int(fields.get("domain", "0") or 0)
            where[identity] = f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}"
    found: dict[str, list[GpuProcess]] = {}
    for folder in (root / "sys/class/kfd/kfd/proc").glob("*"):
        if not folder.name.isdecimal():
            continue
        for file in folder.glob("vram_*"):
            bus = where.get(file.name.removeprefix("vram_"))
            used = _number(file)
            if bus is not None and used:
                found.setdefault(bus, []).append(GpuProcess(pid=int(folder.name), memory_used_bytes=used))
    return {bus: tuple(each) for bus, each in found.items()}


def _slot(device: Path) -> str | None:
    for line in (_text(device / "uevent") or "").splitlines():
        if line.startswith("PCI_SLOT_NAME="):
            return line.partition("=")[2].lower().partition(".")[0]
    return None


def _clock(path: Path) -> int | None:
    found = _CURRENT_CLOCK.search(_text(path) or "")
    return int(found.group(1)) if found else None


def _generation(path: Path) -> int | None:
    found = _SPEED.search(_text(path) or "")
    return _GENERATIONS.get(float(found.group(1))) if found else None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() else None


def _text(path: Path) -> str | None:
    """None where the file is not there, or the driver refuses to say."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
