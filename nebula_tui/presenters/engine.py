"""One engine: why is it slow. Its own figures over ten minutes; and what is open on every replica right now."""

from typing import Final

from nebula_core.records.replica import Phase
from nebula_core.records.views import ReplicaView
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
from nebula_tui.presenters.fleet import FleetState
from nebula_tui.presenters.history import shape
from nebula_tui.presenters.overview import MeterLine
from nebula_tui.presenters.states import (
    gpu_span,
    kv_severity,
    phase_cell,
    short_replica,
    temperature_severity,
    waiting_severity,
)
from nebula_tui.presenters.text import Span, TextLine

INFLIGHT_COLUMNS: Final = (
    Column("replica", "REPLICA", 18, min_width=12, flex=True),
    Column("model", "MODEL", 14, min_width=8, priority=3),
    Column("node", "NODE", 14, min_width=8, priority=2),
    Column("state", "STATE", 10),
    Column("open", "IN FLIGHT", 9, align="right", flash=True),
    Column("run", "RUNNING", 7, align="right"),
    Column("wait", "WAITING", 7, align="right"),
    Column("limit", "LIMIT", 5, align="right", priority=3),
    Column("ttft", "TTFT95", 7, align="right", priority=1),
    Column("trend", "RUNNING 10 MIN", 20, min_width=8, priority=4, sortable=False),
)

PROXY_COLUMNS: Final = (
    Column("proxy", "PROXY", 24, min_width=12, flex=True),
    Column("pid", "PID", 8, align="right", priority=2),
    Column("version", "VERSION", 10, priority=3),
    Column("open", "IN FLIGHT", 9, align="right", flash=True),
    Column("connections", "CONNECTIONS", 11, align="right"),
    Column("state", "STATE", 10),
    Column("age", "AGE", 5, align="right"),
)


def headline(replica: ReplicaView, wall: float) -> TextLine:
    """`models › demo › r2   node-102 gpu0-7 · vllm v0.25.0 · up 3d04h · :10814`."""
    spot = f"{replica.node} gpu{gpu_span(replica.gpu_indexes)}" if replica.gpu_indexes else f"{replica.node} CPU"
    kind = replica.engine + (f" {replica.engine_version}" if replica.engine_version else "")
    up = f"up {duration(wall - replica.started_at)}" if replica.started_at is not None else "not started"
    port = f":{replica.endpoint.port}" if replica.endpoint is not None else "no address"
    state = phase_cell(replica)
    spans: list[Span] = [
        (" models › ", Severity.DIM),
        (f"{replica.deployment} › {short_replica(replica.id, replica.deployment)}", Severity.ACCENT),
        ("   ", Severity.DIM),
        (state.text, state.severity),
        (f" · {spot} · {kind} · {up} · {port}", Severity.NORMAL),
    ]
    if replica.simulated:
        spans.append((" · simulated", Severity.INFO))
    return tuple(spans)


def kv_note(replica: ReplicaView) -> tuple[str, Severity]:
    usage = replica.sample.kv_cache_usage if replica.sample is not None else None
    return (UNKNOWN if usage is None else f"{percent(usage)}%"), kv_severity(usage)


def kv_caption(replica: ReplicaView) -> str:
    sample = replica.sample
    tokens = sample.kv_cache_tokens if sample is not None else None
    hit = sample.prefix_cache_hit_ratio if sample is not None else None
    preempted = sample.preemptions_total if sample is not None else None
    return f"{short_count(tokens)} tok · hit {percent(hit)}% · preempted {count(preempted)}"


def scheduler_note(replica: ReplicaView) -> tuple[str, Severity]:
    sample = replica.sample
    running = sample.requests_running if sample is not None else None
    waiting = sample.requests_waiting if sample is not None else None
    return f"run {count(running)}  wait {count(waiting)}", waiting_severity(waiting)


def tokens_note(replica: ReplicaView) -> str:
    sample = replica.sample
    prompts = sample.prompt_tokens_per_second if sample is not None else None
    out = sample.generation_tokens_per_second if sample is not None else None
    return f"in {short_count(prompts)} · out {short_count(out)}/s"


def meters(fleet: FleetState, replica: ReplicaView) -> list[MeterLine]:
    """Latencies with their history, and the GPUs under it."""
    sample = replica.sample
    name = f"replica/{replica.id}"
    lines = [
        MeterLine(
            "ttft95",
            "TTFT p95",
            None,
            milliseconds(sample.ttft_p95_seconds if sample else None),
            series=shape(fleet.series.read(f"{name}/ttft95", 240)),
        ),
        MeterLine(
            "itl95",
            "ITL  p95",
            None,
            milliseconds(sample.itl_p95_seconds if sample else None),
            series=shape(fleet.series.read(f"{name}/itl95", 240)),
        ),
        MeterLine(
            "hit",
            "prefix hit",
            None,
            f"{percent(sample.prefix_cache_hit_ratio if sample else None)}%",
            series=shape(fleet.series.read(f"{name}/hit", 240)),
        ),
    ]
    node = fleet.nodes.get(replica.node)
    for gpu in node.gpus if node is not None else ():
        if gpu.id in replica.gpus:
            util = gpu.sample.utilization_ratio if gpu.sample is not None else None
            celsius = gpu.sample.temperature_celsius if gpu.sample is not None else None
            lines.append(
                MeterLine(
                    f"gpu{gpu.index}",
                    f"gpu{gpu.index}",
                    util,
                    f"{percent(util)}% {count(celsius)}°",
                    temperature_severity(celsius),
                )
            )
    return lines


def inflight_rows(fleet: FleetState, now: float) -> list[Row]:
    """What is open on every replica: by the proxies (in flight) and by the engine itself (running, waiting)."""
    found = []
    for replica in sorted(fleet.replicas.values(), key=lambda replica: replica.id):
        if replica.phase in (Phase.STOPPED, Phase.FAILED) and not replica.inflight:
            continue
        sample = replica.sample
        deployment = fleet.deployments.get(replica.deployment)
        limit = deployment.spec.limits.inflight if deployment is not None else None
        running = sample.requests_running if sample else None
        waiting = sample.requests_waiting if sample else None
        ttft = sample.ttft_p95_seconds if sample else None
        found.append(
            Row(
                replica.id,
                (
                    Cell(short_replica(replica.id)),
                    Cell(replica.model),
                    Cell(replica.node),
                    phase_cell(replica),
                    Cell(count(replica.inflight), order=replica.inflight),
                    Cell(count(running), order=running),
                    Cell(count(waiting), waiting_severity(waiting), order=waiting),
                    Cell(count(limit), Severity.DIM, order=limit),
                    Cell(milliseconds(ttft), order=ttft),
                    Cell(series=shape(fleet.series.downsampled(f"replica/{replica.id}/running", 20))),
                ),
                stale=not fleet.is_live(now),
            )
        )
    return found


def proxy_rows(fleet: FleetState, now: float) -> list[Row]:
    cluster = fleet.cluster
    behind = (fleet.link_age(now) or 0.0) if not fleet.is_live(now) else 0.0
    return [
        Row(
            proxy.id,
            (
                Cell(proxy.id),
                Cell(str(proxy.pid)),
                Cell(proxy.version),
                Cell(count(proxy.inflight), order=proxy.inflight),
                Cell(count(proxy.connections), order=proxy.connections),
                Cell("‖ draining", Severity.WARN) if proxy.draining else Cell("serving", Severity.OK),
                Cell(age(proxy.heartbeat_age_seconds + behind), Severity.DIM),
            ),
            stale=not fleet.is_live(now),
        )
        for proxy in (cluster.proxies if cluster is not None else ())
    ]
