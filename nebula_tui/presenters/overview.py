"""The overview: is it healthy, and what needs me. Meters of the fleet, sums of the traffic, heat of the GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nebula_core.records.views import GpuView, NodeView
from nebula_tui.presenters.cells import (
    UNKNOWN,
    Cell,
    Column,
    Row,
    Severity,
    count,
    gib,
    milliseconds,
    percent,
    short_count,
    sparkline,
)
from nebula_tui.presenters.fleet import FleetState, add
from nebula_tui.presenters.history import shape
from nebula_tui.presenters.states import kv_severity, short_replica, temperature_severity
from nebula_tui.presenters.text import Span, TextLine, plural


@dataclass(frozen=True, slots=True)
class MeterLine:
    """One line of a panel of meters; `series` draws a history in the meter's place."""

    key: str
    label: str
    fraction: float | None
    value: str
    severity: Severity = Severity.NORMAL
    series: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class HeatNode:
    """A node of the heat grid: its id and a glyph per GPU."""

    id: str
    glyphs: str


#: A fleet of up to so many GPUs is shown one per line, above that as heat.
LISTED_GPUS: Final = 14

GPU_COLUMNS: Final = (
    Column("gpu", "NODE·GPU", 16, min_width=12, flex=True),
    Column("name", "GPU", 14, priority=4),
    Column("util", "UTIL%", 16, min_width=9, align="right"),
    Column("vram", "VRAM GiB", 8, align="right"),
    Column("temp", "°C", 3, align="right", priority=1),
    Column("power", "W", 4, align="right", priority=2),
    Column("replica", "REPLICA", 12, min_width=8),
    Column("trend", "TREND", 12, min_width=6, priority=5, sortable=False),
)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over nodes that are heard; None where nothing is known."""

    nodes: int
    ready: int
    draining: int
    cordoned: int
    suspect: int
    lost: int
    gpus: int
    util: float | None
    vram: float | None
    watts: float | None
    kv: float | None
    replicas_ready: int
    replicas_wanted: int
    models: int


def totals(fleet: FleetState) -> Totals:
    nodes = fleet.nodes.values()
    util_sum, util_count, used, total = 0.0, 0, 0, 0
    watts: float | None = None
    for node in nodes:
        sums = fleet.summary(node)
        util_sum += sums.util_sum
        util_count += sums.util_count
        used += sums.memory_used
        total += sums.memory_total
        watts = add(watts, sums.watts)
    fills = [
        replica.sample.kv_cache_usage
        for replica in fleet.replicas.values()
        if replica.sample is not None and replica.sample.kv_cache_usage is not None
    ]
    return Totals(
        nodes=len(fleet.nodes),
        ready=sum(node.state == "ready" and not node.draining and not node.cordoned for node in nodes),
        draining=sum(node.draining for node in nodes),
        cordoned=sum(node.cordoned and not node.draining for node in nodes),
        suspect=sum(node.state == "suspect" for node in nodes),
        lost=sum(node.state == "lost" for node in nodes),
        gpus=sum(len(node.gpus) for node in nodes),
        util=util_sum / util_count if util_count else None,
        vram=used / total if total else None,
        watts=watts,
        kv=max(fills, default=None),
        replicas_ready=sum(deployment.replicas_ready for deployment in fleet.deployments.values()),
        replicas_wanted=sum(deployment.replicas_wanted for deployment in fleet.deployments.values()),
        models=len(fleet.deployments),
    )


def fleet_title(sums: Totals) -> str:
    return f"{plural(sums.nodes, 'node')} · {plural(sums.gpus, 'GPU')}"


def fleet_meters(sums: Totals, history: Sequence[float | None] = ()) -> list[MeterLine]:
    """`history` is that of the power."""

    def share(part: int) -> float | None:
        return part / sums.nodes if sums.nodes else None

    def some(part: int, severity: Severity) -> Severity:
        return severity if part else Severity.NORMAL

    replicas = f"{sums.replicas_ready}/{sums.replicas_wanted}"
    short = sums.replicas_ready < sums.replicas_wanted
    return [
        MeterLine("ready", "ready", share(sums.ready), str(sums.ready)),
        MeterLine("draining", "draining", share(sums.draining), str(sums.draining), some(sums.draining, Severity.WARN)),
        MeterLine("cordoned", "cordoned", share(sums.cordoned), str(sums.cordoned), some(sums.cordoned, Severity.WARN)),
        MeterLine(
            "lost",
            "silent",
            share(sums.suspect + sums.lost),
            str(sums.suspect + sums.lost),
            some(sums.lost, Severity.CRIT) if sums.lost else some(sums.suspect, Severity.WARN),
        ),
        MeterLine(
            "replicas",
            "replicas",
            sums.replicas_ready / sums.replicas_wanted if sums.replicas_wanted else None,
            replicas,
            Severity.WARN if short else Severity.NORMAL,
        ),
        MeterLine("util", "GPU util", sums.util, _percent(sums.util)),
        MeterLine("vram", "VRAM", sums.vram, _percent(sums.vram)),
        MeterLine("kv", "KV max", sums.kv, _percent(sums.kv), kv_severity(sums.kv)),
        MeterLine("power", "power", None, watts(sums.watts), series=shape(history)),
    ]


def _percent(fraction: float | None) -> str:
    return UNKNOWN if fraction is None else f"{percent(fraction)}%"


def watts(value: float | None) -> str:
    """`684 W`, `447 kW`."""
    if value is None:
        return f"{UNKNOWN} W"
    return f"{value / 1000:.1f} kW" if value >= 10_000 else f"{value:,.0f} W"


def out_note(fleet: FleetState) -> str:
    """`out 21.9k/s ▲4%`: now, and against ten seconds ago."""
    values = [value for value in fleet.series.read("out", 20) if value is not None]
    if not values:
        return "out –"
    note = f"out {short_count(values[-1])}/s"
    before = values[:-10]
    if before and values[-1] > 0:
        past = sum(before) / len(before)
        change = (values[-1] - past) / past if past > 0 else 0.0
        if abs(change) >= 0.02:
            note += f" {'▲' if change > 0 else '▼'}{min(999, abs(change) * 100):.0f}%"
    return note


def traffic_lines(fleet: FleetState) -> list[TextLine]:
    """Two lines under the tokens chart."""
    prompts = _latest(fleet, "in")
    peak = max((value for value in fleet.series.read("out") if value is not None), default=None)
    hits: float | None = None
    queries: float | None = None
    running: float | None = None
    for replica in fleet.replicas.values():
        if replica.sample is not None:
            hits = add(hits, replica.sample.prefix_cache_hits_total)
            queries = add(queries, replica.sample.prefix_cache_queries_total)
            running = add(running, replica.sample.requests_running)
    requests: float | None = None
    for deployment in fleet.deployments.values():
        if deployment.traffic is not None:
            requests = add(requests, deployment.traffic.requests_per_second)
    cached = hits / queries if hits is not None and queries else None
    in_flight = sum(proxy.inflight for proxy in fleet.cluster.proxies) if fleet.cluster is not None else None
    minutes = len(fleet.series) / 60
    return [
        (
            (f"in {short_count(prompts)}/s", Severity.NORMAL),
            (f"  cached {percent(cached)}%", Severity.NORMAL),
            (f"  running {count(running)}", Severity.NORMAL),
            (f"  -{minutes:.0f}m" if minutes >= 1 else f"  -{len(fleet.series)}s", Severity.DIM),
        ),
        (
            (f"peak {short_count(peak)}/s", Severity.NORMAL),
            (f"  {short_count(requests)} req/s", Severity.NORMAL),
            (f"  in flight {count(in_flight)}", Severity.NORMAL),
        ),
    ]


_LATENCIES: Final = (
    ("ttft50", "TTFT p50"),
    ("ttft95", "TTFT p95"),
    ("ttft99", "TTFT p99"),
    ("itl95", "ITL  p95"),
    ("e2e95", "E2E  p95"),
)


def latency_meters(fleet: FleetState) -> list[MeterLine]:
    """Quantiles of the worst model, what waits at the proxies and runs in the engines; each with its history."""
    lines = [
        MeterLine(key, label, None, milliseconds(_latest(fleet, key)), series=shape(fleet.series.read(key, 40)))
        for key, label in _LATENCIES
    ]
    waiting = _latest(fleet, "waiting")
    severity = Severity.WARN if waiting else Severity.NORMAL
    lines.append(
        MeterLine("waiting", "waiting", None, count(waiting), severity, series=shape(fleet.series.read("waiting", 40)))
    )
    for key, label, unit in (("running", "running", ""), ("requests", "requests", "/s")):
        value = _latest(fleet, key)
        shown = UNKNOWN if value is None else f"{short_count(value)}{unit}"
        lines.append(MeterLine(key, label, None, shown, series=shape(fleet.series.read(key, 40))))
    return lines


def refusals(fleet: FleetState) -> TextLine:
    """`● shed 0.4 fail 0.0 ● retry 0.1 /s`."""
    rejected: float | None = None
    failed: float | None = None
    retried: float | None = None
    for deployment in fleet.deployments.values():
        if deployment.traffic is not None:
            rejected = add(rejected, deployment.traffic.rejected_per_second)
            failed = add(failed, deployment.traffic.failed_per_second)
            retried = add(retried, deployment.traffic.retried_per_second)
    spans: list[Span] = []
    for label, value, severity in (
        ("shed", rejected, Severity.WARN),
        ("fail", failed, Severity.CRIT),
        ("retry", retried, Severity.WARN),
    ):
        shown = UNKNOWN if value is None else f"{value:.1f}"
        trouble = value is not None and value >= 0.05
        glyph = f"{severity.glyph} " if trouble else ""
        spans.append((f"{glyph}{label} {shown} ", severity if trouble else Severity.NORMAL))
    return (*spans, ("/s", Severity.DIM))


def _latest(fleet: FleetState, name: str) -> float | None:
    """The newest value; None when it is not known now."""
    values = fleet.series.read(name, 1)
    return values[-1] if values else None


def heat_groups(fleet: FleetState, *, per_line: int = 10) -> list[tuple[str, tuple[HeatNode, ...]]]:
    """Nodes by their `rack` (or `pool`, `zone`) label; without labels, so many nodes to a line, named by the first."""
    groups: dict[str, list[NodeView]] = {}
    for node in sorted(fleet.nodes.values(), key=lambda node: node.id):
        label = next((node.labels[name] for name in ("rack", "pool", "zone", "dc") if name in node.labels), "")
        groups.setdefault(label, []).append(node)
    lines: list[tuple[str, tuple[HeatNode, ...]]] = []
    for label, nodes in sorted(groups.items()):
        for start in range(0, len(nodes), per_line) if not label else (0,):
            part = nodes[start : start + per_line] if not label else nodes
            name = label or part[0].id
            lines.append((name, tuple(HeatNode(node.id, fleet.summary(node).glyphs or UNKNOWN) for node in part)))
    return lines


def gpu_rows(fleet: FleetState, now: float) -> list[Row]:
    """Every GPU of a small fleet, one per line."""
    found: list[Row] = []
    for node in sorted(fleet.nodes.values(), key=lambda node: node.id):
        found.extend(_gpu_row(fleet, node, gpu, now) for gpu in sorted(node.gpus, key=lambda gpu: gpu.index))
        if not node.gpus:
            cells = (Cell(node.id), Cell("no GPU", Severity.DIM))
            found.append(Row(f"{node.id}/", cells, stale=node.state == "lost"))
    return found


def _gpu_row(fleet: FleetState, node: NodeView, gpu: GpuView, now: float) -> Row:
    sample = gpu.sample if node.state != "lost" else None
    fault = sample.fault if sample is not None else None
    util = sample.utilization_ratio if sample is not None else None
    celsius = sample.temperature_celsius if sample is not None else None
    owner = short_replica(gpu.replica) if gpu.replica else ("⊘ cordoned" if gpu.cordoned else "free")
    used = sample.memory_used_bytes if sample is not None else None
    capacity = gpu.memory_total_bytes or (sample.memory_total_bytes if sample is not None else None)
    return Row(
        f"{node.id}/{gpu.index}",
        (
            Cell(f"{node.id}·{gpu.index}"),
            Cell(gpu.name, Severity.DIM),
            Cell(f"▲ {fault}", Severity.CRIT) if fault else Cell.gauge(util),
            Cell(f"{gib(used)}/{gib(capacity)}", order=used),
            Cell(count(celsius), temperature_severity(celsius), order=celsius),
            Cell(count(sample.power_watts if sample is not None else None)),
            Cell(owner, Severity.ACCENT if gpu.replica else Severity.DIM),
            Cell(series=shape(fleet.gpus.read(gpu.id, 24))),
        ),
        stale=not fleet.is_live(now) or node.state != "ready",
    )


def strip_line(fleet: FleetState, sums: Totals) -> TextLine:
    """The one line that stands for the fleet panel where there is no room for it."""
    down = sums.lost + sums.suspect
    severity = Severity.CRIT if sums.lost else Severity.WARN if down else Severity.NORMAL
    short = sums.replicas_ready < sums.replicas_wanted
    glyph = f"{severity.glyph} " if severity.glyph else ""
    return (
        (f"{glyph}nodes {sums.ready}/{sums.nodes}", severity),
        (" ▏", Severity.DIM),
        (
            f"{'● ' if short else ''}replicas {sums.replicas_ready}/{sums.replicas_wanted}",
            Severity.WARN if short else Severity.NORMAL,
        ),
        (" ▏", Severity.DIM),
        (f"GPU {_percent(sums.util)} {sparkline(_util_history(fleet), 6, 1.0)}", Severity.NORMAL),
        (" ▏", Severity.DIM),
        (f"VRAM {_percent(sums.vram)}", Severity.NORMAL),
        (" ▏", Severity.DIM),
        (f"KV {_percent(sums.kv)}", kv_severity(sums.kv)),
        (" ▏", Severity.DIM),
        (watts(sums.watts), Severity.NORMAL),
    )


def _util_history(fleet: FleetState) -> tuple[float | None, ...]:
    names = [f"node/{node}/util" for node in list(fleet.nodes)[:64]]
    histories = [fleet.series.read(name, 6) for name in names]
    found: list[float | None] = []
    for place in range(6):
        known = [history[place] for history in histories if place < len(history)]
        values = [value for value in known if value is not None]
        found.append(sum(values) / len(values) if values else None)
    return tuple(found)
