"""`nebula cache`: which models are on which node's disk; fetch ahead of need, evict."""

from typing import Annotated, Any

import typer

from nebula_tui.cli.images import DryRun, Node, NoWait, Yes, carry_out
from nebula_tui.cli.look import items
from nebula_tui.cli.output import Field, Row, emit, gib, word
from nebula_tui.cli.session import Session

cache_app = typer.Typer(help="Models on the nodes' disks.", no_args_is_help=True)

MODELS = (
    Field("NODE", lambda row: row["node"]),
    Field("MODEL", lambda row: row["source"]),
    Field("SIZE GiB", lambda row: gib(row.get("size_bytes")), right=True),
    Field("STATE", lambda row: row["state"]),
    Field("REVISION", lambda row: (row.get("revision") or "–")[:12], wide=True),
    Field("FILES", lambda row: word(row, "files"), wide=True),
    Field("ID", lambda row: word(row, "id"), wide=True),
)


def register(app: typer.Typer) -> None:
    app.add_typer(cache_app, name="cache")


@cache_app.command("list")
def cache_list(ctx: typer.Context, node: Node = None) -> None:
    """Models of each node, and those on their way there."""
    session: Session = ctx.obj
    with session.api() as api:
        found = [row for row in items(api, "/cache") if not node or row["node"] in node]
    emit(found, session.output, MODELS, [line for row in found for line in _lines(row)])


@cache_app.command("prefetch")
def cache_prefetch(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="As in a deployment: owner/name, modelscope:…, s3:…, nfs+copy:/path.")],
    node: Node = None,
    engine: Annotated[str, typer.Option(help="For which kind of engine; llamacpp loads GGUF.")] = "vllm",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
) -> None:
    """Fetch a model to all nodes that keep models, or to some."""
    body: dict[str, Any] = {"source": source, "engine": engine}
    carry_out(ctx.obj, "/cache/prefetch", body, node, dry_run=dry_run, yes=True, wait=not no_wait)


@cache_app.command("evict")
def cache_evict(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A source or an id; without it, all that nothing needs.")] = None,
    node: Node = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
) -> None:
    """Remove models that no replica runs or will be started from again."""
    body: dict[str, Any] = {} if model is None else {"model": model}
    carry_out(ctx.obj, "/cache/evict", body, node, dry_run=dry_run, yes=yes, wait=not no_wait)


def _lines(row: Row) -> list[Row]:
    node = row["node"]
    lines: list[Row] = [{**model, "node": node, "state": _state(model)} for model in row["models"]]
    lines += [
        {"node": node, "source": one["source"], "state": ("failed: " if one["failed"] else "") + one["message"]}
        for one in row["fetches"]
    ]
    return lines


def _state(model: Row) -> str:
    words = [] if model.get("complete") else ["partial"]
    words += ["in use"] if model.get("in_use") else []
    return ", ".join(words) or "unused"
