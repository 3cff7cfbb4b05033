"""Verbs about single requests: why one went where it went, ending one, and what is open right now."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from nebula_tui.cli.errors import CommandError, Exit
from nebula_tui.cli.output import Field, Output, Row, emit, of, say, seconds, whole, word
from nebula_tui.cli.session import Session, act, segment, show_plan

#: Between two looks of `top --watch`; proxies say once a second what they have open.
LOOK_SECONDS = 1.0


def _state(row: Row) -> str:
    stalled = of(row, "stalled")
    return str(row["state"]) if stalled is None else f"▲ stalled ({stalled})"


TOP = (
    Field("REQUEST", lambda row: row["id"]),
    Field("KEY", lambda row: word(row, "key_name")),
    Field("MODEL", lambda row: word(row, "model")),
    Field("REPLICA", lambda row: word(row, "replica")),
    Field("STATE", _state),
    Field("AGE", lambda row: seconds(row.get("age_seconds")), right=True),
    Field("WAITED", lambda row: seconds(row.get("wait_seconds")), right=True),
    Field("TTFT", lambda row: seconds(row.get("ttft_seconds")), right=True),
    Field("TOKENS", lambda row: whole(row.get("tokens")), right=True),
    Field("TOK/S", lambda row: whole(row.get("tokens_per_second")), right=True),
    Field("TRIES", lambda row: whole(row.get("attempts")), right=True),
    Field("RESUMED", lambda row: whole(row.get("resumes")), right=True, wide=True),
    Field("PATH", lambda row: word(row, "path"), wide=True),
    Field("CLIENT", lambda row: word(row, "client"), wide=True),
    Field("BYTES IN", lambda row: whole(row.get("request_bytes")), right=True, wide=True),
    Field("BYTES OUT", lambda row: whole(row.get("sent_bytes")), right=True, wide=True),
    Field("PROXY", lambda row: word(row, "proxy"), wide=True),
)
GROUPS = {"model": "model", "key": "key_name", "replica": "replica"}


def _grouped(by: str) -> tuple[Field, ...]:
    return (
        Field(by.upper(), lambda row: row["name"]),
        Field("OPEN", lambda row: whole(row["open"]), right=True),
        Field("WAITING", lambda row: whole(row["waiting"]), right=True),
        Field("PREFILL", lambda row: whole(row["prefill"]), right=True),
        Field("STREAMING", lambda row: whole(row["streaming"]), right=True),
        Field("RUNNING", lambda row: whole(row["running"]), right=True),
        Field("STALLED", lambda row: whole(row["stalled"]), right=True),
        Field("TOK/S", lambda row: whole(row["tokens_per_second"]), right=True),
        Field("OLDEST", lambda row: seconds(row["oldest_seconds"]), right=True),
    )


def register(app: typer.Typer) -> None:
    app.command()(top)
    app.command()(why)
    app.command()(cancel)


Request = Annotated[str, typer.Argument(help="As in the answer's x-request-id, the proxy's log, or `nebula top`.")]


def why(ctx: typer.Context, request: Request) -> None:
    """Why a request went where it went: candidates, scores, attempts, times."""
    session: Session = ctx.obj
    with session.api() as api:
        value = api.get(f"/requests/{segment(request)}")
    if not session.for_people:
        emit(value, session.output)
        return
    from nebula_core.records.decision import DecisionRecord
    from nebula_core.security.text import clean_text
    from nebula_tui.presenters.text import joined
    from nebula_tui.presenters.why import why_lines

    record = DecisionRecord.model_validate(value)
    lines = why_lines(record, _width(wide=session.output is Output.WIDE), time.localtime(record.at).tm_gmtoff)
    sys.stdout.write("".join(f"{clean_text(joined(line)).rstrip()}\n" for line in lines))


def cancel(
    ctx: typer.Context,
    request: Request,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be ended and stop there.")] = False,
) -> None:
    """End a request that is open: its client is told, its engine stops."""
    session: Session = ctx.obj
    path = f"/requests/{segment(request)}/cancel"
    answer = act(session, "POST", path, dry_run=dry_run, yes=yes, ask=lambda plan: plan["summary"].startswith("cancel"))
    if not session.for_people:
        emit(answer, session.output)
    elif answer.get("dry_run"):
        show_plan(answer)
    else:
        say(answer["summary"])


def top(
    ctx: typer.Context,
    by: Annotated[str, typer.Option(help="request, model, key or replica.")] = "request",
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    key: Annotated[str | None, typer.Option(help="Only this key, by name or id.")] = None,
    replica: Annotated[str | None, typer.Option(help="Only this replica.")] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Rows at most.")] = 30,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every second.")] = False,
) -> None:
    """What is open right now: single requests, the oldest first, or sums by model, key or replica."""
    session: Session = ctx.obj
    if by != "request" and by not in GROUPS:
        raise CommandError(f"{by!r} is not one of request, model, key, replica", code=Exit.USAGE, hint="--by model")
    if watch and session.output is Output.YAML:
        raise CommandError("-o yaml cannot follow", code=Exit.USAGE, hint="use -o json")
    with session.api() as api:
        while True:
            page = api.get("/requests", state="open", inflight=2000, model=model, key=key, replica=replica)
            if watch and sys.stdout.isatty() and session.for_people:
                sys.stdout.write("\x1b[H\x1b[2J")
            _show(session, page, by, number)
            if not watch:
                return
            time.sleep(LOOK_SECONDS)


def _show(session: Session, page: dict[str, Any], by: str, number: int) -> None:
    rows: list[Row] = page["items"]
    if by != "request":
        rows = summed(rows, GROUPS[by])
    if not session.for_people:
        emit({**page, "items": rows} if by == "request" else rows, session.output)
        return
    words = (
        f"in flight {page['inflight']:,}  waiting {page['waiting']:,}  prefill {page['prefill']:,}"
        f"  streaming {page['streaming']:,}  running {page['running']:,}  stalled {page['stalled']:,}"
    )
    say(words)
    emit(rows[:number], session.output, TOP if by == "request" else _grouped(by))
    if len(rows) > number:
        say(f"and {len(rows) - number} more; -n shows them")
    if page["shown"] < page["inflight"]:
        say(f"● {page['inflight'] - page['shown']:,} more are open and not listed one by one")
    if page["silent"]:
        say(f"● no answer from {', '.join(page['silent'])}")


def summed(rows: Iterable[Row], field: str) -> list[Row]:
    """Sums over all that have the same value in a field, the largest first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(word(row, field), []).append(row)
    found = [
        {
            "name": name,
            "open": len(members),
            **{phase: _count(members, phase) for phase in ("waiting", "prefill", "streaming", "running")},
            "stalled": sum(row.get("stalled") is not None for row in members),
            "tokens_per_second": _sum(members, lambda row: row.get("tokens_per_second")),
            "oldest_seconds": max(
                (age for row in members if (age := row.get("age_seconds")) is not None), default=None
            ),
        }
        for name, members in groups.items()
    ]
    return sorted(found, key=lambda row: (-row["open"], row["name"]))


def _count(rows: Iterable[Row], phase: str) -> int:
    return sum(row["state"] == phase for row in rows)


def _sum(rows: Iterable[Row], figure: Callable[[Row], float | None]) -> float | None:
    values = [value for row in rows if (value := figure(row)) is not None]
    return sum(values) if values else None


def _width(*, wide: bool) -> int:
    import shutil

    return shutil.get_terminal_size((120, 40)).columns if sys.stdout.isatty() and not wide else 120
