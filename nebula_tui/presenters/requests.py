"""Single requests as rows: who waits, and for what; and sums of them by model or key."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

from nebula_core.records.views import RequestsPage, RequestView
from nebula_tui.presenters.cells import UNKNOWN, Cell, Column, Row, Severity, age, count, duration, short_count
from nebula_tui.presenters.fleet import FleetState, add
from nebula_tui.presenters.states import short_replica
from nebula_tui.presenters.text import TextLine, plain, spans_with

COLUMNS: Final = (
    Column("request", "REQUEST", 14, min_width=9, flex=True),
    Column("key", "KEY", 10, min_width=6, priority=3),
    Column("model", "MODEL", 15, min_width=11, priority=1),
    Column("replica", "REPLICA", 12, min_width=7),
    Column("state", "STATE", 13, min_width=11),
    Column("age", "AGE", 6, align="right"),
    Column("wait", "WAITED", 6, align="right", priority=4),
    Column("ttft", "TTFT", 6, align="right", priority=2),
    Column("in", "IN B", 5, align="right", priority=6),
    Column("out", "OUT", 6, align="right", flash=True),
    Column("rate", "tok/s", 5, align="right", priority=1),
    Column("tries", "TRY", 3, align="right", priority=5),
    Column("resumed", "RES", 3, align="right", priority=7),
)

GROUP_COLUMNS: Final = (
    Column("name", "NAME", 24, min_width=10, flex=True),
    Column("open", "OPEN", 6, align="right", flash=True),
    Column("waiting", "WAITING", 7, align="right"),
    Column("prefill", "PREFILL", 7, align="right"),
    Column("streaming", "STREAMING", 9, align="right", priority=1),
    Column("running", "RUNNING", 7, align="right", priority=2),
    Column("stalled", "STALLED", 7, align="right"),
    Column("rate", "tok/s", 6, align="right"),
    Column("oldest", "OLDEST", 6, align="right"),
)

#: A request id in a line of a log: ours, or one that a client chose and an engine wrote behind its own prefix.
_REQUEST_ID: Final = re.compile(
    r"(?:request_id[\"'=: ]+|(?:chatcmpl|cmpl|embd|resp)-)([A-Za-z0-9._-]{4,64})|\b(req-[0-9a-f]{10}-[0-9a-f]+)\b"
)

_MADE: Final = re.compile(r"req-([0-9a-f]{4})[0-9a-f]{6}-([0-9a-f]+)")


def request_in(text: str) -> str | None:
    """The request a line of a log speaks of, None when it names none."""
    found = _REQUEST_ID.search(text)
    if found is None:
        return None
    name = found[1] or found[2]
    # vLLM puts the number of the choice behind the id.
    ours = re.match(r"req-[0-9a-f]{10}-[0-9a-f]+", name)
    return ours[0] if ours is not None else name


def short_request(name: str) -> str:
    """`4bf9-9f6e` for an id that a proxy made (its process, and the number there); others as they are."""
    made = _MADE.fullmatch(name)
    return name if made is None else f"{made[1]}-{made[2]}"


def state_cell(view: RequestView) -> Cell:
    if view.stalled == "engine":
        return Cell("▲ stalled", Severity.CRIT)
    if view.stalled == "client":
        return Cell("● slow cl.", Severity.WARN)
    if view.state == "waiting":
        return Cell("○ waiting", Severity.INFO)
    if view.state != "ended":
        return Cell(view.state, Severity.NORMAL if view.state == "prefill" else Severity.OK)
    if view.status is None or view.status < 400 or view.outcome == "client_gone":
        return Cell(view.outcome or "ended", Severity.DIM)
    severity = Severity.CRIT if view.status >= 500 else Severity.WARN
    return Cell(f"{severity.glyph} {view.outcome or view.status}", severity)


def is_faulty(view: RequestView) -> bool:
    """Stalled, failed, retried, or waiting."""
    failed = view.state == "ended" and view.status is not None and view.status >= 400 and view.outcome != "client_gone"
    return view.stalled is not None or view.state == "waiting" or view.attempts > 1 or view.resumes > 0 or failed


def request_rows(views: Iterable[RequestView], *, stale: bool) -> list[tuple[Row, RequestView]]:
    """In the order given. Ids of rows are ids of requests; of two with the same id the second gets a mark."""
    seen: Counter[str] = Counter()
    found = []
    for view in views:
        seen[view.id] += 1
        row_id = view.id if seen[view.id] == 1 else f"{view.id}#{seen[view.id]}"
        dim = Severity.DIM if view.state == "ended" else Severity.NORMAL
        slow = view.wait_seconds is not None and view.wait_seconds > 1.0
        found.append(
            (
                Row(
                    row_id,
                    (
                        Cell(short_request(view.id), dim, order=view.id),
                        Cell(view.key_name or UNKNOWN, dim),
                        Cell(view.model or UNKNOWN, dim),
                        Cell(UNKNOWN if view.replica is None else short_replica(view.replica, view.model), dim),
                        state_cell(view),
                        Cell(duration(view.age_seconds), dim, order=view.age_seconds),
                        Cell(duration(view.wait_seconds), Severity.WARN if slow else dim, order=view.wait_seconds),
                        Cell(duration(view.ttft_seconds), dim, order=view.ttft_seconds),
                        Cell(short_count(view.request_bytes), Severity.DIM, order=view.request_bytes),
                        Cell(count(view.tokens), dim, order=view.tokens),
                        Cell(count(view.tokens_per_second), dim, order=view.tokens_per_second),
                        Cell(count(view.attempts), Severity.WARN if view.attempts > 1 else dim, order=view.attempts),
                        Cell(count(view.resumes), Severity.WARN if view.resumes else dim, order=view.resumes),
                    ),
                    stale=stale,
                ),
                view,
            )
        )
    return found


def group_rows(views: Iterable[RequestView], by: str, *, stale: bool) -> list[Row]:
    """Open requests summed by `model` or `key`, the largest group first."""
    groups: dict[str, list[RequestView]] = {}
    for view in views:
        if view.state != "ended":
            name = (view.model if by == "model" else view.key_name) or UNKNOWN
            groups.setdefault(name, []).append(view)
    rows = []
    for name, members in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        phases = Counter(view.state for view in members)
        stalled = sum(view.stalled is not None for view in members)
        pace: float | None = None
        for view in members:
            pace = add(pace, view.tokens_per_second)
        oldest = max((view.age_seconds for view in members if view.age_seconds is not None), default=None)
        rows.append(
            Row(
                name,
                (
                    Cell(name),
                    Cell(count(len(members)), order=len(members)),
                    Cell(count(phases["waiting"]), order=phases["waiting"]),
                    Cell(count(phases["prefill"]), order=phases["prefill"]),
                    Cell(count(phases["streaming"]), order=phases["streaming"]),
                    Cell(count(phases["running"]), order=phases["running"]),
                    Cell(
                        f"▲ {stalled}" if stalled else "0", Severity.CRIT if stalled else Severity.NORMAL, order=stalled
                    ),
                    Cell(short_count(pace), order=pace),
                    Cell(age(oldest), order=oldest),
                ),
                stale=stale,
            )
        )
    return rows


def page_line(fleet: FleetState, page: RequestsPage | None) -> TextLine:
    """`in flight 1,214 ▏waiting 88 ▏prefill 102 ▏streaming 1,024 ▏stalled>2s 3 ▲ ▏412 req/s ▏shed 0.4/s`."""
    parts: list[TextLine] = []
    if page is None:
        parts.append(plain(" in flight –"))
    else:
        parts.append(plain(f" in flight {page.inflight:,}"))
        parts.append(plain(f"waiting {page.waiting:,}", Severity.WARN if page.waiting else Severity.NORMAL))
        if page.stalled:
            parts.append(plain(f"stalled>2s {page.stalled:,} ▲", Severity.CRIT))
        parts.append(plain(f"prefill {page.prefill:,}"))
        parts.append(plain(f"streaming {page.streaming:,}"))
        if page.running:
            parts.append(plain(f"running {page.running:,}"))
    requests: float | None = None
    shed: float | None = None
    for deployment in fleet.deployments.values():
        if deployment.traffic is not None:
            requests = add(requests, deployment.traffic.requests_per_second)
            shed = add(shed, deployment.traffic.rejected_per_second)
    parts.append(plain(f"{UNKNOWN if requests is None else f'{requests:.1f}'} req/s"))
    parts.append(plain(f"shed {UNKNOWN if shed is None else f'{shed:.1f}'}/s"))
    return spans_with(" ▏", parts)


def shown_note(page: RequestsPage) -> TextLine | None:
    """What is not in the list, None when all is."""
    if page.silent:
        names = ", ".join(page.silent[:3]) + (" …" if len(page.silent) > 3 else "")
        return plain(f" ● no answer from {names}: what they have open is not shown", Severity.WARN)
    hidden = page.inflight - page.shown
    if hidden > 0:
        return plain(f" the oldest {page.shown:,} are listed; {hidden:,} more are open", Severity.DIM)
    return None


def detail_lines(view: RequestView, width: int) -> list[TextLine]:
    """The request under the cursor: who, where, and where its time went so far."""
    cell = state_cell(view)
    head = spans_with(
        " · ",
        [
            plain(view.id, Severity.ACCENT),
            plain(cell.text, cell.severity),
            plain(f"key {view.key_name or UNKNOWN}"),
            plain(f"{view.model or UNKNOWN} on {UNKNOWN if view.replica is None else short_replica(view.replica)}"),
            plain(view.path, Severity.DIM),
        ],
    )
    lines = [head]
    whole = view.age_seconds or 0.0
    waited = view.wait_seconds or 0.0
    ttft = view.ttft_seconds
    spans: list[tuple[str, float, float, Severity]] = []
    if view.wait_seconds is not None:
        spans.append(("waited", 0.0, waited, Severity.WARN))
    if ttft is not None:
        spans.append(("first token", waited, ttft, Severity.INFO))
        spans.append(("tokens", ttft, whole, Severity.OK))
    elif view.state != "waiting":
        spans.append(("prefill" if view.stream else "answer", waited, whole, Severity.INFO))
    if view.stalled is not None and view.silent_seconds is not None:
        spans.append(("stalled", max(0.0, whole - view.silent_seconds), whole, Severity.CRIT))
    label = 14
    room = max(10, width - label - 10)
    for name, start, stop, severity in spans:
        left = min(room - 1, int(start / whole * room)) if whole > 0 else 0
        long = max(1, min(room - left, round((max(start, stop) - start) / whole * room))) if whole > 0 else 1
        lines.append(
            (
                (name.ljust(label), Severity.DIM),
                (" " * left, Severity.DIM),
                ("█" * long, severity),
                (" " * (room - left - long), Severity.DIM),
                (duration(max(start, stop) - start).rjust(9), Severity.NORMAL),
            )
        )
    facts: list[TextLine] = []
    if view.stalled is not None:
        who = "the engine says nothing" if view.stalled == "engine" else "the client does not read"
        facts.append(plain(f"▲ {who}", Severity.CRIT if view.stalled == "engine" else Severity.WARN))
    facts += [
        plain(f"out {count(view.tokens)}", Severity.NORMAL),
        plain(f"{count(view.tokens_per_second)} tok/s"),
        plain(f"in {short_count(view.request_bytes)}B out {short_count(view.sent_bytes)}B"),
        plain(f"tries {view.attempts}", Severity.WARN if view.attempts > 1 else Severity.NORMAL),
        plain(f"proxy {view.proxy}", Severity.DIM),
    ]
    if view.client is not None:
        facts.append(plain(f"from {view.client}", Severity.DIM))
    lines.append(spans_with(" · ", facts))
    return lines
