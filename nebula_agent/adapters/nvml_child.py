"""The program that talks to NVIDIA's library: for each line on stdin, one JSON line on stdout with all that it says.

It is a process of its own because of what the library may do: hang in the kernel where no signal reaches it, or crash.
It imports nothing of Nebula and stays small. Figures are asked for one by one: one that a card does not have is None, a
card that is lost has an error and the others go on. What rarely changes is asked for now and then, PCIe throughput for
one card at a time, since each such question takes the driver 20 ms.
"""

import json
import sys
from typing import Any

import pynvml as nv

#: Of so many readings one asks for ECC, links and NVLink.
RARELY = 10

_NONE = {
    nv.NVML_ERROR_NOT_SUPPORTED,
    nv.NVML_ERROR_FUNCTION_NOT_FOUND,
    nv.NVML_ERROR_NO_PERMISSION,
    nv.NVML_ERROR_INVALID_ARGUMENT,
    nv.NVML_ERROR_NOT_FOUND,
}
_THROTTLES = (
    (0x2, "application_clocks"),
    (0x4, "power_cap"),
    (0x8, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal"),
    (0x40, "hw_thermal"),
    (0x80, "power_brake"),
    (0x100, "display_clocks"),
)
_MOST_LINKS = 18
#: The call of this binding, and the one that drivers before 510 know.
_PROCESS_CALLS = (
    (nv.nvmlDeviceGetComputeRunningProcesses, nv.nvmlDeviceGetComputeRunningProcesses_v2),
    (nv.nvmlDeviceGetGraphicsRunningProcesses, nv.nvmlDeviceGetGraphicsRunningProcesses_v2),
)


def ask(call: Any, *arguments: Any) -> Any:
    """The answer, or None for what this card, driver or user does not have. Raises NVMLError for everything else."""
    try:
        return call(*arguments)
    except nv.NVMLLibraryMismatchError:
        return None  # a driver older than the binding: it does not know this form of the call
    except nv.NVMLError as error:
        if error.value in _NONE:
            return None
        raise


def text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class Cards:
    def __init__(self) -> None:
        self.initialized = False
        self.readings = 0
        #: What was asked for rarely, by index.
        self.rare: dict[int, dict[str, Any]] = {}

    def read(self) -> dict[str, Any]:
        try:
            if not self.initialized:
                nv.nvmlInit()
                self.initialized = True
            count = nv.nvmlDeviceGetCount()
            driver = text(ask(nv.nvmlSystemGetDriverVersion))
        except nv.NVMLError as error:
            return {"failed": {"code": error.value, "text": str(error)}}
        cards = [self.card(index, turn=self.readings % max(count, 1)) for index in range(count)]
        self.readings += 1
        return {"driver": driver, "cards": cards}

    def card(self, index: int, turn: int) -> dict[str, Any]:
        found: dict[str, Any] = {"index": index}
        try:
            handle = nv.nvmlDeviceGetHandleByIndex(index)
            found["uuid"] = text(nv.nvmlDeviceGetUUID(handle))
            pci = ask(nv.nvmlDeviceGetPciInfo, handle)
            found["bus"] = None if pci is None else text(pci.busId)
            found["name"] = text(ask(nv.nvmlDeviceGetName, handle))
            memory = ask(nv.nvmlDeviceGetMemoryInfo, handle)
            if memory is not None:
                found["used"], found["total"] = int(memory.used), int(memory.total)
            use = ask(nv.nvmlDeviceGetUtilizationRates, handle)
            found["utilization"] = None if use is None else use.gpu
            found["celsius"] = ask(nv.nvmlDeviceGetTemperature, handle, nv.NVML_TEMPERATURE_GPU)
            found["milliwatts"] = ask(nv.nvmlDeviceGetPowerUsage, handle)
            found["limit_milliwatts"] = ask(nv.nvmlDeviceGetEnforcedPowerLimit, handle)
            found["sm_mhz"] = ask(nv.nvmlDeviceGetClockInfo, handle, nv.NVML_CLOCK_SM)
            found["memory_mhz"] = ask(nv.nvmlDeviceGetClockInfo, handle, nv.NVML_CLOCK_MEM)
            reasons = ask(nv.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
            found["throttles"] = None if reasons is None else [name for bit, name in _THROTTLES if reasons & bit]
            found["processes"] = processes(handle)
            if index == turn:
                for name, counter in (("receive", nv.NVML_PCIE_UTIL_RX_BYTES), ("send", nv.NVML_PCIE_UTIL_TX_BYTES)):
                    rate = ask(nv.nvmlDeviceGetPcieThroughput, handle, counter)
                    found[f"pcie_{name}"] = None if rate is None else rate * 1024
            if index not in self.rare or self.readings % RARELY == index % RARELY:
                self.rare[index] = rarely(handle)
            found.update(self.rare[index])
            found["parts"] = parts(handle)
        except nv.NVMLError as error:
            found["error"] = {"code": error.value, "text": str(error)}
        return found


def processes(handle: Any) -> list[list[Any]]:
    """[pid, bytes or None] of each, once, whatever it does there."""
    held: dict[int, Any] = {}
    for newer, older in _PROCESS_CALLS:
        found = ask(newer, handle)
        for each in (ask(older, handle) if found is None else found) or ():
            used = None if each.usedGpuMemory is None else int(each.usedGpuMemory)
            former = held.get(each.pid)
            held[each.pid] = used if former is None else max(former, used or 0)
    return [[pid, used] for pid, used in held.items()]


def rarely(handle: Any) -> dict[str, Any]:
    corrected, uncorrected = nv.NVML_MEMORY_ERROR_TYPE_CORRECTED, nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    rows = ask(nv.nvmlDeviceGetRemappedRows, handle)
    return {
        "ecc_corrected": ask(nv.nvmlDeviceGetTotalEccErrors, handle, corrected, nv.NVML_VOLATILE_ECC),
        "ecc_uncorrected": ask(nv.nvmlDeviceGetTotalEccErrors, handle, uncorrected, nv.NVML_VOLATILE_ECC),
        "ecc_uncorrected_lifetime": ask(nv.nvmlDeviceGetTotalEccErrors, handle, uncorrected, nv.NVML_AGGREGATE_ECC),
        "rows_pending": None if rows is None else bool(rows[2]),
        "pcie_generation": ask(nv.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        "pcie_generation_max": ask(nv.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        "pcie_width": ask(nv.nvmlDeviceGetCurrPcieLinkWidth, handle),
        "pcie_width_max": ask(nv.nvmlDeviceGetMaxPcieLinkWidth, handle),
        **nvlinks(handle),
    }


def nvlinks(handle: Any) -> dict[str, Any]:
    total = active = errors = 0
    for link in range(_MOST_LINKS):
        state = ask(nv.nvmlDeviceGetNvLinkState, handle, link)
        if state is None:
            break
        total += 1
        active += state == nv.NVML_FEATURE_ENABLED
        for counter in range(nv.NVML_NVLINK_ERROR_COUNT if state == nv.NVML_FEATURE_ENABLED else 0):
            errors += ask(nv.nvmlDeviceGetNvLinkErrorCounter, handle, link, counter) or 0
    return {"nvlinks_total": total, "nvlinks_active": active, "nvlink_errors": errors} if total else {}


def parts(handle: Any) -> list[dict[str, Any]]:
    """The MIG instances of a card; none when it is whole."""
    mode = ask(nv.nvmlDeviceGetMigMode, handle)
    if not mode or mode[0] != nv.NVML_DEVICE_MIG_ENABLE:
        return []
    found = []
    for index in range(ask(nv.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        part = ask(nv.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if part is None:
            continue
        memory = ask(nv.nvmlDeviceGetMemoryInfo, part)
        found.append(
            {
                "index": index,
                "uuid": text(nv.nvmlDeviceGetUUID(part)),
                "name": text(ask(nv.nvmlDeviceGetName, part)),
                "used": None if memory is None else int(memory.used),
                "total": None if memory is None else int(memory.total),
                "processes": processes(part),
            }
        )
    return found


def main() -> None:
    cards = Cards()
    for _ in sys.stdin:
        sys.stdout.write(json.dumps(cards.read()) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
