"""`nebula-agent run|check|version|simulate-engine`: what a person or systemd types."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="nebula-agent",
    help="The node agent: runs the engines of one machine as the control plane decided.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path | None, typer.Option("--config", help="TOML file; every setting also as NEBULA_AGENT_…")]


@app.command()
def run(
    config: Config = None,
    *,
    stop_engines: Annotated[
        bool, typer.Option("--stop-engines", help="SIGTERM stops the engines as well; else they go on.")
    ] = False,
) -> None:
    """Run the agent until SIGTERM. Its engines go on and are adopted by the next agent."""
    from nebula_core.runtime.lean import import_without

    import_without("structlog", "rich")
    import uvloop

    from nebula_agent.agent import run_agent
    from nebula_agent.settings import AgentSettings
    from nebula_core.runtime.logs import configure_logging
    from nebula_core.runtime.settings import load_settings

    settings = load_settings(AgentSettings, config)
    if stop_engines:
        settings = settings.model_copy(update={"stop_engines": True})
    configure_logging(settings.log_level)
    uvloop.run(run_agent(settings))


@app.command()
def check(
    config: Config = None,
    *,
    output: Annotated[str, typer.Option("-o", "--output", help="table or json")] = "table",
) -> None:
    """Validate settings and look at what this node has and lacks; exit 1 if the agent could not do its work."""
    import asyncio
    import json
    from dataclasses import asdict

    from nebula_agent.loops.preflight import preflight
    from nebula_agent.settings import AgentSettings
    from nebula_core.runtime.logs import configure_logging
    from nebula_core.runtime.settings import load_settings
    from nebula_core.security.text import clean_text

    settings = load_settings(AgentSettings, config)
    # Standard output is the table's alone; what a door has to say stands in its row.
    configure_logging("error")
    if output not in {"table", "json"}:
        raise typer.BadParameter(f"{output!r} is not table or json", param_hint="-o")
    findings = asyncio.run(preflight(settings))
    if output == "json":
        typer.echo(json.dumps({"items": [asdict(finding) for finding in findings]}, indent=2))
        raise typer.Exit(int(any(finding.verdict == "FAIL" for finding in findings)))
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        # Details quote the store, Docker, drivers.
        typer.echo(clean_text(f"{finding.verdict:<5} {finding.name:<{width}}  {finding.detail}"))
        if finding.hint is not None:
            typer.echo(clean_text(f"{'':<5} {'':<{width}}  → {finding.hint}"))
    if any(finding.verdict == "FAIL" for finding in findings):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    from nebula_core import __version__

    typer.echo(f"nebula-agent {__version__}")


@app.command(
    "simulate-engine",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def simulate_engine(context: typer.Context) -> None:
    """Run one simulated engine (vLLM on the outside); `--help` lists its options."""
    from nebula_agent.simulator.process import main as simulate

    raise typer.Exit(simulate(context.args))


def main() -> int:
    """The script `nebula-agent`: an error a person can act on is one line, not a traceback."""
    from nebula_core.errors import NebulaError, SettingsError
    from nebula_core.security.text import clean_text

    try:
        app()
    except NebulaError as error:
        print(clean_text(f"nebula-agent: {error}", newlines=True), file=sys.stderr)  # noqa: T201 - the last word to a terminal
        return 2 if isinstance(error, SettingsError) else 1
    return 0
