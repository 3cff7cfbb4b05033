"""The evidence of a hang, gathered before the engine is killed, and kept in the agent's folder."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import structlog

from nebula_agent.adapters import log_files, process_evidence
from nebula_agent.adapters.disk_threads import DiskSilent
from nebula_agent.adapters.runtime import Started
from nebula_agent.decisions import evidence
from nebula_agent.loops.context import Context
from nebula_agent.loops.engine_monitor import EngineMonitor
from nebula_core.records.placement import Placement
from nebula_core.records.sample import GpuSample
from nebula_core.security.files import write_secret

log = structlog.get_logger(__name__)

_LOG_LINES = 200
#: Whatever hangs here too: an engine that must be restarted does not wait longer for its evidence.
_GATHER_SECONDS = 10.0
_WRITE_SECONDS = 5.0


async def gather_evidence(
    placement: Placement, started: Started, monitor: EngineMonitor | None, reason: str, context: Context
) -> str | None:
    """Writes what can be learned of a hung engine; answers the file's path, None when there is none."""
    try:
        async with asyncio.timeout(_GATHER_SECONDS):
            text = await _bundle(placement, started, monitor, reason, context)
        async with asyncio.timeout(_WRITE_SECONDS):
            return str(await context.disk.do("evidence", _write, text, placement.replica, started, context))
    except (OSError, TimeoutError, DiskSilent) as error:
        log.warning("evidence_not_kept", replica=placement.replica, error=str(error) or type(error).__name__)
        return None


async def _bundle(
    placement: Placement, started: Started, monitor: EngineMonitor | None, reason: str, context: Context
) -> str:
    now = context.clock.monotonic()
    members = await context.runtimes[started.runtime].members(started)
    states = await process_evidence.look_at(members)
    lines = await context.disk.look(
        _GATHER_SECONDS, log_files.last_lines, Path(started.log_file), _LOG_LINES, started.log_offset
    )
    page = "" if monitor is None else await monitor.page()
    version = None if monitor is None else monitor.version
    facts = [
        f"deployment {placement.deployment} generation {placement.generation}",
        f"engine {placement.spec.engine} {version or 'of unknown version'} runtime {started.runtime}",
        f"source {placement.spec.source} args {placement.spec.args}",
        f"engine epoch {started.engine_epoch} pid {started.pid} port {started.port} agent {context.version}",
    ]
    return evidence.bundle(
        f"{placement.replica} on {placement.node}: {reason}",
        [
            ("engine", "\n".join(facts)),
            ("counters over the last minute", evidence.counters_table(monitor.figures.counted, now) if monitor else ""),
            ("gpus", _gpus(context.gpus.samples, started.gpus)),
            ("processes", evidence.processes_text(states)),
            ("last log lines", "\n".join(lines)),
            ("/metrics", page),
        ],
    )


def _gpus(samples: Iterable[GpuSample], gpus: Iterable[str]) -> str:
    own = set(gpus)
    return "\n".join(sample.to_json() for sample in samples if sample.gpu in own)


def _write(text: str, replica: str, started: Started, context: Context) -> Path:
    folder = context.files.evidence
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / evidence.file_name(replica, context.clock.wall(), started.engine_epoch)
    write_secret(path, text.encode())
    for name in evidence.superfluous([entry.name for entry in folder.glob("*@*.txt")], replica):
        (folder / name).unlink(missing_ok=True)
    return path
