"""Verbs that change something: the server's plan first, then a question where something stops, then the call."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from nebula_tui.adapters.api import Api, ApiError
from nebula_tui.cli.errors import CommandError, Exit
from nebula_tui.cli.output import emit, say
from nebula_tui.cli.session import Session, act, segment, show_plan, stops_something

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop there.")]


def register(app: typer.Typer) -> None:
    for verb in (scale, drain, cordon, uncordon, restart, rollback, undo, delete):
        app.command()(verb)
    app.command(name="apply")(apply_file)
    app.command(name="plan")(plan_file)


def scale(ctx: typer.Context, name: str, replicas: int, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Set how many replicas of a model should run."""
    if replicas < 0:
        raise CommandError("replicas cannot be below 0", code=Exit.USAGE, hint="nebula scale NAME N")
    path = f"/deployments/{segment(name)}/scale"
    answer = act(ctx.obj, "POST", path, body={"replicas": replicas}, dry_run=dry_run, yes=yes, ask=stops_something)
    _report(ctx.obj, answer)


def drain(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="A node or a replica.")],
    grace: Annotated[float | None, typer.Option(help="Seconds until streams still open are cut.")] = None,
    reason: Annotated[str | None, typer.Option(help="Shown to other operators.")] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Move everything off a node, or one replica off its place: replacement first, no stream cut."""
    session: Session = ctx.obj
    path = f"/{_room(session, target)}/{segment(target)}/drain"
    body = {key: value for key, value in (("grace_seconds", grace), ("reason", reason)) if value is not None}
    _report(session, act(session, "POST", path, body=body, dry_run=dry_run, yes=yes, ask=lambda _: True))


def cordon(ctx: typer.Context, node: str, dry_run: DryRun = False) -> None:
    """Place nothing new on a node."""
    _node(ctx.obj, node, "cordon", dry_run=dry_run)


def uncordon(ctx: typer.Context, node: str, dry_run: DryRun = False) -> None:
    """Open a node again; also ends its drain."""
    _node(ctx.obj, node, "uncordon", dry_run=dry_run)


def restart(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="A model (one replica after the other) or a replica.")],
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Start engines anew, gracefully."""
    session: Session = ctx.obj
    with session.api() as api:
        room = "deployments" if _exists(api, f"/deployments/{segment(target)}") else "replicas"
    path = f"/{room}/{segment(target)}/restart"
    _report(session, act(session, "POST", path, dry_run=dry_run, yes=yes, ask=lambda _: True))


def rollback(ctx: typer.Context, name: str, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Go back to the spec before the last change of it."""
    path = f"/deployments/{segment(name)}/rollback"
    _report(ctx.obj, act(ctx.obj, "POST", path, dry_run=dry_run, yes=yes, ask=stops_something))


def undo(ctx: typer.Context, name: str, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Take the last change of a model back."""
    path = f"/deployments/{segment(name)}/undo"
    _report(ctx.obj, act(ctx.obj, "POST", path, dry_run=dry_run, yes=yes, ask=stops_something))


def delete(ctx: typer.Context, name: str, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Remove a deployment and stop its replicas."""
    path = f"/deployments/{segment(name)}"
    _report(ctx.obj, act(ctx.obj, "DELETE", path, dry_run=dry_run, yes=yes, ask=lambda _: True))


File = Annotated[Path, typer.Option("--file", "-f", help="A deployment file (TOML).")]


def apply_file(ctx: typer.Context, file: File, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Make deployments as a file says."""
    _apply(ctx.obj, file, yes=yes, dry_run=dry_run)


def plan_file(ctx: typer.Context, file: File) -> None:
    """Show what `apply` would do."""
    _apply(ctx.obj, file, yes=False, dry_run=True)


def read_deployments(path: Path) -> dict[str, dict[str, Any]]:
    """The `[deployments.NAME]` tables of a file. Raises CommandError naming what is wrong with it."""
    try:
        with path.open("rb") as handle:
            content = tomllib.load(handle)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", code=Exit.NOT_FOUND, hint="check the path") from error
    except tomllib.TOMLDecodeError as error:
        raise CommandError(
            f"{path} is not valid TOML: {error}", code=Exit.USAGE, hint="see docs/deployments.md"
        ) from error
    tables = content.get("deployments")
    if not isinstance(tables, dict) or not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise CommandError(
            f"{path} holds no [deployments.NAME] table",
            code=Exit.USAGE,
            hint='begin with [deployments.chat], source = "…"',
        )
    return tables


def _apply(session: Session, file: Path, *, yes: bool, dry_run: bool) -> None:
    answers = {}
    for name, spec in read_deployments(file).items():
        path = f"/deployments/{segment(name)}"
        with session.api() as api:
            current = _get(api, path)
        headers = {"if-match": str(current["generation"] if current else 0)}
        answers[name] = act(
            session, "PUT", path, body=spec, dry_run=dry_run, yes=yes, ask=stops_something, headers=headers
        )
    if session.for_people:
        for name, answer in answers.items():
            say(f"{name}:")
            show_plan(answer)
    else:
        emit(answers, session.output)


def _node(session: Session, node: str, verb: str, *, dry_run: bool) -> None:
    path = f"/nodes/{segment(node)}/{verb}"
    _report(session, act(session, "POST", path, dry_run=dry_run, yes=True, ask=lambda _: False))


def _room(session: Session, target: str) -> str:
    with session.api() as api:
        for room in ("nodes", "replicas"):
            if _exists(api, f"/{room}/{segment(target)}"):
                return room
    raise CommandError(
        f"there is no node and no replica {target!r}", code=Exit.NOT_FOUND, hint="nebula nodes; nebula replicas"
    )


def _exists(api: Api, path: str) -> bool:
    return _get(api, path) is not None


def _get(api: Api, path: str) -> Any:
    try:
        return api.get(path)
    except ApiError as error:
        if error.status == 404:
            return None
        raise


def _report(session: Session, answer: dict[str, Any]) -> None:
    if not session.for_people:
        emit(answer, session.output)
        return
    if answer.get("dry_run"):
        show_plan(answer)
    else:
        say(answer["summary"])
