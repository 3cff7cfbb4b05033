"""The table of `npu-smi info` (Huawei Ascend), read line by line.

Each chip has two lines: number and name, health, power and temperature; then number of the chip (and its physical
number, on cards with two), bus address, AI core use, memory. A list of processes follows. Widths differ between
versions, so columns are told by the bars between them; a figure that is `-` or `NA` is unknown. Shapes: outputs of
npu-smi 23, 25 and 26 that operators attached to public issues (tests/agent/fixtures/npu_smi).
"""

import re
from typing import NamedTuple

MIB = 1024**2
#: Huawei's words for the state of a chip; in these nothing new should run on it.
_BROKEN = frozenset({"alarm", "critical", "unknown"})

_VERSION = re.compile(r"npu-smi\s+\S+\s+Version:\s*(\S+)")
_CARD = re.compile(r"^(\d+)\s+(\S.*)$")
_CHIP = re.compile(r"^(\d+)(?:\s+(\d+))?$")
_BUS = re.compile(r"^[0-9A-Fa-fx]{4}:[0-9A-Fa-fx]{2}:[0-9A-Fa-fx]{2}\.[0-9A-Fa-f]$")
_PAIR = re.compile(r"(\d+)\s*/\s*(\d+)")


class NpuProcess(NamedTuple):
    pid: int
    name: str
    memory_used_bytes: int | None


class Npu(NamedTuple):
    """One chip. Bytes, watts, Celsius, ratio 0..1; None is unknown."""

    card: int
    chip: int
    #: The number engines know it by.
    number: int
    name: str
    bus: str
    health: str
    watts: float | None
    celsius: float | None
    utilization_ratio: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    processes: tuple[NpuProcess, ...] = ()

    @property
    def fault(self) -> str | None:
        return f"npu-smi calls its health {self.health}" if self.health.lower() in _BROKEN else None


class NpuTable(NamedTuple):
    version: str | None
    chips: tuple[Npu, ...]


def parse_table(text: str) -> NpuTable:
    """All chips in the table; none when there is no table in the text."""
    version = _VERSION.search(text)
    chips: list[Npu] = []
    processes: dict[tuple[int, int], list[NpuProcess]] = {}
    upper: list[str] | None = None
    listing = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if len(cells) < 3:
            continue
        if cells[1].lower().startswith("process id"):
            listing = True
        elif listing:
            _add_process(cells, processes)
        elif upper is not None and _BUS.match(cells[1]):
            npu = _chip(upper, cells, len(chips))
            if npu is not None:
                chips.append(npu)
            upper = None
        elif _CARD.match(cells[0]):
            upper = cells
    return NpuTable(
        version.group(1) if version else None,
        tuple(npu._replace(processes=tuple(processes.get((npu.card, npu.chip), ()))) for npu in chips),
    )


def _chip(upper: list[str], lower: list[str], count: int) -> Npu | None:
    card, chip = _CARD.match(upper[0]), _CHIP.match(lower[0])
    if card is None or chip is None:
        return None
    figures = upper[2].split()
    use = lower[2].split()
    pairs = [(int(used), int(total)) for used, total in _PAIR.findall(lower[2])]
    # The last pair with a size is the memory models live in: HBM where there is any, else that of the chip.
    memory = next(((used, total) for used, total in reversed(pairs) if total > 0), None)
    share = _number(use[0]) if use else None
    return Npu(
        int(card.group(1)),
        int(chip.group(1)),
        int(chip.group(2)) if chip.group(2) is not None else count,
        card.group(2).strip(),
        lower[1],
        upper[1],
        _number(figures[0]) if figures else None,
        _number(figures[1]) if len(figures) > 1 else None,
        None if share is None else share / 100,
        None if memory is None else memory[0] * MIB,
        None if memory is None else memory[1] * MIB,
    )


def _add_process(cells: list[str], found: dict[tuple[int, int], list[NpuProcess]]) -> None:
    where = _CHIP.match(cells[0])
    if where is None or where.group(2) is None or len(cells) < 4 or not cells[1].isdecimal():
        return
    used = _number(cells[3])
    process = NpuProcess(int(cells[1]), cells[2], None if used is None else int(used) * MIB)
    found.setdefault((int(where.group(1)), int(where.group(2))), []).append(process)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
