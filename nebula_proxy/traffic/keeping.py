"""The routing snapshot on disk: read when a worker starts, written while the store answers.

The workers of a machine share one file. Each writes it when what it routes by has changed, and once a minute in any case so
that its age stays true, but never within ten seconds of another's writing.

A snapshot that is too old is not taken: the keys in it may have been revoked since (docs/decisions/0008).
"""

import asyncio
import time
from pathlib import Path

import structlog

from nebula_core.security.files import write_secret
from nebula_core.store import kept
from nebula_core.store.watcher import Changed, Watcher
from nebula_proxy.traffic.table_feeder import TableFeeder

log = structlog.get_logger(__name__)

WRITE_SECONDS = 10.0
REFRESH_SECONDS = 60.0
#: Once the store answers, nodes known from disk alone have so long to be heard of.
HEARD_SECONDS = 30.0


class Keeper:
    """`max_age_seconds`: an older file is left alone."""

    def __init__(self, folder: Path, watcher: Watcher, feeder: TableFeeder, *, max_age_seconds: float) -> None:
        self._path = folder / kept.FILE_NAME
        self._watcher = watcher
        self._feeder = feeder
        self._max_age_seconds = max_age_seconds
        self._written = -1
        self._reachable_since: float | None = None
        self._complained = False

    def load(self) -> bool:
        """Routes by what is on disk until the store says something else; whether there was anything."""
        try:
            found = kept.read(self._path)
        except ValueError as error:
            log.warning(
                "snapshot_not_read", path=str(self._path), error=str(error), hint="the store will tell all anew"
            )
            return False
        if found is None:
            return False
        age = max(0.0, time.time() - found.at)
        if age > self._max_age_seconds:
            log.warning(
                "snapshot_too_old", path=str(self._path), age_seconds=round(age), hint="waiting for the store instead"
            )
            return False
        now = time.monotonic()
        self._feeder.reports.restore(found.nodes, now)
        self._watcher.assume(found.snapshot, age)
        self._feeder.take(found.snapshot, Changed(resynced=True))
        log.info(
            "snapshot_loaded",
            age_seconds=round(age, 1),
            revision=found.snapshot.revision,
            nodes=len(found.nodes),
            keys=len(found.snapshot.keys),
        )
        return True

    async def step(self) -> None:
        """Writes the file if it is time, and lets go of nodes that only the disk knew."""
        now = time.monotonic()
        watcher = self._watcher
        if not watcher.reachable or watcher.doubt is not None:
            self._reachable_since = None
            return
        if self._reachable_since is None:
            self._reachable_since = now
        elif now - self._reachable_since > HEARD_SECONDS:
            self._feeder.forget(self._feeder.reports.unheard())
        age = self._file_age()
        changed = self._feeder.changes != self._written
        if age is None or age > REFRESH_SECONDS or (changed and age > WRITE_SECONDS):
            await self._write()

    async def _write(self) -> None:
        changes = self._feeder.changes
        reports = [node.report for node in self._feeder.reports.nodes.values()]
        content = await kept.written(self._watcher.snapshot, reports, time.time())
        try:
            await asyncio.to_thread(write_secret, self._path, content)
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("snapshot_not_written", path=str(self._path), error=error.strerror)
            return
        self._complained = False
        self._written = changes

    def _file_age(self) -> float | None:
        try:
            return time.time() - self._path.stat().st_mtime
        except OSError:
            return None
