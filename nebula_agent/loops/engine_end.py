"""The end of an engine: why it came, what its log said, and whether anything of it is left."""

from collections.abc import Sequence
from pathlib import Path

import structlog

from nebula_agent.adapters import log_files
from nebula_agent.adapters.disk_threads import DiskSilent
from nebula_agent.adapters.kernel_memory import oom_kills
from nebula_agent.adapters.ports import held_by
from nebula_agent.adapters.process_evidence import waits_in_kernel
from nebula_agent.adapters.runtime import Ended, Look, Started
from nebula_agent.decisions.exits import describe_exit, describe_status, find_cause
from nebula_agent.loops.context import Context
from nebula_core.records.report import Problem
from nebula_core.security.text import clean_text

log = structlog.get_logger(__name__)

FAILURE_LINES = 20
LOOKED_AT_LINES = 200
#: An end is told with what its log says, or after so long without.
_LOG_SECONDS = 5.0
_AGAIN = "It is tried again and again; its placement stands"


def why_ended(started: Started, look: Look, boot_id: str, lines: Sequence[str] = ()) -> str:
    """One sentence from its exit status, its last lines, and what its runtime knows."""
    if started.boot_id != boot_id:
        return "the machine was restarted"
    kills = oom_kills()
    oom_killed = kills is not None and started.oom_kills is not None and kills > started.oom_kills
    reason = describe_exit(look.status, lines, oom_killed=oom_killed)
    if look.said is not None:
        reason = f"{describe_status(look.status)}: {look.said}"
    if find_cause(lines) == "its port was taken":
        reason = f"{reason}; {held_by(started.port)}"
    return clean_text(reason, max_length=500)


async def failure_log(started: Started | None, context: Context) -> tuple[str, ...]:
    """The last lines of this start, clean for a terminal."""
    if started is None:
        return ()
    lines = await last_lines(started, context, FAILURE_LINES)
    return tuple(clean_text(line, max_length=500) for line in lines)


async def last_lines(started: Started, context: Context, count: int = LOOKED_AT_LINES) -> list[str]:
    """The last of what this start wrote; nothing when the disk does not answer in time."""
    try:
        return await context.disk.look(
            _LOG_SECONDS, log_files.last_lines, Path(started.log_file), count, started.log_offset
        )
    except DiskSilent as error:
        log.warning("engine_log_not_read", file=started.log_file, error=str(error))
        return []


def given_up(replica: str, reason: str | None) -> Problem:
    """What the node says of a replica that is not started again by itself."""
    return Problem(
        code="given_up",
        message=f"{replica} is not started again: {reason or 'it failed too often'}",
        severity="crit",
        hint="Read `nebula logs` and `nebula describe replica`, correct the cause, then `nebula restart`",
    )


def is_gone(replica: str, started: Started, ended: Ended, context: Context) -> bool:
    """Whether a stop left nothing; if it did, the node says so until it is over."""
    subject = f"survivors:{replica}"
    if ended.failed is not None:
        message = f"{replica} cannot be stopped now: {ended.failed}"
        context.problems.set(subject, Problem(code="stop_failed", message=message, severity="crit", hint=_AGAIN))
        log.error("engine_not_stopped", replica=replica, error=ended.failed)
        return False
    if not ended.survivors:
        context.problems.set(subject, None)
        context.stuck_gpus.pop(replica, None)
        log.info("engine_stopped", replica=replica, pid=started.pid, killed=ended.killed, swept=ended.swept)
        return True
    pids = ", ".join(map(str, ended.survivors))
    in_kernel = any(map(waits_in_kernel, ended.survivors))
    why = "waits in the kernel (state D) and " if in_kernel else ""
    context.problems.set(
        subject,
        Problem(
            code="unkillable",
            message=f"{replica}: pid {pids} {why}is not ended by SIGKILL; its GPU memory stays held",
            severity="crit",
            hint="A driver call hangs: look into the kernel log, reboot the node",
        ),
    )
    # Nothing is to be placed there, and nobody is to try again and again (unsloth#3331).
    fault = f"needs reboot: pid {pids} of {replica} cannot be ended"
    context.stuck_gpus[replica] = dict.fromkeys(started.gpus, fault)
    log.error("engine_survives", replica=replica, pids=list(ended.survivors))
    return False
