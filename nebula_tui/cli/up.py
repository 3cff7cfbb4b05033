"""`nebula up`: a whole cluster on this machine in one command, then the TUI."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nebula_tui.cli.errors import CommandError, Exit

if TYPE_CHECKING:
    from nebula_tui.cli.local_cluster import LocalCluster, Plan


def register(app: typer.Typer) -> None:
    app.command()(up)


def up(
    no_ui: Annotated[bool, typer.Option("--no-ui", help="No TUI: one JSON line when ready, then run on.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the cluster (XDG state folder).")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Data plane.")] = 8081,
    control_port: Annotated[int, typer.Option(min=1, max=65535, help="Control API.")] = 8082,
    store: Annotated[str | None, typer.Option(help="Use this Redis instead of an embedded one.")] = None,
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Simulated nodes.")] = 2,
    gpus: Annotated[int, typer.Option(min=1, max=64, help="GPUs per simulated node.")] = 4,
    model: Annotated[
        list[str] | None, typer.Option(help="NAME=SOURCE; `sim` is the simulated engine. May be given again.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=0, max=1000, help="Of each model.")] = 2,
) -> None:
    """Start a whole cluster on this machine: store, proxy, control process, agents, a demo model; then the TUI."""
    from nebula_tui.cli.context import default_data_dir
    from nebula_tui.cli.local_cluster import Plan, choose_model, has_real_gpus

    if not no_ui and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError("the TUI needs a terminal", code=Exit.USAGE, hint="add --no-ui")
    if port == control_port:
        raise CommandError(f"--port and --control-port are both {port}", code=Exit.USAGE, hint="choose two ports")
    real_gpus = has_real_gpus()
    plan = Plan(
        data=(data or default_data_dir()).expanduser().resolve(),
        port=port,
        control_port=control_port,
        store_url=store,
        nodes=nodes,
        gpus=gpus,
        models=tuple(choose_model(text, real_gpus=real_gpus) for text in model or ["demo=sim"]),
        replicas=replicas,
        explicit_model=bool(model),
        real_gpus=real_gpus,
    )
    raise SystemExit(asyncio.run(_run(plan, no_ui=no_ui)))


async def _run(plan: "Plan", *, no_ui: bool) -> int:
    from nebula_tui.cli.local_cluster import LocalCluster

    cluster = LocalCluster(plan, _narrator(quiet=no_ui))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ended.set)
    starting = asyncio.create_task(cluster.start())
    waiting = asyncio.create_task(ended.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return 130
        ready = await starting
        if no_ui:
            sys.stdout.write(json.dumps(ready) + "\n")
            sys.stdout.flush()
            await ended.wait()
            return 0
        return await _show(cluster, waiting)
    finally:
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError, CommandError):
            await starting
        waiting.cancel()
        if not no_ui:
            sys.stderr.write("stopping …\n")
        await cluster.stop()


async def _show(cluster: "LocalCluster", ended: "asyncio.Task[bool]") -> int:
    """The TUI as a process of its own on this terminal, so that the children here are watched meanwhile."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nebula_tui", "--data", str(cluster.plan.data), "tui", env=dict(os.environ)
    )
    cluster.say = lambda _: None  # the screen belongs to the TUI now
    for child in cluster.children:
        child.mute()
    closed = asyncio.create_task(process.wait())
    await asyncio.wait({closed, ended}, return_when=asyncio.FIRST_COMPLETED)
    if not closed.done():
        process.terminate()
    return await closed


def _narrator(*, quiet: bool) -> Callable[[str], None]:
    """One line per step on stderr; with --no-ui only what went wrong is worth a line, and that is in the logs."""

    def say(text: str) -> None:
        if not quiet:
            sys.stderr.write(f"  {text}\n")
            sys.stderr.flush()

    return say
