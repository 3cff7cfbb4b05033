"""Models and their replicas as a tree: enough replicas, and which one is odd."""

from dataclasses import replace
from typing import Final

from nebula_core.records.replica import Phase
from nebula_core.records.views import DeploymentView, ReplicaView
from nebula_tui.presenters.cells import (
    UNKNOWN,
    Cell,
    Column,
    Row,
    Severity,
    age,
    count,
    duration,
    milliseconds,
    percent,
    short_count,
)
from nebula_tui.presenters.engine_words import health_lines
from nebula_tui.presenters.fleet import FleetState, add, largest
from nebula_tui.presenters.history import shape
from nebula_tui.presenters.states import gpu_span, kv_severity, phase_cell, short_replica, waiting_severity
from nebula_tui.presenters.text import TextLine, labelled, plain

COLUMNS: Final = (
    Column("name", "MODEL / REPLICA", 22, min_width=18, flex=True),
    Column("engine", "ENGINE", 10, min_width=6, priority=5),
    Column("where", "NODE·GPU", 16, min_width=10, priority=3),
    Column("state", "STATE", 10, min_width=10),
    Column("kv", "KV%", 13, min_width=9, align="right"),
    Column("run", "RUN", 4, align="right"),
    Column("wait", "WAIT", 4, align="right"),
    Column("out", "TOK/S", 6, align="right"),
    Column("ttft", "TTFT95", 7, min_width=6, align="right", priority=1),
    Column("itl", "ITL95", 6, align="right", priority=4),
    Column("hit", "HIT%", 4, align="right", priority=4),
    Column("up", "UP", 6, align="right", priority=2),
)

#: Of the overview: a model at a glance.
BRIEF_COLUMNS: Final = (
    Column("name", "MODEL", 16, min_width=12, flex=True),
    Column("state", "READY", 10, min_width=5),
    Column("kv", "KV%", 12, min_width=10, align="right"),
    Column("out", "TOK/S", 6, min_width=5, align="right"),
    Column("ttft", "TTFT95", 7, min_width=6, align="right"),
    Column("itl", "ITL95", 6, align="right", priority=3),
    Column("wait", "WAIT", 4, align="right", priority=1),
    Column("trend", "TREND", 14, min_width=6, priority=4, sortable=False),
)

_STALE_AFTER: Final = 5.0


def deployment_row_id(name: str) -> str:
    return f"deployment/{name}"


def replica_row_id(name: str) -> str:
    return f"replica/{name}"


def rows(fleet: FleetState, now: float, *, wall: float, expand_up_to: int = 60) -> list[Row]:
    """The tree of screen 3; small clusters start unfolded."""
    expanded = len(fleet.replicas) <= expand_up_to
    found: list[Row] = []
    for name, deployment, replicas in _groups(fleet):
        found.append(
            Row(
                deployment_row_id(name),
                _deployment_cells(name, deployment, replicas),
                expandable=bool(replicas),
                expanded=expanded,
                stale=not fleet.is_live(now),
            )
        )
        found.extend(
            Row(
                replica_row_id(replica.id),
                _replica_cells(replica, wall),
                depth=1,
                stale=is_stale(fleet, replica, now),
            )
            for replica in replicas
        )
    return found


def brief_rows(fleet: FleetState, now: float, *, room: int) -> list[Row]:
    """The models panel of the overview: replicas too where there is room for all."""
    groups = _groups(fleet)
    expanded = len(groups) + len(fleet.replicas) <= room
    found: list[Row] = []
    for name, deployment, replicas in groups:
        wanted = deployment.replicas_wanted if deployment is not None else len(replicas)
        ready = _ready(deployment, replicas)
        kv, _, waiting, out = _load(replicas)
        ttft, itl = _latency(deployment, replicas)
        found.append(
            Row(
                deployment_row_id(name),
                (
                    Cell(_called(name, replicas), bold=True),
                    Cell(f"{ready}/{wanted}", _ready_severity(ready, wanted), order=ready),
                    Cell.gauge(kv, kv_severity(kv)),
                    Cell(short_count(out), order=out),
                    Cell(milliseconds(ttft), order=ttft),
                    Cell(milliseconds(itl), order=itl),
                    Cell(count(waiting), waiting_severity(waiting), order=waiting),
                    Cell(series=shape(fleet.series.read(f"deployment/{name}/out", 14))),
                ),
                expandable=bool(replicas),
                expanded=expanded,
                stale=not fleet.is_live(now),
            )
        )
        found.extend(_brief_replica(fleet, replica, now) for replica in replicas)
    return found


def _brief_replica(fleet: FleetState, replica: ReplicaView, now: float) -> Row:
    sample = replica.sample
    kv = sample.kv_cache_usage if sample else None
    waiting = sample.requests_waiting if sample else None
    out = sample.generation_tokens_per_second if sample else None
    state = phase_cell(replica)
    return Row(
        replica_row_id(replica.id),
        (
            Cell(f"{short_replica(replica.id, replica.deployment)} {replica.node}", Severity.DIM),
            state,
            Cell.gauge(kv, kv_severity(kv)),
            Cell(short_count(out), order=out),
            Cell(milliseconds(sample.ttft_p95_seconds if sample else None)),
            Cell(milliseconds(sample.itl_p95_seconds if sample else None)),
            Cell(count(waiting), waiting_severity(waiting)),
            Cell(series=shape(fleet.series.read(f"replica/{replica.id}/out", 14))),
        ),
        depth=1,
        stale=is_stale(fleet, replica, now),
    )


def is_stale(fleet: FleetState, replica: ReplicaView, now: float) -> bool:
    node = fleet.nodes.get(replica.node)
    old = fleet.replica_age(replica, now)
    gone = replica.phase is Phase.LOST or (node is not None and node.state == "lost")
    return gone or not fleet.is_live(now) or (old is not None and old > _STALE_AFTER)


def _groups(fleet: FleetState) -> list[tuple[str, DeploymentView | None, list[ReplicaView]]]:
    """Deployments by name, each with its replicas; engines that belong to none of them last."""
    by_name: dict[str, list[ReplicaView]] = {}
    for replica in fleet.replicas.values():
        by_name.setdefault(replica.deployment, []).append(replica)
    names = sorted(fleet.deployments) + sorted(set(by_name) - set(fleet.deployments))
    return [(name, fleet.deployments.get(name), sorted(by_name.get(name, []), key=_natural)) for name in names]


def _called(name: str, replicas: list[ReplicaView]) -> str:
    """An engine that nobody ordered is a group of its own, under the name it gives its model."""
    return replicas[0].model if replicas and not replicas[0].managed else name


def _natural(replica: ReplicaView) -> tuple[str, int, str]:
    head, _, tail = replica.id.rpartition("-r")
    return (head, int(tail), "") if tail.isdecimal() else (replica.id, 0, "")


def _deployment_cells(name: str, deployment: DeploymentView | None, replicas: list[ReplicaView]) -> tuple[Cell, ...]:
    wanted = deployment.replicas_wanted if deployment is not None else len(replicas)
    ready = _ready(deployment, replicas)
    kv, running, waiting, out = _load(replicas)
    ttft, itl = _latency(deployment, replicas)
    simulated = deployment.simulated if deployment is not None else any(replica.simulated for replica in replicas)
    engine = deployment.spec.engine if deployment is not None else replicas[0].engine
    source = deployment.spec.source if deployment is not None else "found, not managed"
    limit = deployment.spec.limits.waiting * max(1, ready) if deployment is not None else 8
    return (
        Cell(_called(name, replicas), bold=True),
        Cell(engine, Severity.INFO if simulated else Severity.NORMAL),
        Cell(source, Severity.DIM),
        Cell(f"{ready}/{wanted} ready", _ready_severity(ready, wanted), order=ready),
        Cell.gauge(kv, kv_severity(kv)),
        Cell(count(running), order=running),
        Cell(count(waiting), waiting_severity(waiting, limit), order=waiting),
        Cell(short_count(out), order=out),
        Cell(milliseconds(ttft), order=ttft),
        Cell(milliseconds(itl), order=itl),
        Cell(percent(_hit(replicas)), order=_hit(replicas)),
        Cell(f"gen {deployment.generation}" if deployment is not None else "", Severity.DIM),
    )


def _replica_cells(replica: ReplicaView, wall: float) -> tuple[Cell, ...]:
    sample = replica.sample
    kv = sample.kv_cache_usage if sample else None
    running = sample.requests_running if sample else None
    waiting = sample.requests_waiting if sample else None
    out = sample.generation_tokens_per_second if sample else None
    ttft = sample.ttft_p95_seconds if sample else None
    itl = sample.itl_p95_seconds if sample else None
    hit = sample.prefix_cache_hit_ratio if sample else None
    gpus = gpu_span(replica.gpu_indexes)
    where = f"{replica.node}·{gpus}" if gpus else replica.node
    up = wall - replica.started_at if replica.started_at is not None else None
    ready = replica.phase is Phase.READY
    return (
        Cell(short_replica(replica.id, replica.deployment)),
        Cell("" if replica.managed else "unmanaged", Severity.DIM),
        Cell(where),
        phase_cell(replica),
        Cell.gauge(kv, kv_severity(kv)),
        Cell(count(running), order=running),
        Cell(count(waiting), waiting_severity(waiting), order=waiting),
        Cell(short_count(out), order=out),
        Cell(milliseconds(ttft), order=ttft),
        Cell(milliseconds(itl), order=itl),
        Cell(percent(hit), order=hit),
        Cell(duration(up) if ready else duration(replica.phase_seconds), order=up),
    )


def _ready(deployment: DeploymentView | None, replicas: list[ReplicaView]) -> int:
    if deployment is not None:
        return deployment.replicas_ready
    return sum(replica.phase is Phase.READY for replica in replicas)


def _ready_severity(ready: int, wanted: int) -> Severity:
    if ready >= wanted:
        return Severity.OK if wanted else Severity.DIM
    return Severity.WARN if ready else Severity.CRIT


def _load(replicas: list[ReplicaView]) -> tuple[float | None, float | None, float | None, float | None]:
    """(fullest KV, running, waiting, tokens/s)."""
    kv: float | None = None
    running: float | None = None
    waiting: float | None = None
    out: float | None = None
    for replica in replicas:
        if replica.sample is not None and replica.phase is not Phase.LOST:
            kv = largest(kv, replica.sample.kv_cache_usage)
            running = add(running, replica.sample.requests_running)
            waiting = add(waiting, replica.sample.requests_waiting)
            out = add(out, replica.sample.generation_tokens_per_second)
    return kv, running, waiting, out


def _latency(deployment: DeploymentView | None, replicas: list[ReplicaView]) -> tuple[float | None, float | None]:
    """(TTFT p95, ITL p95): what the proxies measured, else the worst replica by its engine."""
    traffic = deployment.traffic if deployment is not None else None
    ttft = traffic.ttft_p95_seconds if traffic is not None else None
    itl = traffic.itl_p95_seconds if traffic is not None else None
    for replica in replicas:
        if replica.sample is not None:
            if traffic is None or traffic.ttft_p95_seconds is None:
                ttft = largest(ttft, replica.sample.ttft_p95_seconds)
            if traffic is None or traffic.itl_p95_seconds is None:
                itl = largest(itl, replica.sample.itl_p95_seconds)
    return ttft, itl


def _hit(replicas: list[ReplicaView]) -> float | None:
    """Share of prefix-cache queries that hit, over all replicas; None when nothing was asked."""
    hits: float | None = None
    queries: float | None = None
    for replica in replicas:
        if replica.sample is not None and replica.sample.prefix_cache_queries_total is not None:
            queries = add(queries, replica.sample.prefix_cache_queries_total)
            hits = add(hits, replica.sample.prefix_cache_hits_total)
    return hits / queries if hits is not None and queries else None


def replica_lines(fleet: FleetState, replica: ReplicaView, now: float) -> list[TextLine]:
    """One replica in words, for the panel under the tree."""
    kind = replica.engine + (f" {replica.engine_version}" if replica.engine_version else "")
    gpus = f" gpu{gpu_span(replica.gpu_indexes)}" if replica.gpu_indexes else " no GPU"
    state = phase_cell(replica)
    state_words = f"{state.text} for {duration(replica.phase_seconds)}"
    if replica.phase_reason:
        state_words += f": {replica.phase_reason}"
    address = f"{replica.endpoint.host}:{replica.endpoint.port}" if replica.endpoint is not None else UNKNOWN
    process = f"pid {replica.pid}" if replica.pid is not None else "no process"
    if replica.container_id:
        process = f"container {replica.container_id[:12]}"
    lines = [
        labelled("state", (state_words, state.severity), width=9),
        labelled("engine", (kind + (" · simulated" if replica.simulated else ""), Severity.NORMAL), width=9),
        labelled("where", (f"{replica.node}{gpus} · {address} · {process}", Severity.NORMAL), width=9),
    ]
    started = f"loaded in {duration(replica.load_seconds)}" if replica.load_seconds is not None else "not loaded yet"
    lines.append(
        labelled(
            "start",
            (f"{started} · restarts {replica.restarts} · generation {replica.generation}", Severity.NORMAL),
            width=9,
        )
    )
    sample_age = fleet.replica_age(replica, now)
    lines.append(
        labelled(
            "load",
            (f"in flight {replica.inflight} · figures {age(sample_age)} old", Severity.NORMAL),
            width=9,
        )
    )
    if replica.sample is not None:
        tokens = replica.sample.kv_cache_tokens
        preempted = replica.sample.preemptions_total
        lines.append(
            labelled(
                "cache",
                (
                    (
                        f"KV {percent(replica.sample.kv_cache_usage)}% of {short_count(tokens)} tokens"
                        f" · preempted {count(preempted)}"
                    ),
                    Severity.NORMAL,
                ),
                width=9,
            )
        )
    lines.extend(health_lines(replica))
    for proxy, why in sorted(replica.ejected.items()):
        lines.append(labelled("ejected", (f"by {proxy}: {why}", Severity.WARN), width=9))
    if replica.evidence is not None:
        lines.append(labelled("evidence", (f"{replica.node}:{replica.evidence}", Severity.WARN), width=9))
    if replica.first_failure_reason is not None and replica.first_failure_reason != replica.phase_reason:
        lines.append(labelled("at first", (replica.first_failure_reason, Severity.WARN), width=9))
    lines.extend(
        labelled("log" if not place else "", (text, Severity.WARN), width=9)
        for place, text in enumerate(replica.failure_log)
    )
    return lines


def deployment_lines(fleet: FleetState, deployment: DeploymentView) -> list[TextLine]:
    """One deployment in words, for the panel under the tree."""
    spec = deployment.spec
    ready = f"{deployment.replicas_ready}/{deployment.replicas_wanted} ready"
    severity = _ready_severity(deployment.replicas_ready, deployment.replicas_wanted)
    each = f"{spec.gpus} GPU each" if spec.gpus else "no GPU"
    lines = [
        labelled("state", (f"{ready} · {deployment.status}", severity), width=9),
        labelled("source", (f"{spec.source} · {spec.engine} · {spec.runtime} · {each}", Severity.NORMAL), width=9),
    ]
    if spec.args:
        words = " ".join(f"{name}={value}" for name, value in sorted(spec.args.items()))
        lines.append(labelled("args", (words, Severity.NORMAL), width=9))
    by = f" by {deployment.updated_by}" if deployment.updated_by else ""
    lines.append(labelled("version", (f"generation {deployment.generation}{by}", Severity.NORMAL), width=9))
    limits = spec.limits
    policy = (
        f"{spec.strategy or 'default'} · full at KV {percent(limits.kv_cache_usage)}%,"
        f" {limits.waiting} waiting, {limits.inflight} open"
    )
    lines.append(labelled("policy", (policy, Severity.NORMAL), width=9))
    if spec.autoscale is not None:
        lines.append(
            labelled("scale", (f"min {spec.autoscale.min} max {spec.autoscale.max}", Severity.NORMAL), width=9)
        )
    traffic = deployment.traffic
    if traffic is not None:
        words = (
            f"{_rate(traffic.requests_per_second)} req/s · shed {_rate(traffic.rejected_per_second)}"
            f" · failed {_rate(traffic.failed_per_second)} · {traffic.waiting} waiting"
        )
        lines.append(labelled("traffic", (words, Severity.NORMAL), width=9))
    lines.extend(
        labelled("missing" if not place else "", (f"● {reason}", Severity.WARN), width=9)
        for place, reason in enumerate(deployment.reasons)
    )
    if not fleet.replicas_of(deployment.name):
        lines.append(plain("no replica: press s to scale it", Severity.DIM))
    return lines


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"


def only_faults(fleet: FleetState, rows: list[Row]) -> list[Row]:
    """Replicas that are not well, and the deployments they or their absence belong to."""
    unwell = {
        replica.id: replica.deployment
        for replica in fleet.replicas.values()
        if phase_cell(replica).severity is not Severity.OK
    }
    short = {view.name for view in fleet.deployments.values() if view.replicas_ready < view.replicas_wanted}
    deployments = {deployment_row_id(name) for name in {*unwell.values(), *short}}
    replicas = {replica_row_id(name) for name in unwell}
    return [row for row in rows if row.id in deployments or row.id in replicas]


def with_cells(row: Row, places: tuple[int, ...]) -> Row:
    """A row with only some of its cells, for a smaller table."""
    return replace(row, cells=tuple(row.cells[place] for place in places if place < len(row.cells)))
