"""A node in a few sums, worked out once for each view of it.

A fleet of a thousand nodes changes nearly all its views every second, and the header, the overview, the node table, the
list of troubles and the history all need the same sums over its GPUs. Views are immutable, so a summary holds as long as
the view is the same object: `FleetState.summary` keeps one per node.
"""

from dataclasses import dataclass
from typing import Final

from nebula_core.records.views import NodeView
from nebula_tui.presenters.cells import Mark, heat

#: Glyphs of 0 … 100 %.
_HEAT: Final = tuple(heat(percent / 100) for percent in range(101))
_UNKNOWN_GLYPH: Final = "–"


@dataclass(frozen=True, slots=True)
class NodeSummary:
    """Of a lost node only its marks are known. `faults` are (GPU index, what)."""

    glyphs: str
    util_sum: float
    util_count: int
    memory_used: int
    memory_total: int
    watts: float | None
    hottest: float | None
    faults: tuple[tuple[int, str], ...]

    @property
    def util(self) -> float | None:
        return self.util_sum / self.util_count if self.util_count else None

    @property
    def memory(self) -> float | None:
        return self.memory_used / self.memory_total if self.memory_total else None


def summarise(node: NodeView) -> NodeSummary:
    """One pass over the GPUs."""
    lost = node.state == "lost"
    whole_mark = _whole_mark(node)
    glyphs: list[str] = []
    util_sum, util_count, used, total = 0.0, 0, 0, 0
    watts: float | None = None
    hottest: float | None = None
    faults: list[tuple[int, str]] = []
    for gpu in node.gpus:
        sample = gpu.sample
        util = sample.utilization_ratio if sample is not None else None
        if sample is not None and sample.fault:
            faults.append((gpu.index, sample.fault))
            glyphs.append(Mark.DOWN.value)
        elif whole_mark is not None:
            glyphs.append(whole_mark)
        elif gpu.cordoned:
            glyphs.append(Mark.CORDONED.value)
        else:
            glyphs.append(_UNKNOWN_GLYPH if util is None else _HEAT[max(0, min(100, int(util * 100 + 0.5)))])
        if lost or sample is None:
            continue
        if util is not None:
            util_sum += util
            util_count += 1
        capacity = gpu.memory_total_bytes or sample.memory_total_bytes
        if sample.memory_used_bytes is not None and capacity:
            used += sample.memory_used_bytes
            total += capacity
        if sample.power_watts is not None:
            watts = sample.power_watts if watts is None else watts + sample.power_watts
        celsius = sample.temperature_celsius
        if celsius is not None and (hottest is None or celsius > hottest):
            hottest = celsius
    return NodeSummary("".join(glyphs), util_sum, util_count, used, total, watts, hottest, tuple(faults))


def _whole_mark(node: NodeView) -> str | None:
    """What marks every GPU of a node, whatever each does."""
    if node.state == "lost":
        return Mark.DOWN.value
    if node.state == "suspect":
        return Mark.STALE.value
    return Mark.DRAINING.value if node.draining else None
