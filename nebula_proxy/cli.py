"""`nebula-proxy run | check | version | init`: options to settings, settings to processes, errors to one line."""

import asyncio
import socket
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


@app.command()
def run(
    config: Config = None,
    role: Annotated[
        Role, typer.Option(help="all: data workers and the control process; or one kind alone.")
    ] = Role.ALL,
    fd: Annotated[int | None, typer.Option(hidden=True, help="Listening socket, from the supervisor.")] = None,
    supervised: Annotated[bool, typer.Option(hidden=True, help="Ends when its parent does.")] = False,
) -> None:
    """Serve."""
    with _errors():
        settings = load_settings(ProxySettings, config)
        configure_logging(settings.log_level)
        if supervised:
            _end_with_parent()
        match role:
            case Role.DATA:
                _run_data(settings, config, fd, supervised=supervised)
            case Role.CONTROL:
                from nebula_proxy.control.app import run_control

                run_control(settings)
            case Role.ALL:
                from nebula_proxy.supervisor import run_all

                run_all(settings, config)


@app.command()
def check(config: Config = None) -> None:
    """Check settings, keys, ports and the store; print what was found."""
    with _errors():
        settings = load_settings(ProxySettings, config)
        from nebula_proxy.checking import checks

        results = asyncio.run(checks(settings))
        width = max(len(result.name) for result in results)
        for result in results:
            mark = "ok  " if result.good else "FAIL"
            typer.echo(f"{mark}  {result.name:{width}}  {result.text}")
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
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing when all went well.")] = False,
) -> None:
    """Make the keys of a cluster; those that exist are kept."""
    with _errors():
        settings = load_settings(ProxySettings, config)
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


def main() -> None:
    app()


def _run_data(settings: ProxySettings, config: Path | None, fd: int | None, *, supervised: bool) -> None:
    from nebula_proxy.app import run_worker
    from nebula_proxy.listening import listen

    if fd is not None:
        run_worker(settings, [socket.socket(fileno=fd)], supervised=supervised)
    elif settings.workers > 1:
        from nebula_proxy.supervisor import run_all

        run_all(settings, config, control=False)
    else:
        run_worker(settings, listen(settings.host, settings.port))


def _end_with_parent() -> None:
    """Asks the kernel for SIGTERM when the supervisor dies, however it dies."""
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


@contextmanager
def _errors() -> Iterator[None]:
    """What a person can act on, in a line on stderr; exit 2 for settings, 1 for the rest."""
    try:
        yield
    except NebulaError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(2 if isinstance(error, SettingsError) else 1) from None
