"""Verbs that only look: status, nodes, models, replicas, describe."""

from typing import Annotated, Any

import typer

from nebula_tui.cli.errors import CommandError, Exit
from nebula_tui.cli.output import Field, Row, emit, gib, of, percent, say, seconds, whole, word
from nebula_tui.cli.session import Session, segment

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Print again whenever something changed.")]


def _node_state(row: Row) -> str:
    words = [row["state"]]
    if row.get("draining"):
        words.append("draining")
    elif row.get("cordoned"):
        words.append("cordoned")
    if row.get("simulated"):
        words.append("simulated")
    return ",".join(words)


def _mean(row: Row, figure: str) -> float | None:
    values = [value for gpu in row.get("gpus", ()) if (value := of(gpu, "sample", figure)) is not None]
    return sum(values) / len(values) if values else None


def _memory(row: Row) -> str:
    used = [value for gpu in row.get("gpus", ()) if (value := of(gpu, "sample", "memory_used_bytes")) is not None]
    total = [value for gpu in row.get("gpus", ()) if (value := gpu.get("memory_total_bytes")) is not None]
    return f"{gib(sum(used))}/{gib(sum(total))}" if used and total else "–"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


NODES = (
    Field("NODE", lambda row: row["id"]),
    Field("STATE", _node_state),
    Field("GPUS", lambda row: whole(len(row.get("gpus", ()))), right=True),
    Field("UTIL", lambda row: percent(_mean(row, "utilization_ratio")), right=True),
    Field("VRAM GiB", _memory, right=True),
    Field("REPLICAS", lambda row: whole(len(row.get("replicas", ()))), right=True),
    Field("AGE", lambda row: seconds(row.get("heartbeat_age_seconds")), right=True),
    Field("VERSION", lambda row: word(row, "version"), wide=True),
    Field("ADDRESS", lambda row: word(row, "address"), wide=True),
    Field("ENGINES", lambda row: ",".join(row.get("engines", ())) or "–", wide=True),
    Field("LABELS", lambda row: ",".join(f"{k}={v}" for k, v in row.get("labels", {}).items()) or "–", wide=True),
)
MODELS = (
    Field("MODEL", lambda row: row["name"]),
    Field("READY", lambda row: f"{row['replicas_ready']}/{row['replicas_wanted']}", right=True),
    Field("STATUS", lambda row: row["status"] + (" (simulated)" if row.get("simulated") else "")),
    Field("ENGINE", lambda row: of(row, "spec", "engine") or "vllm"),
    Field("REQ/S", lambda row: _rate(of(row, "traffic", "requests_per_second")), right=True),
    Field("TOK/S", lambda row: whole(of(row, "traffic", "generation_tokens_per_second")), right=True),
    Field("TTFT P95", lambda row: seconds(of(row, "traffic", "ttft_p95_seconds")), right=True),
    Field("GENERATION", lambda row: str(row["generation"]), right=True, wide=True),
    Field("SOURCE", lambda row: of(row, "spec", "source") or "–", wide=True),
    Field("CHANGED BY", lambda row: word(row, "updated_by"), wide=True),
)
REPLICAS = (
    Field("REPLICA", lambda row: row["id"]),
    Field("MODEL", lambda row: row["model"]),
    Field("NODE", lambda row: row["node"]),
    Field("GPU", lambda row: ",".join(str(index) for index in row.get("gpu_indexes", ())) or "–"),
    Field("PHASE", lambda row: row["phase"] + ("" if row.get("managed", True) else " (unmanaged)")),
    Field("RUN", lambda row: whole(of(row, "sample", "requests_running")), right=True),
    Field("WAIT", lambda row: whole(of(row, "sample", "requests_waiting")), right=True),
    Field("KV", lambda row: percent(of(row, "sample", "kv_cache_usage")), right=True),
    Field("TOK/S", lambda row: whole(of(row, "sample", "generation_tokens_per_second")), right=True),
    Field("INFLIGHT", lambda row: whole(row.get("inflight", 0)), right=True),
    Field("REASON", lambda row: word(row, "phase_reason")),
    Field("ENGINE", lambda row: row["engine"] + (" (simulated)" if row.get("simulated") else ""), wide=True),
    Field("PID", lambda row: str(row.get("pid") or "–"), right=True, wide=True),
    Field("RESTARTS", lambda row: whole(row.get("restarts", 0)), right=True, wide=True),
    Field("GENERATION", lambda row: str(row.get("generation", "–")), right=True, wide=True),
)


def register(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(nodes)
    app.command()(models)
    app.command()(replicas)
    app.command()(describe)


def status(ctx: typer.Context, watch: Watch = False) -> None:
    """The cluster at a glance: models, nodes, what is wrong."""
    session: Session = ctx.obj

    def show() -> None:
        with session.api() as api:
            value = {
                "cluster": api.get("/cluster"),
                "deployments": items(api, "/deployments"),
                "replicas": items(api, "/replicas"),
                "nodes": items(api, "/nodes"),
            }
        if session.for_people:
            _head(value["cluster"])
            emit(value, session.output, MODELS, value["deployments"])
            say("")
            emit(value, session.output, NODES, value["nodes"])
        else:
            emit(value, session.output)

    _repeat(session, show, watch=watch)


def nodes(ctx: typer.Context, watch: Watch = False) -> None:
    """Machines, with their GPUs."""
    _list(ctx.obj, "/nodes", NODES, watch=watch)


def models(ctx: typer.Context, watch: Watch = False) -> None:
    """Deployments, with their traffic."""
    _list(ctx.obj, "/deployments", MODELS, watch=watch)


def replicas(ctx: typer.Context, watch: Watch = False) -> None:
    """Running copies, where they are and how loaded."""
    _list(ctx.obj, "/replicas", REPLICAS, watch=watch)


KINDS = {"node": "nodes", "model": "deployments", "deployment": "deployments", "replica": "replicas"}


def describe(ctx: typer.Context, kind: str, name: str) -> None:
    """Everything known of one node, model or replica."""
    session: Session = ctx.obj
    room = KINDS.get(kind.removesuffix("s"))
    if room is None:
        raise CommandError(f"{kind!r} is not a kind", code=Exit.USAGE, hint="kinds: node, model, replica")
    with session.api() as api:
        value = api.get(f"/{room}/{segment(name)}")
    if not session.for_people:
        emit(value, session.output)
        return
    rows = [{"key": key, "value": text} for key, text in _flatten(value)]
    emit(value, session.output, (Field("FIELD", lambda r: r["key"]), Field("VALUE", lambda r: r["value"])), rows)


def items(api: Any, path: str) -> list[Any]:
    """Every page of a list."""
    found: list[Any] = []
    cursor = None
    while True:
        page = api.get(path, cursor=cursor)
        found.extend(page["items"])
        cursor = page.get("next")
        if cursor is None:
            return found


def _list(session: Session, path: str, fields: tuple[Field, ...], *, watch: bool) -> None:
    def show() -> None:
        with session.api() as api:
            emit(items(api, path), session.output, fields)

    _repeat(session, show, watch=watch)


def _repeat(session: Session, show: Any, *, watch: bool) -> None:
    show()
    if not watch:
        return
    with session.api() as api:
        for event, _ in api.events("/watch", interval_ms=2000):
            if event == "delta":
                say("")
                show()


def _head(cluster: Row) -> None:
    simulated = "  SIMULATED" if cluster.get("simulated") else ""
    leader = cluster.get("leader") or "none"
    say(f"nebula {cluster['version']}  leader {leader}  proxies {len(cluster.get('proxies', ()))}{simulated}")
    if not cluster.get("store_reachable", True):
        say(f"● the store does not answer; figures are {seconds(cluster.get('snapshot_age_seconds'))} old")
    if cluster.get("store_doubt"):
        say("▲ the store is in doubt; see what would be written back: nebula adopt --store --dry-run")
    if cluster.get("brake"):
        say(f"▲ the planner holds still: {cluster['brake']}")


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [line for key, part in value.items() for line in _flatten(part, f"{prefix}.{key}" if prefix else key)]
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        return [line for index, part in enumerate(value) for line in _flatten(part, f"{prefix}[{index}]")]
    if isinstance(value, list):
        return [(prefix, ", ".join(str(part) for part in value) or "–")]
    return [(prefix, "–" if value is None else str(value))]
