"""Engines that nobody ordered: found, asked what they are, shown as unmanaged; never touched, and never routed to.

    table of processes, each second ─► looks like an engine? ─► not ours, nor another agent's? ─► does it listen?
        ─► asked once (models, version, figures), then every ten seconds ─► reported with `managed: false`

A command line is anybody's to write. So nothing is sent to a found engine but questions, to no address but this machine's
own, and only where the socket is proven to belong to the process that was found. No request of a client goes there
before an operator has taken it in (`adopt`): a stranger's process that calls itself `vllm serve --served-model-name chat`
must not get chat's prompts. Taking in is one signed placement, and it is routed to within a second, without a restart.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import structlog

from nebula_agent.adapters.process_table import ProcessTable
from nebula_agent.decisions.discovery import CommandLine, read_command_line
from nebula_agent.engines.registry import engine_of
from nebula_agent.loops.context import Context, TakeIn
from nebula_agent.loops.engine_figures import EngineFigures
from nebula_agent.loops.found_engine import Examiner, Found
from nebula_agent.loops.replicas import Replicas
from nebula_agent.loops.taken_in import start_of
from nebula_core.records.adoption import AdoptTarget
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.report import Problem

log = structlog.get_logger(__name__)

EVERY_SECONDS = 1.0
#: What was found is asked again after this.
ASK_SECONDS = 10.0
#: All command lines are read anew: a number may have been given again between two looks.
ANEW_SECONDS = 60.0
#: Engines shown at once; a machine with more has a problem of another kind.
MOST_FOUND = 64
_ANCESTORS = 32


class _Came(NamedTuple):
    pid: int
    line: CommandLine
    born: float
    container_id: str | None


class Discovery:
    """`iterate` is one look; `statuses` is what was found."""

    def __init__(self, context: Context, replicas: Replicas, table: ProcessTable | None = None) -> None:
        self._context = context
        self._replicas = replicas
        self._table = table or ProcessTable()
        self._examiner = Examiner(context, self._table)
        self._found: dict[int, Found] = {}
        self._read_anew_at = context.clock.monotonic()

    async def iterate(self) -> None:
        now = self._context.clock.monotonic()
        if now - self._read_anew_at >= ANEW_SECONDS:
            self._read_anew_at = now
            self._table.forget()
        owned = self._owned()
        news, gone = await asyncio.to_thread(self._look, owned)
        for pid in gone:
            await self._drop(pid)
        for came in news:
            if len(self._found) < MOST_FOUND:
                self._take(came, now)
        full = len(self._found) >= MOST_FOUND
        self._context.problems.set("discovery", _TOO_MANY if full else None)
        for found in self._found.values():
            due = found.phase is not Phase.READY or found.asked_at is None or now - found.asked_at >= ASK_SECONDS
            if due and (found.task is None or found.task.done()):
                found.task = asyncio.create_task(self._examiner.examine(found), name=f"discovery:{found.id}")

    async def close(self) -> None:
        for pid in list(self._found):
            await self._drop(pid)

    def statuses(self) -> tuple[ReplicaStatus, ...]:
        """Without those that were taken in since the last look."""
        now, owned = self._context.clock.monotonic(), self._owned()
        shown = sorted((one for one in self._found.values() if one.pid not in owned), key=lambda one: one.id)
        return tuple(self._examiner.status(found, now, self.why_not(found)) for found in shown)

    def find(self, identity: str) -> Found | None:
        return next((found for found in self._found.values() if found.id == identity), None)

    def why_not(self, found: Found) -> str | None:
        """Why it cannot be taken in as it stands; None: it can."""
        shares = self._shares_container(found)
        if shares is not None:
            # A container is watched, stopped and started whole.
            return f"it shares its container with {shares}: run each engine in a container of its own"
        return self._examiner.why_not(found)

    def take_in(self, target: AdoptTarget) -> TakeIn | str:
        """The engine an order means, if exactly that one is seen now; else why it is not obeyed."""
        found = self.find(target.found)
        if found is None:
            return f"{target.found} is not there: nothing of that id was found on this node"
        why_not = self.why_not(found)
        if why_not is not None:
            return f"{target.found} cannot be taken in: {why_not}"
        place = found.place
        if place is None:
            return f"{target.found} listens nowhere"
        seen = (found.pid, found.container_id, place.probe_host, place.port)
        if seen != (target.pid, target.container_id, target.host, target.port) or not _same(
            found.born, target.pid_born
        ):
            return f"{target.found} is not what the order means: another process runs under that id"
        if target.served_model not in found.models:
            return f"{target.found} serves {', '.join(found.models)}, not {target.served_model}"
        started = start_of(found, place, target.served_model, self._context)
        return TakeIn(started, found.key)

    # --- looking

    def _owned(self) -> frozenset[int]:
        """Pids of engines that have an owner here."""
        started = (owner.started for owner in self._replicas.owners.values())
        return frozenset(one.pid for one in started if one is not None and one.pid is not None)

    def _shares_container(self, found: Found) -> str | None:
        """Another engine that was found in the same container."""
        if found.container_id is None:
            return None
        others = (one for one in self._found.values() if one is not found and one.container_id == found.container_id)
        return next((one.id for one in others), None)

    def _look(self, owned: frozenset[int]) -> tuple[list[_Came], list[int]]:
        """In a thread: engines that came, and pids of those that are gone or have an owner now."""
        table = self._table
        gone = [pid for pid, found in self._found.items() if pid in owned or not _same(table.born(pid), found.born)]
        candidates: dict[int, tuple[CommandLine, float]] = {}
        for pid, argv in table.new():
            if pid in owned or (pid in self._found and pid not in gone):
                continue
            line = read_command_line(argv)
            born = table.born(pid) if line is not None else None
            if line is not None and born is not None and not self._has_agent(pid):
                candidates[pid] = (line, born)
        known = (candidates.keys() | self._found.keys()) - set(gone)
        news = [
            _Came(pid, line, born, table.container(pid))
            for pid, (line, born) in candidates.items()
            if not self._below(pid, known | owned)
        ]
        return news, gone

    def _has_agent(self, pid: int) -> bool:
        """Whether this agent or another one started it."""
        if self._context.processes.replica_of(pid) is not None or self._table.is_marked(pid):
            return True
        containers = self._context.containers
        return containers is not None and containers.replica_of(pid) is not None

    def _below(self, pid: int, known: Iterable[int]) -> bool:
        """Whether one of its ancestors is an engine: then it is a worker of that one."""
        engines, parent = frozenset(known), self._table.parent(pid)
        for _ in range(_ANCESTORS):
            if parent is None or parent <= 1:
                return False
            if parent in engines:
                return True
            parent = self._table.parent(parent)
        return False

    def _take(self, came: _Came, now: float) -> None:
        context, line = self._context, came.line
        epoch = _digest(context.settings.node, context.boot_id, came.pid, came.born)
        # What somebody started is the container, however often Docker starts it again.
        identity = _digest(context.settings.node, came.container_id) if came.container_id is not None else epoch
        name = f"{line.engine}-{line.port}-{identity}"
        if self.find(name) is not None:
            name = f"{line.engine}-{line.port}-{epoch}"
        called = line.called[0] if line.called else ""
        found = Found(
            id=name,
            epoch=epoch,
            pid=came.pid,
            born=came.born,
            line=line,
            since=now,
            started_at=round(context.clock.wall() - max(0.0, _uptime() - came.born), 1),
            figures=EngineFigures(engine_of(line.engine, None), called, None),
            container_id=came.container_id,
        )
        self._found[came.pid] = found
        context.changed()
        log.info("engine_found", found=found.id, pid=found.pid, engine=line.engine, port=line.port)

    async def _drop(self, pid: int) -> None:
        found = self._found.pop(pid)
        if found.task is not None:
            found.task.cancel()
            # Not by suppressing: that would swallow a cancellation of the look itself.
            [failed] = await asyncio.gather(found.task, return_exceptions=True)
            if isinstance(failed, Exception):
                log.warning("found_engine_not_examined", found=found.id, error=repr(failed))
        self._context.changed()
        log.info("found_engine_gone", found=found.id, pid=pid)


_TOO_MANY = Problem(
    code="too_many_found",
    message=f"{MOST_FOUND} engines were found that nobody ordered; more are not looked at",
    hint="End those nobody needs, or take them in with `nebula adopt`",
)


def _same(now: float | None, then: float) -> bool:
    return now is not None and abs(now - then) < 1.0


def _digest(*parts: object) -> str:
    return hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=3).hexdigest()


def _uptime() -> float:
    """Seconds since boot, as processes' beginnings are counted."""
    try:
        return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
