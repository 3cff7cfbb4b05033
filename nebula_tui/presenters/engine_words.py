"""What is made of one engine, in words: lives, is ready, moves; and whether its figures have the names they should have."""

from nebula_core.records.engine_health import EngineHealth, MetricsSchema
from nebula_core.records.views import ReplicaView
from nebula_tui.presenters.cells import Severity, count, duration, percent
from nebula_tui.presenters.text import Span, TextLine, labelled

_WIDTH = 9


def health_lines(replica: ReplicaView) -> list[TextLine]:
    """`health  lives · ready · moving · canary passed 40s ago`, and a line for what is amiss with its figures."""
    lines: list[TextLine] = []
    if replica.health is not None:
        lines.append(labelled("health", *_health(replica.health), width=_WIDTH))
    if replica.metrics_schema is not None:
        lines.extend(_schema(replica.metrics_schema))
    sample = replica.sample
    if sample is not None and sample.slots_total:
        busy = count(sample.requests_running)
        lines.append(labelled("slots", (f"{busy} of {sample.slots_total} busy", Severity.NORMAL), width=_WIDTH))
    if sample is not None and sample.engine_ranks:
        ranks = f"{sample.engine_ranks} · KV mean {percent(sample.kv_cache_usage_mean)}%, fullest "
        ranks += f"{percent(sample.kv_cache_usage)}%"
        lines.append(labelled("ranks", (ranks, Severity.NORMAL), width=_WIDTH))
    return lines


def _health(health: EngineHealth) -> list[Span]:
    spans: list[Span] = []
    alive = {None: ("no process", Severity.DIM), True: ("lives", Severity.OK), False: ("dead", Severity.CRIT)}
    spans.append(alive[health.alive])
    if health.alive:
        spans.append(
            (" · ready" if health.ready else " · not ready yet", Severity.OK if health.ready else Severity.WARN)
        )
        if health.answers is False:
            spans.append((" · /health says no", Severity.WARN))
        if health.progress == "still":
            spans.append((f" · requests run and nothing moves for {duration(health.still_seconds)}", Severity.CRIT))
        elif health.progress != "unknown":
            spans.append((f" · {health.progress}", Severity.NORMAL))
        if health.canary is not None:
            ago = f" {duration(health.canary_age_seconds)} ago" if health.canary_age_seconds is not None else ""
            bad = health.canary == "failed"
            spans.append((f" · canary {health.canary}{ago}", Severity.CRIT if bad else Severity.NORMAL))
    return spans


def _schema(schema: MetricsSchema) -> list[TextLine]:
    head = f"{schema.found} of {schema.expected} names"
    if schema.missing:
        head += f" · missing {', '.join(schema.missing)}"
    lines = [labelled("metrics", (head, Severity.WARN if schema.missing else Severity.NORMAL), width=_WIDTH)]
    if schema.off:
        lines.append(labelled("", (f"off because of it: {'; '.join(schema.off)}", Severity.WARN), width=_WIDTH))
    for expected, found in schema.renamed:
        lines.append(labelled("", (f"{expected} is called {found} here", Severity.NORMAL), width=_WIDTH))
    for missing, alike in schema.resembling:
        lines.append(labelled("", (f"{missing} may be called {alike} now", Severity.NORMAL), width=_WIDTH))
    return lines
