"""What is seen of the running start while it runs: its monitor, in a task of its own, and whether its log grows."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from nebula_agent.adapters import log_files
from nebula_agent.adapters.disk_threads import DiskSilent
from nebula_agent.adapters.runtime import Started
from nebula_agent.decisions.lifecycle import Limits
from nebula_agent.decisions.start_deadline import start_deadline
from nebula_agent.engines.registry import engine_of
from nebula_agent.loops.context import Context
from nebula_agent.loops.engine_monitor import EngineMonitor
from nebula_agent.loops.how_run import program_of
from nebula_core.records.placement import Placement

#: How long a look at the log of an engine that loads waits for the disk.
LOG_SECONDS = 1.0


class EngineWatch:
    """One at a time: begun with a start, ended with it. `on_change` is called when the owner should look again."""

    def __init__(self, context: Context, on_change: Callable[[], None]) -> None:
        self.monitor: EngineMonitor | None = None
        #: Monotonic seconds from which the start deadline counts; None: nothing runs.
        self.begun_at: float | None = None
        self._context = context
        self._on_change = on_change
        self._started: Started | None = None
        self._task: asyncio.Task[None] | None = None
        self._log_size: int | None = None
        self._log_grew_at: float | None = None

    def begin(self, placement: Placement, started: Started, key: str | None, *, proven: bool) -> None:
        context, spec = self._context, placement.spec
        # Of an engine that was adopted while it loaded, from the adoption: the wall clock may have been set meanwhile.
        self.begun_at = context.clock.monotonic()
        self._started, self._log_size, self._log_grew_at = started, None, None
        self.monitor = EngineMonitor(
            engine=engine_of(spec.engine, started.detected),
            model=started.served_model or placement.deployment,
            spec=spec,
            started=started,
            key=key,
            http=context.http,
            clock=context.clock,
            proven=proven,
            program=program_of(placement, context),
            on_change=self._on_change,
            canary_idle_seconds=context.settings.health.canary_idle_seconds,
            canary_seconds=context.settings.health.canary_seconds,
        )
        self._task = asyncio.create_task(self.monitor.run(), name=f"monitor:{placement.replica}")

    async def end(self) -> None:
        task, self._task, self.monitor = self._task, None, None
        self.begun_at = None
        if task is not None:
            task.cancel()
            # Not by suppressing: that would swallow a cancellation of whoever calls.
            await asyncio.gather(task, return_exceptions=True)

    async def log_grew_at(self) -> float | None:
        """When the log of an engine that is not ready yet last grew, as far as it was looked at; None: it never did."""
        started, monitor = self._started, self.monitor
        if started is None or monitor is None or monitor.proven:
            return None
        try:
            size = await self._context.disk.look(LOG_SECONDS, log_files.size, Path(started.log_file))
        except DiskSilent:
            return self._log_grew_at
        if self._log_size is not None and size != self._log_size:
            self._log_grew_at = self._context.clock.monotonic()
        self._log_size = size
        return self._log_grew_at

    def ready_for(self) -> float | None:
        """For how many seconds it has been ready; None: it never was."""
        monitor = self.monitor
        if monitor is None or monitor.ready_at is None:
            return None
        return self._context.clock.monotonic() - monitor.ready_at

    def learned(self) -> dict[str, object]:
        """What is to be kept of a start that has become ready."""
        ready_for, started = self.ready_for(), self._started
        if self.monitor is None or not self.monitor.proven:
            return {}
        learned: dict[str, object] = {"proven": True}
        if started is not None and ready_for is not None:
            # By the wall clock, as it is only shown: an earlier agent may have made the start.
            loading = self._context.clock.wall() - ready_for - started.started_at
            learned["load_seconds"] = round(max(0.0, loading), 3)
        return learned

    def limits(self, placement: Placement, started: Started | None) -> Limits:
        """When this start counts as hung, or as failed to start."""
        health = self._context.settings.health
        engine = engine_of(placement.spec.engine, None if started is None else started.detected)
        weights = None if started is None else started.weights_bytes
        # Without a counter of steps a long prefill looks like standing still.
        steps = engine is not None and bool(engine.names.steps)
        return Limits(
            start_deadline=start_deadline(placement.spec.start_deadline_seconds, weights),
            suspect=health.suspect_seconds if steps else health.frozen_seconds,
            frozen=health.frozen_seconds,
            silent=health.silent_seconds,
            unhealthy=health.unhealthy_seconds,
        )
