"""`nebula images`: which images of engines are on which node; pull ahead of need, prune."""

import sys
import time
from typing import Annotated, Any

import typer

from nebula_tui.adapters.api import Api
from nebula_tui.cli.errors import CommandError, Exit
from nebula_tui.cli.look import items
from nebula_tui.cli.output import Field, Row, emit, gib, say, word
from nebula_tui.cli.session import Session, confirm, once, segment

#: How often an operation is asked about while it runs.
ASK_SECONDS = 0.5

images_app = typer.Typer(help="Images of engines on the nodes.", no_args_is_help=True)

Node = Annotated[list[str] | None, typer.Option(help="Only this node; may be given again.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done and stop there.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the operation and return at once.")]


def _use(row: Row) -> str:
    words = [name for name, key in (("in use", "in_use"), ("pinned", "pinned")) if row.get(key)]
    return ", ".join(words) or row.get("state", "–")


IMAGES = (
    Field("NODE", lambda row: row["node"]),
    Field("IMAGE", lambda row: row["name"]),
    Field("SIZE GiB", lambda row: gib(row.get("size_bytes")), right=True),
    Field("STATE", _use),
    Field("DIGEST", lambda row: word(row, "digest"), wide=True),
    Field("ID", lambda row: word(row, "id"), wide=True),
)
PARTS = (
    Field("NODE", lambda row: row["node"]),
    Field("STATE", lambda row: row["state"]),
    Field("MESSAGE", lambda row: row["message"]),
    Field("HINT", lambda row: word(row, "hint")),
)


def register(app: typer.Typer) -> None:
    app.add_typer(images_app, name="images")


@images_app.command("list")
def images_list(ctx: typer.Context, node: Node = None) -> None:
    """Images of each node, and those on their way there."""
    session: Session = ctx.obj
    with session.api() as api:
        found = [row for row in items(api, "/images") if not node or row["node"] in node]
    emit(found, session.output, IMAGES, [line for row in found for line in _lines(row)])


@images_app.command("pull")
def images_pull(
    ctx: typer.Context, image: str, node: Node = None, dry_run: DryRun = False, no_wait: NoWait = False
) -> None:
    """Pull an image on all nodes that run containers, or on some."""
    body: dict[str, Any] = {"image": image}
    carry_out(ctx.obj, "/images/pull", body, node, dry_run=dry_run, yes=True, wait=not no_wait)


@images_app.command("prune")
def images_prune(
    ctx: typer.Context, node: Node = None, yes: Yes = False, dry_run: DryRun = False, no_wait: NoWait = False
) -> None:
    """Remove images that no container uses and no replica will be started from again."""
    carry_out(ctx.obj, "/images/prune", {}, node, dry_run=dry_run, yes=yes, wait=not no_wait)


def _lines(row: Row) -> list[Row]:
    node = row["node"]
    lines: list[Row] = [
        {
            **image,
            "node": node,
            "name": (image["tags"] or image["digests"] or ["<none>"])[0],
            "digest": image["digests"][0].rpartition("@")[2] if image["digests"] else None,
            "state": "unused",
        }
        for image in row["images"]
    ]
    lines += [
        {"node": node, "name": pull["image"], "state": ("failed: " if pull["failed"] else "") + pull["message"]}
        for pull in row["pulls"]
    ]
    return lines


def carry_out(
    session: Session, path: str, body: dict[str, Any], nodes: list[str] | None, *, dry_run: bool, yes: bool, wait: bool
) -> None:
    if nodes:
        body = {**body, "nodes": nodes}
    with session.api() as api:
        if dry_run or not yes:
            plan = api.call("POST", path, params={"dry_run": 1}, body=body)
            if dry_run:
                _show(session, plan)
                return
            say(f"plan: {plan['summary']}")
            for part in plan["parts"]:
                say(f"  {part['node']}: {part['message']}")
            confirm("go on?", yes=yes)
        answer = api.call("POST", path, body=body, headers=once())
        if wait:
            answer = _wait(api, answer)
    _show(session, answer)
    if answer["state"] == "failed":
        failed = [part["node"] for part in answer["parts"] if part["state"] in ("failed", "refused")]
        raise CommandError(f"it failed on {', '.join(failed)}", code=Exit.FAILED, hint="see the messages above")


def _wait(api: Api, answer: dict[str, Any]) -> dict[str, Any]:
    """Until every node is done; on a terminal the state of each is shown in one line meanwhile."""
    shown = sys.stderr.isatty()
    while answer["state"] == "running":
        if shown:
            words = "; ".join(
                f"{part['node']} {part['message']}" for part in answer["parts"] if part["progress"] != 1.0
            )
            _line(words[:150])
        time.sleep(ASK_SECONDS)
        answer = api.get(f"/operations/{segment(answer['id'])}")
    if shown:
        _line("")
    return answer


def _line(text: str) -> None:
    from nebula_core.security.text import clean_text

    sys.stderr.write(f"\r\x1b[K{clean_text(text)}")
    sys.stderr.flush()


def _show(session: Session, answer: dict[str, Any]) -> None:
    if session.for_people:
        say(answer["summary"])
    emit(answer, session.output, PARTS, answer["parts"])
