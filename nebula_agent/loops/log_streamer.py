"""Log lines of engines to whoever watches: nothing is read or sent while nobody does.

When somebody begins to watch, the last lines there are come first. What is sent is bounded per second; what had to be left
out is counted in the next line's `gap` (for skipped bytes, which nobody has read, by a usual line's length).
"""

from pathlib import Path

import structlog

from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.log_files import Follower
from nebula_agent.loops.replicas import Replicas
from nebula_core.errors import StoreUnavailable
from nebula_core.records.views import LogLine
from nebula_core.runtime.clock import Clock
from nebula_core.security.text import clean_text
from nebula_core.store.store import Store

log = structlog.get_logger(__name__)

EVERY_SECONDS = 0.5
FIRST_LINES = 200
#: Per replica and look.
MOST_LINES = 500
MOST_BYTES = 256 * 1024
LONGEST_LINE = 4096
_USUAL_LINE_BYTES = 120


class LogStreamer:
    def __init__(self, store: Store, replicas: Replicas, clock: Clock) -> None:
        self._store = store
        self._replicas = replicas
        self._clock = clock
        self._disk = DiskThreads("lines")
        self._followers: dict[str, tuple[Path, Follower]] = {}
        self._gaps: dict[str, int] = {}

    async def iterate(self) -> None:
        """One look at who watches and what came."""
        try:
            names = list(self._replicas.owners)
            watched = await self._store.is_watched(names) if names else set()
            for replica in self._followers.keys() - watched:
                del self._followers[replica]
                self._gaps.pop(replica, None)
            for replica in sorted(watched):
                await self._send(replica)
        except StoreUnavailable:
            # Watchers ask again when it is back; until then there is nobody to send to.
            self._followers.clear()

    async def _send(self, replica: str) -> None:
        owner = self._replicas.owners.get(replica)
        if owner is None:
            return
        path = owner.log_file
        known = self._followers.get(replica)
        if known is None or known[0] != path:
            follower = Follower(path)
            self._followers[replica] = (path, follower)
            lines = await self._disk.do(replica, follower.start, FIRST_LINES)
        else:
            piece = await self._disk.do(replica, known[1].poll, MOST_BYTES)
            lines = piece.lines
            self._left_out(replica, piece.skipped_bytes // _USUAL_LINE_BYTES)
        if len(lines) > MOST_LINES:
            self._left_out(replica, len(lines) - MOST_LINES)
            lines = lines[-MOST_LINES:]
        if not lines:
            return
        at = self._clock.wall()
        gap = self._gaps.pop(replica, 0)
        await self._store.append_logs(
            replica,
            [
                LogLine(
                    at=at,
                    source=replica,
                    text=clean_text(line, max_length=LONGEST_LINE),
                    gap=gap if first else 0,
                )
                for first, line in zip((True, *([False] * len(lines))), lines, strict=False)
            ],
        )

    def _left_out(self, replica: str, lines: int) -> None:
        if lines > 0:
            self._gaps[replica] = self._gaps.get(replica, 0) + lines
