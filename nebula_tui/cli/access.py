"""Verbs about who may do what, and where clusters are: keys, auth, context."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nebula_tui.cli.context import config_path, read_config
from nebula_tui.cli.errors import CommandError, Exit
from nebula_tui.cli.look import items
from nebula_tui.cli.output import Field, emit, say
from nebula_tui.cli.session import Session, confirm, segment


def _limit(row: Mapping[str, Any], name: str) -> str:
    """A limit of a key; `–` where it has none of its own."""
    value = row.get(name)
    return "–" if value is None else str(value)


KEYS = (
    Field("ID", lambda row: row["id"]),
    Field("NAME", lambda row: row["name"]),
    Field("ROLE", lambda row: row["role"]),
    Field("MODELS", lambda row: ",".join(row["models"]) if row.get("models") else "all"),
    Field("REQ/MIN", lambda row: _limit(row, "requests_per_minute")),
    Field("TOK/MIN", lambda row: _limit(row, "tokens_per_minute")),
    Field("STREAMS", lambda row: _limit(row, "max_streams")),
    Field("OPEN", lambda row: _limit(row, "max_inflight"), wide=True),
    Field("PRIORITY", lambda row: _limit(row, "max_priority"), wide=True),
    Field("REVOKED", lambda row: "yes" if row.get("revoked") else "no"),
    Field("MADE BY", lambda row: row["created_by"], wide=True),
)
CONTEXTS = (
    Field("", lambda row: "*" if row["current"] else ""),
    Field("NAME", lambda row: row["name"]),
    Field("URL", lambda row: row["url"]),
)

keys_app = typer.Typer(help="API keys (admin).", no_args_is_help=True)
auth_app = typer.Typer(help="Who am I.", no_args_is_help=True)
context_app = typer.Typer(help="Clusters this machine knows.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(keys_app, name="keys")
    app.add_typer(auth_app, name="auth")
    app.add_typer(context_app, name="context")


@keys_app.command("list")
def keys_list(ctx: typer.Context) -> None:
    """Keys, without their secrets."""
    session: Session = ctx.obj
    with session.api() as api:
        emit(items(api, "/keys"), session.output, KEYS)


@keys_app.command("create")
def keys_create(
    ctx: typer.Context,
    name: str,
    role: Annotated[str, typer.Option(help="client, viewer, operator or admin.")] = "client",
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be given again.")] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Over all workers and proxies; refilled evenly.")
    ] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Of prompts and answers, likewise.")] = None,
    max_streams: Annotated[int | None, typer.Option(min=1, help="Streamed answers open at once, over all.")] = None,
    max_inflight: Annotated[int | None, typer.Option(min=1, help="Requests open at once in each worker.")] = None,
    max_priority: Annotated[
        int | None, typer.Option(min=-10, max=10, help="Highest x-nebula-priority it gets; 0 for clients unless said.")
    ] = None,
) -> None:
    """Make a key; it is shown once, on stdout."""
    session: Session = ctx.obj
    body: dict[str, Any] = {"name": name, "role": role}
    if model:
        body["models"] = model
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_streams": max_streams,
        "max_inflight": max_inflight,
        "max_priority": max_priority,
    }
    body |= {name: value for name, value in limits.items() if value is not None}
    with session.api() as api:
        made = api.call("POST", "/keys", body=body)
    if session.for_people:
        say(f"key {made['record']['id']} ({role}) is shown this once:")
        typer.echo(made["key"])
    else:
        emit(made, session.output)


@keys_app.command("revoke")
def keys_revoke(
    ctx: typer.Context, key_id: str, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """End a key at once."""
    session: Session = ctx.obj
    confirm(f"revoke {key_id}? Clients that use it are refused from then on.", yes=yes)
    with session.api() as api:
        api.call("DELETE", f"/keys/{segment(key_id)}")
    say(f"{key_id} is revoked")


@auth_app.command("whoami")
def whoami(ctx: typer.Context) -> None:
    """Name and role of the key in use."""
    session: Session = ctx.obj
    with session.api() as api:
        me = api.get("/whoami")
    fields = (Field("NAME", lambda row: row["name"]), Field("ROLE", lambda row: row["role"]))
    emit(me, session.output, fields, [me])


@context_app.command("list")
def context_list(ctx: typer.Context) -> None:
    """Known clusters; * marks the one in use."""
    config = read_config(config_path())
    rows = [
        {"name": name, "url": entry.get("url", "–"), "current": name == config.get("current")}
        for name, entry in sorted(config.get("contexts", {}).items())
    ]
    emit(rows, ctx.obj.output, CONTEXTS)


@context_app.command("add")
def context_add(
    ctx: typer.Context,
    name: str,
    key_command: Annotated[str | None, typer.Option(help="Prints the key; instead of --key-file.")] = None,
) -> None:
    """Remember a cluster: `nebula context add prod --url URL --key-file FILE`."""
    choice = ctx.obj.choice
    if choice.url is None:
        raise CommandError("where is it?", code=Exit.USAGE, hint="add --url https://…")
    entry: dict[str, str] = {"url": choice.url}
    if choice.key_file:
        entry["key_file"] = str(choice.key_file.resolve())
    if key_command:
        entry["key_command"] = key_command
    config = read_config(config_path())
    config.setdefault("contexts", {})[name] = entry
    config.setdefault("current", name)
    _write(config)
    say(f"context {name} is kept in {config_path()}")


@context_app.command("use")
def context_use(name: str) -> None:
    """Make a context the one in use."""
    config = read_config(config_path())
    if name not in config.get("contexts", {}):
        known = ", ".join(sorted(config.get("contexts", {}))) or "none"
        raise CommandError(f"no context {name!r}", code=Exit.NOT_FOUND, hint=f"known: {known}")
    config["current"] = name
    _write(config)
    say(f"now using {name}")


def _write(config: dict[str, Any]) -> None:
    import tomli_w

    path: Path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(config))
