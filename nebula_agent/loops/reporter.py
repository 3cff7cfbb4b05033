"""The node's report, once a second: the full one on change and every few seconds, the compact one in between.

A store that is away delays nothing here: the report is made, not delivered, and made anew a second later. The systemd
watchdog is fed by a tick that came through, so a stuck loop is noticed by others.
"""

import asyncio
import os
from contextlib import suppress

import structlog

from nebula_agent.adapters.host import Host
from nebula_agent.decisions.reporting import compact, is_full_due
from nebula_agent.loops.context import Context
from nebula_agent.loops.discovery import Discovery
from nebula_agent.loops.obedience import Obedience
from nebula_agent.loops.replicas import Replicas
from nebula_core.errors import NebulaError
from nebula_core.records.report import NodeReport, Problem
from nebula_core.records.sample import HostSample
from nebula_core.runtime.processes import NotifySocket
from nebula_core.store.store import Store

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
#: A change is told at once, but several within this time together.
GATHER_SECONDS = 0.05
#: A report that the store does not take in this time is dropped: the next one is fresher.
PUBLISH_SECONDS = 2.0
REPORT_TTL_SECONDS = 10.0
#: `/healthz` says stuck when no tick came through for so long.
STUCK_SECONDS = 10.0
#: What waits so long for the data folder's disk is told.
DISK_SILENT_SECONDS = 5.0


class Reporter:
    def __init__(
        self,
        context: Context,
        replicas: Replicas,
        obedience: Obedience,
        store: Store,
        host: Host,
        notify: NotifySocket,
        *,
        simulated: bool,
        discovery: Discovery | None = None,
    ) -> None:
        self.last: NodeReport | None = None
        #: Another agent has this node's name: this one is silent.
        self.suspended = False
        self._context = context
        self._replicas = replicas
        self._obedience = obedience
        self._store = store
        self._host = host
        self._notify = notify
        self._simulated = simulated
        self._discovery = discovery
        self._sequence = 0
        self._published: NodeReport | None = None
        self._full_at: float | None = None
        self._reachable: bool | None = None
        self._ticked_at: float | None = None
        self._due_at = 0.0
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something happened that should not wait for the next second."""
        self._changed.set()

    def healthy(self) -> bool:
        """Whether the loop ticks; may be asked from another thread."""
        at = self._ticked_at
        return at is not None and self._context.clock.monotonic() - at < STUCK_SECONDS

    async def iterate(self) -> None:
        """Waits for the next second or for a change, then reports."""
        now = self._context.clock.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._due_at - now)):
                await self._changed.wait()
        if self._changed.is_set():
            await asyncio.sleep(GATHER_SECONDS)
            self._changed.clear()
        now = self._context.clock.monotonic()
        if now >= self._due_at:
            self._due_at = (
                max(now, self._due_at + TICK_SECONDS) if now - self._due_at < TICK_SECONDS else now + TICK_SECONDS
            )
        await self.report_once()
        self._ticked_at = self._context.clock.monotonic()
        self._notify.watchdog()

    async def report_once(self, *, leaving: bool = False) -> None:
        """Makes a report and publishes it, whole or compact."""
        self._obedience.look_again()
        now = self._context.clock.monotonic()
        report = self._make(await self._host.sample(now), now, leaving=leaving)
        self.last = report
        if self.suspended:
            return
        full = leaving or is_full_due(self._published, self._full_at, report, now)
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                if full:
                    await self._store.publish_report(report, REPORT_TTL_SECONDS, compact=compact(report))
                else:
                    await self._store.publish_delta(compact(report))
        except (NebulaError, TimeoutError) as error:
            # What they have seen is unknown now: the next one is whole.
            self._published = self._full_at = None
            if self._reachable is not False:
                log.warning("report_not_published", error=str(error) or type(error).__name__)
            self._reachable = False
            return
        if self._reachable is False:
            log.info("report_published_again")
        self._reachable = True
        if full:
            self._published, self._full_at = report, now

    def _make(self, host: HostSample, now: float, *, leaving: bool) -> NodeReport:
        """The report of this moment."""
        context = self._context
        silent = context.disk.waiting_seconds() >= DISK_SILENT_SECONDS
        context.problems.set("disk", _disk_silent(context) if silent else None)
        self._sequence += 1
        return NodeReport(
            node=context.settings.node,
            boot_id=context.boot_id,
            sequence=self._sequence,
            agent_pid=os.getpid(),
            version=context.version,
            at=context.clock.wall(),
            host=host,
            gpus=context.gpus.samples,
            replicas=(
                *self._replicas.statuses(now),
                *(() if self._discovery is None else self._discovery.statuses()),
            ),
            problems=(*context.gpus.problems, *context.problems.all()),
            max_epoch=self._obedience.orders.max_epoch,
            simulated=self._simulated,
            images=None if context.images is None else context.images.reported(),
            pulls=() if context.images is None else context.images.pulls(),
            models=None if context.models is None else context.models.reported(),
            fetches=() if context.models is None else context.models.fetches(),
            model_cache=None if context.models is None else context.models.facts(),
            leaving=leaving,
        )


def _disk_silent(context: Context) -> Problem:
    folder = context.files.directory
    return Problem(
        code="disk_silent",
        message=f"the disk of {folder} does not answer: engines go on, new orders wait for it",
        severity="crit",
        hint=f"Look at its mount and its server: findmnt -T {folder}",
    )
