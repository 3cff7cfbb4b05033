"""The `nebula` command line: options valid for every verb, the table of verbs, and how errors end it.

Verbs are plain functions in the sibling modules; typer turns their signatures into options and help. The global
options may stand before or after the verb (`hoist`), as people know it from kubectl.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nebula_tui.cli.errors import CommandError, Exit

#: Global options that take a value, by every spelling.
GLOBAL_OPTIONS = ("--context", "--url", "--key-file", "--data", "--output", "-o", "--timeout")

app = typer.Typer(
    name="nebula",
    help="Serve open-weight LLMs on your own GPU machines, from one terminal.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    ctx: typer.Context,
    context: Annotated[str | None, typer.Option(help="A context of config.toml.")] = None,
    url: Annotated[str | None, typer.Option(help="Address of the Control API.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="File with the API key.")] = None,
    data: Annotated[Path | None, typer.Option(help="The cluster that `nebula up --data DIR` runs.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="table, wide, json or yaml.")] = "table",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 10.0,
) -> None:
    if ctx.invoked_subcommand in (None, "version", "up"):
        return
    from nebula_tui.cli.context import Choice
    from nebula_tui.cli.output import Output
    from nebula_tui.cli.session import Session

    try:
        chosen = Output(output)
    except ValueError:
        raise typer.BadParameter(f"{output!r} is not one of table, wide, json, yaml", param_hint="-o") from None
    ctx.obj = Session(Choice(context, url, key_file, data), chosen, timeout)


@app.command()
def version() -> None:
    """Print the version."""
    from nebula_core import __version__

    sys.stdout.write(f"nebula {__version__}\n")


def _register() -> None:
    from nebula_tui.cli import access, act, cache, chat, images, look, requests, stream, up

    look.register(app)
    act.register(app)
    stream.register(app)
    requests.register(app)
    chat.register(app)
    access.register(app)
    images.register(app)
    cache.register(app)
    up.register(app)


_register()


def hoist(arguments: list[str]) -> list[str]:
    """Moves the global options before the verb; what follows `--` stays. `up` has options of its own."""
    if next((word for word in arguments if not word.startswith("-")), None) == "up":
        return arguments
    head: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest.append(word)
            rest.extend(words)
            break
        name, equals, _ = word.partition("=")
        if name in GLOBAL_OPTIONS:
            head.append(word)
            if not equals:
                head.extend([value] if (value := next(words, None)) is not None else [])
        else:
            rest.append(word)
    return head + rest


def run(arguments: list[str]) -> None:
    """One command line, to its exit code."""
    try:
        app(args=hoist(arguments), prog_name="nebula", standalone_mode=True)
    except CommandError as error:
        _end(error.message, error.hint, error.code)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our output (head, less) went away: nothing to tell anybody.
        sys.stderr.close()
        raise SystemExit(Exit.DONE) from None


def _end(message: str, hint: str | None, code: Exit) -> None:
    from nebula_core.security.text import clean_text

    sys.stderr.write(f"error: {clean_text(message)}\n")
    if hint:
        sys.stderr.write(f"hint: {clean_text(hint)}\n")
    raise SystemExit(int(code))
