"""States as glyph, word and colour, the same on every screen; short names of things."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from nebula_core.records.replica import STARTING, Phase
from nebula_core.records.views import NodeView, ReplicaView
from nebula_tui.presenters.cells import Cell, Severity

#: A replica at this fill turns requests away soon (CONTRACT, 3).
KV_FULL: Final = 0.95
KV_HIGH: Final = 0.85
GPU_HOT_CELSIUS: Final = 85.0
HIGH: Final = 0.9

_PHASES: Mapping[Phase, tuple[str, Severity]] = MappingProxyType(
    {
        Phase.PENDING: ("○ pending", Severity.INFO),
        Phase.PULLING: ("↻ pulling", Severity.INFO),
        Phase.CREATING: ("↻ creating", Severity.INFO),
        Phase.LOADING: ("↻ loading", Severity.INFO),
        Phase.READY: ("ready", Severity.OK),
        Phase.DRAINING: ("‖ draining", Severity.WARN),
        Phase.STOPPED: ("○ stopped", Severity.DIM),
        Phase.FAILED: ("▲ failed", Severity.CRIT),
        Phase.LOST: ("▲ lost", Severity.CRIT),
    }
)


def phase_cell(replica: ReplicaView) -> Cell:
    """The phase of a replica; `ready` gives way to what troubles a ready one."""
    order = list(Phase).index(replica.phase)
    if replica.phase is Phase.READY:
        if replica.wanted in ("drain", "stop"):
            return Cell("‖ draining", Severity.WARN, order=order)
        if replica.ejected:
            return Cell("● ejected", Severity.WARN, order=order)
        if is_hot(replica):
            return Cell("▲ hot", Severity.CRIT, order=order)
    text, severity = _PHASES[replica.phase]
    return Cell(text, severity, order=order)


def is_hot(replica: ReplicaView) -> bool:
    usage = replica.sample.kv_cache_usage if replica.sample is not None else None
    return usage is not None and usage >= KV_FULL


def node_state(node: NodeView) -> tuple[str, Severity]:
    """`ready`, `‖drain`, `⊘cordon`, `~suspect`, `▲lost`: the worst first."""
    if node.state == "lost":
        return "▲lost", Severity.CRIT
    if node.state == "suspect":
        return "~suspect", Severity.WARN
    if node.draining:
        return "‖drain", Severity.WARN
    if node.cordoned:
        return "⊘cordon", Severity.WARN
    return "ready", Severity.OK


def kv_severity(usage: float | None) -> Severity:
    return _by(usage, KV_HIGH, KV_FULL)


def fill_severity(fraction: float | None) -> Severity:
    """Memory that is meant to be full (VRAM) is no trouble; disks are."""
    return _by(fraction, HIGH, 0.97)


def temperature_severity(celsius: float | None) -> Severity:
    return _by(celsius, GPU_HOT_CELSIUS, 95.0)


def waiting_severity(waiting: float | None, limit: int = 8) -> Severity:
    return _by(waiting, max(1, limit // 2), limit)


def _by(value: float | None, warn: float, crit: float) -> Severity:
    if value is None or value < warn:
        return Severity.NORMAL
    return Severity.CRIT if value >= crit else Severity.WARN


def is_starting(replica: ReplicaView) -> bool:
    return replica.phase in STARTING


def short_replica(replica: str, deployment: str | None = None) -> str:
    """`chat-r2` → `chat/r2`; as a child of its deployment, `r2`."""
    head, dash, tail = replica.rpartition("-r")
    if not dash or not tail.isdecimal():
        return replica
    return f"r{tail}" if deployment == head else f"{head}/r{tail}"


def gpu_span(indexes: tuple[int, ...]) -> str:
    """`0-3`, `0,2`, `` for none."""
    if not indexes:
        return ""
    ordered = sorted(indexes)
    if len(ordered) > 1 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]}-{ordered[-1]}"
    return ",".join(str(index) for index in ordered)
