"""Verbs that follow something: logs, events, audit."""

import re
import sys
import time
from typing import Annotated, Any

import typer

from nebula_core.security.text import clean_text, escape_json
from nebula_tui.cli.errors import CommandError, Exit
from nebula_tui.cli.output import Field, Output, emit, say
from nebula_tui.cli.session import Session, segment

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")]

SEVERITY = {"info": "○", "warn": "●", "crit": "▲"}
EVENTS = (
    Field("TIME", lambda row: clock(row["at"])),
    Field("SEV", lambda row: SEVERITY.get(row.get("severity", "info"), "○")),
    Field("KIND", lambda row: row["kind"]),
    Field("ACTOR", lambda row: row["actor"]),
    Field("OBJECT", lambda row: row["object"]),
    Field("WHAT", lambda row: row["message"]),
    Field("RESULT", lambda row: row.get("result") or ""),
)
AUDIT = (
    Field("TIME", lambda row: clock(row["at"])),
    Field("STAGE", lambda row: row["stage"]),
    Field("ACTOR", lambda row: row["actor"]),
    Field("ROLE", lambda row: row["role"]),
    Field("CALL", lambda row: row["call"]),
    Field("OBJECT", lambda row: row["object"]),
    Field("RESULT", lambda row: row.get("result") or ""),
)


def register(app: typer.Typer) -> None:
    app.command()(logs)
    app.command()(events)
    app.command()(audit)


def logs(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="A replica.")],
    follow: Follow = False,
    tail: Annotated[int, typer.Option(help="Lines from before now.")] = 100,
    since: Annotated[str | None, typer.Option(help="Only lines younger than e.g. 30s, 10m, 2h.")] = None,
    grep: Annotated[str | None, typer.Option(help="Only lines that match this regular expression.")] = None,
) -> None:
    """The output of an engine."""
    session: Session = ctx.obj
    try:
        pattern = re.compile(grep) if grep else None
    except re.error as error:
        raise CommandError(f"--grep is not a regular expression: {error}", code=Exit.USAGE, hint="quote it") from error
    path = f"/replicas/{segment(target)}/logs"
    age = None if since is None else duration(since)
    with session.api() as api:
        if not follow:
            lines = api.get(path, tail=tail, since=age)["items"]
            chosen = [line for line in lines if pattern is None or pattern.search(line["text"])]
            if session.for_people:
                for line in chosen:
                    _print_line(line)
            else:
                emit(chosen, session.output)
            return
        for event, line in api.events(path, follow=1, tail=tail, since=age):
            if event == "line" and (pattern is None or pattern.search(line["text"])):
                _one(session, line, _print_line)


def events(
    ctx: typer.Context, follow: Follow = False, limit: Annotated[int, typer.Option(help="Latest.")] = 50
) -> None:
    """What happened, and who did it."""
    _feed(ctx.obj, "/events", EVENTS, follow=follow, limit=limit)


def audit(ctx: typer.Context, follow: Follow = False, limit: Annotated[int, typer.Option(help="Latest.")] = 50) -> None:
    """Every call that changed something: its intent and its result."""
    _feed(ctx.obj, "/audit", AUDIT, follow=follow, limit=limit)


def duration(text: str) -> int:
    """Seconds of `30s`, `10m`, `2h`, `1d` or a bare number. Raises CommandError."""
    match = re.fullmatch(r"(\d+)([smhd]?)", text.strip())
    if match is None:
        raise CommandError(f"{text!r} is not a time span", code=Exit.USAGE, hint="write 30s, 10m, 2h or 1d")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _feed(session: Session, path: str, fields: tuple[Field, ...], *, follow: bool, limit: int) -> None:
    with session.api() as api:
        found = api.get(path, limit=limit)["items"]
        if session.for_people or not follow:
            emit(found, session.output, fields)
        if follow:
            for event, row in api.events(path, follow=1):
                if event in ("event", "audit"):
                    _one(session, row, lambda row: _print_row(row, fields))


def _one(session: Session, value: Any, show: Any) -> None:
    """One followed item: a line for people, one JSON document per line for scripts."""
    if session.for_people:
        show(value)
    elif session.output is Output.YAML:
        raise CommandError("-o yaml cannot follow", code=Exit.USAGE, hint="use -o json")
    else:
        import json

        sys.stdout.write(escape_json(json.dumps(value, ensure_ascii=False)) + "\n")
        sys.stdout.flush()


def _print_row(row: Any, fields: tuple[Field, ...]) -> None:
    sys.stdout.write("  ".join(clean_text(field.text(row)) for field in fields) + "\n")
    sys.stdout.flush()


def _print_line(line: Any) -> None:
    if gap := line.get("gap"):
        say(f"┄┄ {gap} lines left out ┄┄")
    sys.stdout.write(clean_text(line["text"]) + "\n")
    sys.stdout.flush()
