"""Verbs that change something: the server's plan first, then a question where something stops, then the call."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from nebula_tui.adapters.api import Api, ApiError
from nebula_tui.cli.errors import CommandError, Exit
from nebula_tui.cli.look import items
from nebula_tui.cli.output import emit, say
from nebula_tui.cli.session import Session, act, confirm, once, segment, show_plan, stops_something

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop there.")]


def register(app: typer.Typer) -> None:
    for verb in (scale, drain, cordon, uncordon, restart, rollback, undo, delete, adopt):
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


def adopt(
    ctx: typer.Context,
    replica: Annotated[str | None, typer.Argument(help="An unmanaged one of `nebula replicas`.")] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model; else as the engine does.")] = None,
    served_model: Annotated[str | None, typer.Option(help="Of the names it lists; else the first.")] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Write an emptied or stale store anew, from what runs and is remembered.")
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Take in an engine that somebody started by hand, without a restart; without a name, show which there are."""
    session: Session = ctx.obj
    if store:
        if replica is not None or name is not None or served_model is not None:
            raise CommandError("--store takes in everything at once", code=Exit.USAGE, hint="nebula adopt --store")
        _adopt_store(session, yes=yes, dry_run=dry_run)
        return
    if replica is None:
        _unmanaged(session)
        return
    said = {"replica": replica, "name": name, "served_model": served_model}
    body = {key: value for key, value in said.items() if value is not None}
    _report(session, act(session, "POST", "/adopt", body=body, dry_run=dry_run, yes=yes, ask=lambda _: True))


def _adopt_store(session: Session, *, yes: bool, dry_run: bool) -> None:
    with session.api() as api:
        plan = api.call("POST", "/adopt/store", params={"dry_run": 1})
    if session.for_people:
        _show_adopted(plan)
    answer = plan
    if not dry_run and plan.get("doubt") is not None:
        confirm("write this into the store?", yes=yes)
        # Nothing else than what was shown: it may have taken a while to read.
        with session.api() as api:
            answer = api.call("POST", "/adopt/store", body={"shown": plan["digest"]}, headers=once())
        if session.for_people:
            say(answer["summary"])
    if not session.for_people:
        emit(answer, session.output)


def _show_adopted(plan: dict[str, Any]) -> None:
    """Everything that would be written: whoever says yes to it has seen it."""
    say(f"plan: {plan['summary']}")
    for one in plan.get("deployments", ()):
        say(f"  deployment {one['name']}: generation {one['generation']}, {one['replicas']} replicas")
    for one in plan.get("replicas", ()):
        say(f"  placement {one['id']} on {one['node']}: {one['wanted']}")
    for one in plan.get("keys", ()):
        say(f"  key {one['id']} {one['name']} ({one['role']}{', revoked' if one.get('revoked') else ''})")
    for node in plan.get("intents", ()):
        say(f"  cordon or drain of {node}")
    for one in plan.get("notes", ()):
        say(f"  ! {one['object']}: {one['message']}")
    for change in plan.get("plan", {}).get("changes", ()):
        say(f"  then: {change['reason']}")


def _unmanaged(session: Session) -> None:
    with session.api() as api:
        rows = [row for row in items(api, "/replicas") if not row.get("managed", True)]
    if not session.for_people:
        emit(rows, session.output)
        return
    for row in rows:
        found = row.get("found") or {}
        why_not = found.get("why_not")
        ready = f"cannot be taken in: {why_not}" if why_not else f"nebula adopt {row['id']}"
        name = found.get("container_name") or (row.get("container_id") or "")[:12]
        where = f"container {name} (pid {row['pid']})" if name else f"pid {row['pid']}"
        say(f"{row['id']}  {row['model']}  {row['engine']}  {where} on {row['node']}: {ready}")
    if not rows:
        say("no engine runs that Nebula did not start")


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
