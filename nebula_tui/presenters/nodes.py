"""Nodes and GPUs as rows, and one node in detail: which box is hot, stale or sick, and what runs on it."""

from collections.abc import Sequence
from typing import Final

from nebula_core.records.sample import GpuProcess, GpuSample
from nebula_core.records.views import GpuView, NodeView, ReplicaView
from nebula_tui.presenters.cells import (
    UNKNOWN,
    Cell,
    Column,
    LazyRows,
    Order,
    Row,
    Severity,
    age,
    count,
    gib,
    meter,
    percent,
    rate,
    short_count,
    sparkline,
    stale_age,
)
from nebula_tui.presenters.fleet import FleetState, add
from nebula_tui.presenters.history import shape
from nebula_tui.presenters.states import (
    fill_severity,
    gpu_span,
    kv_severity,
    node_state,
    short_replica,
    temperature_severity,
)
from nebula_tui.presenters.text import BLANK, Span, TextLine, labelled

COLUMNS: Final = (
    Column("node", "NODE", 13, min_width=9, flex=True),
    Column("state", "STATE", 8),
    Column("gpus", "GPUS", 8, sortable=False),
    Column("util", "UTIL%", 14, min_width=10, align="right", flash=False),
    Column("vram", "VRAM%", 14, min_width=9, align="right", priority=1),
    Column("kv", "KV%", 4, align="right", priority=4),
    Column("temp", "°C", 3, align="right", priority=3),
    Column("power", "W", 6, align="right", priority=5),
    Column("run", "RUN/WAIT", 8, align="right", priority=2),
    Column("out", "TOK/S", 6, align="right", priority=3),
    Column("age", "AGE", 5, align="right"),
    Column("trend", "TREND", 12, min_width=6, priority=6, sortable=False),
)

_STALE_AFTER: Final = 5.0
#: Less than this is the driver's own.
UNEXPLAINED_BYTES: Final = 1024**3


def rows(fleet: FleetState, now: float) -> LazyRows:
    """Every node; a row is made when it comes into sight."""
    live = fleet.is_live(now)
    by_node = fleet.replicas_by_node()

    def make(id_: str) -> Row:
        return _row(fleet, fleet.nodes[id_], by_node.get(id_, ()), now, live=live)

    def order(id_: str, key: str) -> Order:
        return _order(fleet, fleet.nodes[id_], by_node.get(id_, ()), key, now)

    def text(id_: str) -> str:
        node = fleet.nodes[id_]
        labels = " ".join(f"{name}={value}" for name, value in node.labels.items())
        return f"{id_} {node_state(node)[0]} {labels} {' '.join(node.replicas)}"

    return LazyRows(tuple(sorted(fleet.nodes)), make, order, text)


def _row(fleet: FleetState, node: NodeView, replicas: Sequence[ReplicaView], now: float, *, live: bool) -> Row:
    state, severity = node_state(node)
    running, waiting, out, kv = _load(replicas)
    sums = fleet.summary(node)
    run = UNKNOWN if running is None and waiting is None else f"{count(running)}/{count(waiting)}"
    return Row(
        node.id,
        (
            Cell(node.id),
            Cell(state, severity),
            Cell.strip(sums.glyphs) if node.gpus else Cell("no GPU", Severity.DIM),
            Cell.gauge(sums.util),
            Cell.gauge(sums.memory),
            Cell(percent(kv), kv_severity(kv)),
            Cell(count(sums.hottest), temperature_severity(sums.hottest)),
            Cell(count(sums.watts)),
            Cell(run, order=running),
            Cell(short_count(out), order=out),
            stale_age(fleet.node_age(node, now), _STALE_AFTER),
            Cell(series=shape(fleet.series.read(f"node/{node.id}/util", 24))),
        ),
        stale=not live or node.state == "lost",
    )


def _order(fleet: FleetState, node: NodeView, replicas: Sequence[ReplicaView], key: str, now: float) -> Order:
    match key:
        case "node":
            return node.id
        case "state":
            return node_state(node)[0]
        case "util" | "vram":
            share = fleet.summary(node).util if key == "util" else fleet.summary(node).memory
            return None if share is None else share * 100
        case "temp":
            return fleet.summary(node).hottest
        case "power":
            return fleet.summary(node).watts
        case "age":
            return fleet.node_age(node, now)
        case "model":
            return " ".join(sorted({replica.model for replica in replicas})) or None
        case _:
            running, _, out, kv = _load(replicas)
            return {"run": running, "out": out, "kv": None if kv is None else kv * 100}.get(key)


def _capacity(gpu: GpuView) -> int | None:
    return gpu.memory_total_bytes or (gpu.sample.memory_total_bytes if gpu.sample is not None else None)


def _load(replicas: Sequence[ReplicaView]) -> tuple[float | None, float | None, float | None, float | None]:
    """(running, waiting, tokens/s, fullest KV) of some replicas."""
    running: float | None = None
    waiting: float | None = None
    out: float | None = None
    kv: float | None = None
    for replica in replicas:
        if replica.sample is not None:
            running = add(running, replica.sample.requests_running)
            waiting = add(waiting, replica.sample.requests_waiting)
            out = add(out, replica.sample.generation_tokens_per_second)
            if replica.sample.kv_cache_usage is not None:
                kv = max(kv or 0.0, replica.sample.kv_cache_usage)
    return running, waiting, out, kv


def title(node: NodeView) -> str:
    """`node-034 · 8×H200 · driver 580.95 · agent 0.1.0`."""
    parts = [node.id, gpu_kinds(node)]
    if node.driver_version:
        parts.append(f"driver {node.driver_version}")
    if node.version:
        parts.append(f"agent {node.version}")
    if node.simulated:
        parts.append("simulated")
    return " · ".join(parts)


def gpu_kinds(node: NodeView) -> str:
    kinds: dict[str, int] = {}
    for gpu in node.gpus:
        kinds[gpu.name] = kinds.get(gpu.name, 0) + 1
    return " + ".join(f"{number}×{name}" for name, number in kinds.items()) or "no GPU"


def gpu_lines(fleet: FleetState, node: NodeView, width: int, height: int) -> list[TextLine]:
    """The GPUs of a node with their history; in two columns where one does not hold them."""
    gpus = sorted(node.gpus, key=lambda gpu: gpu.index)
    columns = 2 if len(gpus) > height and width >= 100 else 1
    each = (width - 2 * (columns - 1)) // columns
    per_column = -(-len(gpus) // columns) if gpus else 0
    lines: list[TextLine] = []
    for place in range(min(per_column, height)):
        line: list[Span] = []
        for column in range(columns):
            at = place + column * per_column
            if at < len(gpus):
                if column:
                    line.append(("  ", Severity.NORMAL))
                line.extend(_gpu_line(fleet, node, gpus[at], each))
        lines.append(tuple(line))
    left = len(gpus) - columns * len(lines)
    if left > 0 and lines:
        lines[-1] = (*lines[-1], (f" +{left}", Severity.DIM))
    return lines


def _gpu_line(fleet: FleetState, node: NodeView, gpu: GpuView, width: int) -> list[Span]:
    sample = gpu.sample
    name = f"gpu{gpu.index}".ljust(6)
    owner = short_replica(gpu.replica) if gpu.replica else "free"
    if gpu.cordoned:
        owner += " ⊘"
    if node.state == "lost" or sample is None:
        body: list[Span] = [(name, Severity.DIM), (meter(None, 10) + "    –", Severity.DIM)]
        return _filled([*body, (f"  {owner}", Severity.DIM)], width)
    if sample.fault:
        return _filled([(name, Severity.DIM), (f"▲ {sample.fault}", Severity.CRIT)], width)
    roomy = width >= 70
    util, celsius = sample.utilization_ratio, sample.temperature_celsius
    body = [
        (name, Severity.DIM),
        (meter(util, 10), Severity.INFO),
        (f" {percent(util):>3}%", Severity.NORMAL),
        (f" {gib(sample.memory_used_bytes):>4}{f'/{gib(_capacity(gpu))}' if roomy else ''}G", Severity.NORMAL),
        (f" {count(celsius):>3}°", temperature_severity(celsius)),
        (f" {count(sample.power_watts):>4}W " if roomy else " ", Severity.NORMAL),
    ]
    taken = sum(len(text) for text, _ in body)
    room = width - taken - 1
    owner_width = min(len(owner), max(8, room))
    history = max(0, min(room - max(owner_width, 14) - 1, 60))
    drawn = sparkline(shape(fleet.gpus.read(gpu.id, history)), history, 1.0) if history >= 6 else ""
    severity = Severity.ACCENT if gpu.replica else Severity.DIM
    return _filled([*body, (drawn, Severity.INFO), (f" {owner[:owner_width]}", severity)], width)


def _filled(spans: list[Span], width: int) -> list[Span]:
    taken = sum(len(text) for text, _ in spans)
    return [*spans, (" " * max(0, width - taken), Severity.NORMAL)]


def detail_lines(fleet: FleetState, node: NodeView, now: float) -> list[TextLine]:
    """What runs on a node, its network and disk, its agent."""
    runs: list[Span] = []
    for replica in sorted(fleet.replicas_on(node.id), key=lambda replica: replica.id):
        gpus = f" (gpu{gpu_span(replica.gpu_indexes)})" if replica.gpu_indexes else ""
        severity = Severity.NORMAL if replica.phase == "ready" else Severity.WARN
        word = "" if replica.phase == "ready" else f" {replica.phase.value}"
        word += "" if replica.managed else f" unmanaged {replica.model}"
        runs.append((f"{short_replica(replica.id)}{gpus}{word}   ", severity))
    free = [str(gpu.index) for gpu in node.gpus if gpu.replica is None and not gpu.cordoned]
    if node.gpus:
        runs.append((f"free gpu{','.join(free)}" if free else "no GPU free", Severity.DIM))
    lines: list[TextLine] = [labelled("runs", *(runs or [("nothing", Severity.DIM)])), _host_line(node)]
    silent = fleet.node_age(node, now)
    words = [f"heartbeat {age(silent)} ago" if silent is not None else "never heard"]
    if node.clock_skew_seconds is not None:
        words.append(f"clock {node.clock_skew_seconds * 1000:+.0f} ms")
    if node.agent_pid is not None:
        words.append(f"pid {node.agent_pid}")
    if node.engines:
        words.append(f"can run {', '.join(node.engines)}")
    if node.address:
        words.append(node.address)
    lines.append(labelled("agent", (" · ".join(words), Severity.NORMAL)))
    if node.drain is not None:
        reason = f" ({node.drain.reason})" if node.drain.reason else ""
        lines.append(
            labelled("drain", (f"by {node.drain.by}{reason}; grace {count(node.drain.grace_seconds)} s", Severity.WARN))
        )
    if node.labels:
        labels = " ".join(f"{name}={value}" for name, value in sorted(node.labels.items()))
        lines.append(labelled("labels", (labels, Severity.DIM)))
    for problem in node.problems:
        severity = Severity.CRIT if problem.severity == "crit" else Severity.WARN
        hint = f" → {problem.hint}" if problem.hint else ""
        lines.append(labelled("issue", (f"{severity.glyph} {problem.message}{hint}", severity)))
    return lines


def _host_line(node: NodeView) -> TextLine:
    host = node.host
    memory, memory_of = host.memory_used_bytes, host.memory_total_bytes
    disk, disk_of = host.disk_used_bytes, host.disk_total_bytes
    disk_ratio = disk / disk_of if disk is not None and disk_of else None
    receive, send = host.network_receive_bytes_per_second, host.network_send_bytes_per_second
    return labelled(
        "host",
        (f"CPU {percent(host.cpu_ratio)}%", Severity.NORMAL),
        (f" · load {UNKNOWN if host.load_1m is None else f'{host.load_1m:.1f}'}", Severity.NORMAL),
        (f" · RAM {gib(memory)}/{gib(memory_of)} GiB", Severity.NORMAL),
        (f" · disk {percent(disk_ratio)}%", fill_severity(disk_ratio)),
        (f" · net ↓{rate(receive, 'B/s')} ↑{rate(send, 'B/s')}", Severity.NORMAL),
    )


def panel_lines(fleet: FleetState, node: NodeView, width: int, height: int, now: float) -> list[TextLine]:
    """The whole detail panel: GPUs above, facts below, what does not fit left away from the bottom."""
    facts = detail_lines(fleet, node, now)
    room = max(1, height - min(len(facts), 3)) if height > 6 else height
    gpus = gpu_lines(fleet, node, width, room)
    lines = list(gpus)
    if len(lines) + len(facts) < height and gpus:
        lines.append(BLANK)
    return [*lines, *facts][:height]


def _memory_words(sample: GpuSample) -> list[tuple[str, Severity]]:
    """Who holds this GPU's memory, what nobody explains, and why it is slower than it could be."""
    found = [
        (
            f"pid {process.pid} {process.name or UNKNOWN} {gib(process.memory_used_bytes, digits=1)} GiB {_whose(process)}",
            Severity.DIM if process.replica else Severity.WARN,
        )
        for process in sample.processes
    ]
    if (sample.memory_unexplained_bytes or 0) > UNEXPLAINED_BYTES:
        found.append((f"{gib(sample.memory_unexplained_bytes, digits=1)} GiB are held by nobody named", Severity.WARN))
    if sample.throttle_reasons:
        found.append((f"slowed by {', '.join(sample.throttle_reasons)}", Severity.WARN))
    if sample.xid is not None and sample.fault is None:
        found.append((f"Xid {sample.xid} in this boot", Severity.WARN))
    return found


def _whose(process: GpuProcess) -> str:
    if process.replica:
        return short_replica(process.replica)
    if process.orphan:
        return "an orphan of ours"
    whose = f"of {process.user}" if process.user else "not ours"
    return f"{whose}, container {process.container}" if process.container else whose


def whole_lines(fleet: FleetState, node: NodeView, width: int, now: float) -> list[TextLine]:
    """A node on a whole screen: every GPU with a long history and its processes, then the facts."""
    lines: list[TextLine] = []
    for gpu in sorted(node.gpus, key=lambda gpu: gpu.index):
        lines.append(tuple(_gpu_line(fleet, node, gpu, width)))
        if gpu.sample is not None:
            lines.extend(labelled("", words) for words in _memory_words(gpu.sample))
    if lines:
        lines.append(BLANK)
    return [*lines, *detail_lines(fleet, node, now)]
