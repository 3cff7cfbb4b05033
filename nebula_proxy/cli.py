"""`nebula-proxy run | check | version | init`: options to settings, settings to processes, errors to one line."""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nebula_core import __version__
from nebula_core.errors import NebulaError, SettingsError
from nebula_core.runtime.logs import configure_logging
from nebula_core.runtime.settings import load_settings
from nebula_core.security.text import clean_text
from nebula_core.store.line import StoreSettings
from nebula_proxy.settings import ProxySettings

app = typer.Typer(
    name="nebula-proxy",
    help="One OpenAI-compatible address for all models, and the control plane of Nebula.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[Path | None, typer.Option("--config", help="TOML file with the settings.")]


class Role(StrEnum):
    """Which processes to run."""

    ALL = "all"
    DATA = "data"
    CONTROL = "control"


class RotationStep(StrEnum):
    """A step of changing the signing key."""

    PREPARE = "prepare"
    SWITCH = "switch"
    FINISH = "finish"


@app.command()
def run(
    config: Config = None,
    role: Annotated[
        Role, typer.Option(help="all: data workers and the control process; or one kind alone.")
    ] = Role.ALL,
) -> None:
    """Serve. SIGTERM drains, SIGHUP reloads."""
    with _errors():
        settings = load_settings(ProxySettings, config)
        configure_logging(settings.log_level)
        if role is Role.ALL or (role is Role.DATA and settings.workers > 1):
            from nebula_proxy.supervisor import run_all

            run_all(settings, config, control=role is Role.ALL)
        else:
            _become(role, settings)


@app.command()
def reload(
    config: Config = None,
    pid: Annotated[int | None, typer.Option(help="Of the supervisor; else it is found in `data_dir`.")] = None,
) -> None:
    """Read the settings anew, or go over to a new version of the program, without losing a connection."""
    with _errors():
        settings = load_settings(ProxySettings, config)
        from nebula_proxy.reloading import ask_to_reload

        typer.echo(f"asked {ask_to_reload(settings, pid)} to reload; its log says `reloaded` or why not")


@app.command()
def check(
    config: Config = None,
    settings_only: Annotated[
        bool, typer.Option("--settings-only", help="Look at the settings and keys alone.")
    ] = False,
) -> None:
    """Check settings, keys, ports and the store; print what was found."""
    with _errors():
        settings = load_settings(ProxySettings, config)
        from nebula_proxy.checking import checks

        results = asyncio.run(checks(settings, settings_only=settings_only))
        width = max(len(result.name) for result in results)
        for result in results:
            mark = "ok  " if result.good else "FAIL"
            line = clean_text(f"{mark}  {result.name:{width}}  {result.text}")
            typer.echo(line, err=settings_only and not result.good)
        if not all(result.good for result in results):
            raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"nebula-proxy {__version__}")


@app.command()
def init(
    data: Annotated[Path, typer.Option(help="Folder of the installation; keys go into DIR/keys.")],
    config: Config = None,
    store: Annotated[str | None, typer.Option(help="Address of the store, to write the hashes of the keys.")] = None,
    rotate: Annotated[
        RotationStep | None,
        typer.Option(help="A step of changing the signing key: prepare, switch, finish (docs/runbooks/keys.md)."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing when all went well.")] = False,
) -> None:
    """Make the keys of a cluster; those that exist are kept."""
    with _errors():
        settings = load_settings(ProxySettings, config)
        if rotate is not None:
            _rotate(rotate, data, settings.store.model_copy(update={"url": store}) if store else settings.store)
            return
        from nebula_proxy.installing import install, store_keys

        found, records = install(data)
        target = settings.store.model_copy(update={"url": store}) if store else settings.store
        to_store = store is not None or "store" in settings.model_fields_set
        written = asyncio.run(store_keys(target, records)) if to_store else []
        if quiet:
            return
        width = max(len(str(item.path)) for item in found)
        for item in found:
            typer.echo(f"{'made' if item.made else 'kept'}  {item.path!s:{width}}  {item.what}")
        if to_store:
            typer.echo(f"store {target.shown_url}: {len(written)} of {len(records)} API keys written, the others known")
        else:
            typer.echo("no store was given: run again with --store URL, so that the API keys are known there")


def _rotate(step: RotationStep, data: Path, store: StoreSettings) -> None:
    from nebula_proxy import installing

    folder = data / "keys"
    match step:
        case RotationStep.PREPARE:
            found = installing.prepare_rotation(folder)
        case RotationStep.SWITCH:
            found = installing.switch_rotation(folder)
        case RotationStep.FINISH:
            found = installing.finish_rotation(folder, asyncio.run(installing.not_signed_by(store, folder)))
    for item in found:
        typer.echo(f"{'made' if item.made else 'kept'}  {item.path!s}  {item.what}")


def main() -> None:
    app()


def _become(role: Role, settings: ProxySettings) -> None:
    """Serves in this very process, without what only a command line needs."""
    from nebula_proxy.handover import sealed_settings, worker_command
    from nebula_proxy.listening import CONTROL, DATA, activated, listen

    what = DATA if role is Role.DATA else CONTROL
    place = settings if role is Role.DATA else settings.control
    listeners = activated(os.environ).get(what) or listen(place.host, place.port, what=what)
    described = sealed_settings(settings)
    for descriptor in (described, *(listener.fileno() for listener in listeners)):
        os.set_inheritable(descriptor, True)
    command = worker_command(role.value, described, listeners)
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606 - our own program


@contextmanager
def _errors() -> Iterator[None]:
    """What a person can act on, in a line on stderr; exit 2 for settings, 1 for the rest."""
    try:
        yield
    except NebulaError as error:
        sys.stderr.write(clean_text(f"error: {error}", newlines=True) + "\n")
        raise typer.Exit(2 if isinstance(error, SettingsError) else 1) from None
