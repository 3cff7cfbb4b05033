"""Why a request went where it went: its times as a waterfall, each attempt with the candidates it was chosen from.

The same lines stand in the TUI's pane and, without colour, in the answer of `nebula why`.
"""

from collections.abc import Iterator
from typing import Final

from nebula_core.records.decision import AttemptRecord, CandidateRecord, DecisionRecord
from nebula_tui.presenters.cells import UNKNOWN, Severity, age, count, duration, percent, short_count
from nebula_tui.presenters.states import kv_severity, short_replica
from nebula_tui.presenters.text import BLANK, Span, TextLine, local_time, plain, spans_with

#: Below this width the less important columns are left out.
WIDE: Final = 100
_LABEL: Final = 20
_NUMBER: Final = 9

_KEPT: Final = {
    "sample": "one of the sample",
    "floor": "all are kept while it is quiet",
    "error": "errors are always kept",
    "rejected": "some of those turned away are kept",
    "retried": "retries are always kept",
    "resumed": "resumed streams are always kept",
    "slow": "slow ones are always kept",
    "person": "those of people's keys are always kept",
    "asked": "asked for while it is open",
}


def outcome_span(record: DecisionRecord) -> Span:
    """`ok 200`, `▲ broken 502`, `open`."""
    if record.status is None:
        return "○ open", Severity.INFO
    if record.status < 400:
        return f"{record.outcome} {record.status}", Severity.OK
    severity = Severity.CRIT if record.status >= 500 else Severity.WARN
    return f"{severity.glyph} {record.outcome} {record.status}", severity


def why_lines(record: DecisionRecord, width: int, utc_offset_seconds: float) -> list[TextLine]:
    """`width` is the room in cells; no line is longer, but for words of the engine."""
    lines = [*_head(record, utc_offset_seconds), BLANK, *_waterfall(record, width), BLANK, _tokens(record)]
    if record.detail is not None and record.status is not None and record.status >= 400:
        lines.append((("said      ", Severity.DIM), (record.detail, Severity.NORMAL)))
    if not record.attempts:
        lines += [BLANK, plain("no replica was considered: it was turned away before", Severity.DIM)]
    for number, attempt in enumerate(record.attempts, 1):
        lines.append(BLANK)
        lines.extend(_attempt(number, attempt, record.model, width))
    return lines


def _head(record: DecisionRecord, utc_offset_seconds: float) -> list[TextLine]:
    where = record.replica
    first = [
        (outcome_span(record),),
        plain(record.model or "no model", Severity.ACCENT),
        plain(short_replica(where) if where is not None else "no replica"),
        plain(duration(record.duration_seconds)),
        plain(local_time(record.at, utc_offset_seconds, digits=3)),
        plain(_KEPT.get(record.kept_because, record.kept_because), Severity.DIM),
    ]
    key = UNKNOWN if record.key_name is None else f"{record.key_name} ({record.key_id})"
    stream = "" if record.stream is None else ", streamed" if record.stream else ", in one piece"
    second = [
        plain(f"key {key}"),
        plain(f"{record.path}{stream}"),
        plain(f"in {_bytes(record.request_bytes)}, out {_bytes(record.response_bytes)}"),
    ]
    third = [plain(f"proxy {record.proxy}", Severity.DIM)]
    if record.trace_id is not None:
        third.append(plain(f"trace {record.trace_id}", Severity.DIM))
    return [spans_with(" · ", first), spans_with(" · ", second), spans_with(" · ", third)]


def _bytes(value: int | None) -> str:
    return UNKNOWN if value is None else f"{short_count(value)}B"


# ---------------------------------------------------------------------------------------------------------- waterfall


def _short(replica: str, model: str | None) -> str:
    """`r2` where the model is its deployment's, which is usual; else with its deployment."""
    return short_replica(replica, model)


def _spans(record: DecisionRecord) -> Iterator[tuple[str, float, float, Severity]]:
    """(label, from, to, severity) in seconds since the arrival."""
    end = record.duration_seconds or 0.0
    if record.wait_seconds is not None:
        yield "waited for room", 0.0, record.wait_seconds, Severity.WARN
    tries = [attempt for attempt in record.attempts if attempt.replica is not None]
    for place, attempt in enumerate(tries):
        following = tries[place + 1].at_seconds if place + 1 < len(tries) else end
        name = _short(attempt.replica or "", record.model)
        if attempt.trouble is not None:
            yield f"{name} ▲ {attempt.trouble}", attempt.at_seconds, following, Severity.CRIT
            continue
        if record.stream:
            first = record.ttft_seconds if record.ttft_seconds is not None else end
            if not attempt.resumed:
                yield f"{name} first token", attempt.at_seconds, max(first, attempt.at_seconds), Severity.INFO
            if record.ttft_seconds is not None:
                yield f"{name} tokens", max(first, attempt.at_seconds), end, Severity.OK
        else:
            yield f"{name} answer", attempt.at_seconds, end, Severity.OK


def _waterfall(record: DecisionRecord, width: int) -> list[TextLine]:
    whole = max(record.duration_seconds or 0.0, 1e-9)
    room = max(10, width - _LABEL - _NUMBER - 1)
    lines: list[TextLine] = []
    for label, start, end, severity in _spans(record):
        stop = max(start, end)
        left = min(room - 1, int(start / whole * room))
        long = max(1, min(room - left, round((stop - start) / whole * room)))
        bar = "█" * long
        lines.append(
            (
                (label[:_LABEL].ljust(_LABEL), Severity.NORMAL),
                (" " * left, Severity.DIM),
                (bar, severity),
                (" " * (room - left - long), Severity.DIM),
                (duration(stop - start).rjust(_NUMBER), Severity.NORMAL),
            )
        )
    return lines


def _tokens(record: DecisionRecord) -> TextLine:
    pace = None if not record.tpot_seconds else 1.0 / record.tpot_seconds
    parts = [
        plain(f"prompt {count(record.prompt_tokens)} tok"),
        plain(f"answer {count(record.completion_tokens)} tok"),
        plain(f"{UNKNOWN if pace is None else f'{pace:.0f}'} tok/s"),
        plain(f"TTFT {duration(record.ttft_seconds)}"),
        plain(f"waited {duration(record.wait_seconds)}"),
        plain(f"proxy's own {_fine(record.overhead_seconds)}"),
    ]
    return spans_with(" · ", parts)


def _fine(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{seconds * 1000:.1f}ms"


# ------------------------------------------------------------------------------------------------------------ attempts


def _attempt(number: int, attempt: AttemptRecord, model: str | None, width: int) -> Iterator[TextLine]:
    head: list[Span] = [(f"attempt {number}  ", Severity.ACCENT)]
    if attempt.replica is None:
        head.append(("no replica could be taken", Severity.WARN))
    else:
        head.append((_short(attempt.replica, model), Severity.NORMAL))
        if attempt.strategy is not None:
            head.append((f"  by {attempt.strategy}: {attempt.reason}", Severity.DIM))
    if attempt.resumed:
        head.append(("  went on with the stream", Severity.INFO))
    if attempt.guard is not None:
        head.append((f"  ● guard: {attempt.guard}", Severity.WARN))
    yield tuple(head)
    if attempt.trouble is not None:
        detail = f": {attempt.detail}" if attempt.detail else ""
        yield ((f"  ▲ {attempt.trouble}{detail}", Severity.CRIT),)
    if not attempt.candidates:
        return
    wide = width >= WIDE
    yield plain(_table_line(wide, "REPLICA", "STANDING", "SCORE", "OPEN", "ELSEW", "WAIT", "KV%", "FULL%", "PREFIX%", "AGE", "WHY NOT"), Severity.DIM)  # fmt: skip
    for row in attempt.candidates:
        yield _candidate(row, model, wide=wide)
    left_out = attempt.candidates_total - len(attempt.candidates)
    if left_out > 0:
        yield plain(f"  and {left_out} more, none of them better", Severity.DIM)


def _table_line(wide: bool, *cells: str) -> str:
    replica, standing, score, mine, elsewhere, waiting, usage, full, prefix, old, why = cells
    if wide:
        return (
            f"  {replica:<20.20} {standing:<10} {score:>9} {mine:>5} {elsewhere:>5} {waiting:>4} {usage:>4} {full:>5} "
            f"{prefix:>7} {old:>5}  {why}"
        )
    return f"  {replica:<14.14} {score:>8} {mine:>4} {waiting:>4} {usage:>4} {old:>5}  {why}"


def _score(value: float) -> str:
    """Scores of tokens and bytes are large, shares are small: four figures of either, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _candidate(row: CandidateRecord, model: str | None, *, wide: bool) -> TextLine:
    text = _table_line(
        wide,
        _short(row.replica, model),
        row.standing,
        UNKNOWN if row.score is None else _score(row.score),
        count(row.inflight),
        count(row.elsewhere),
        count(row.waiting),
        percent(row.kv_cache_usage),
        percent(row.saturation),
        percent(row.prefix_ratio),
        age(row.sample_age_seconds),
        row.lost_because or "",
    )
    if row.chosen:
        return ((f"▶{text[1:].rstrip()} chosen" if row.lost_because is None else text, Severity.ACCENT),)
    severity = kv_severity(row.kv_cache_usage)
    if row.standing in ("out", "struggling"):
        severity = Severity.WARN
    return ((text, severity),)
