"""Log lines of replicas travel through the store only while somebody watches."""

from collections.abc import Sequence

import structlog

from nebula_core.records.views import LogLine
from nebula_core.store import keys
from nebula_core.store.line import Argument, Line

log = structlog.get_logger(__name__)

#: A watcher renews within this time, or the agent stops sending.
WATCH_SECONDS = 15
LINES_KEPT_SECONDS = 60
_SLICE = 50


class Logs:
    _commands: Line
    _waiting: Line

    async def watch_logs(self, replica: str) -> None:
        """Asks the replica's agent for its lines for the next 15 seconds."""
        await self._commands.ask("SET", keys.logwatch(replica), "1", "EX", WATCH_SECONDS)

    async def watched_replicas(self) -> set[str]:
        """Every replica whose lines somebody wants."""
        found: set[str] = set()
        cursor = 0
        while True:
            cursor, page = await self._commands.ask("SCAN", cursor, "MATCH", f"{keys.LOGWATCH}*", "COUNT", 1000)
            found.update(key.removeprefix(keys.LOGWATCH) for key in page)
            if int(cursor) == 0:
                return found

    async def is_watched(self, replicas: Sequence[str]) -> set[str]:
        """Those of `replicas` whose lines somebody wants."""
        found: set[str] = set()
        for start in range(0, len(replicas), _SLICE):
            names = replicas[start : start + _SLICE]
            flags = await self._commands.ask("MGET", *(keys.logwatch(name) for name in names))
            found.update(name for name, flag in zip(names, flags, strict=True) if flag is not None)
        return found

    async def append_logs(self, replica: str, lines: Sequence[LogLine]) -> None:
        if not lines:
            return
        stream = keys.logs(replica)
        commands: list[list[Argument]] = [
            ["XADD", stream, "MAXLEN", "~", keys.LOG_LINES_KEPT, "*", "json", line.to_json()] for line in lines
        ]
        commands.append(["EXPIRE", stream, LINES_KEPT_SECONDS])
        await self._commands.ask_all(commands)

    async def read_logs(
        self, replica: str, after: str | None = None, count: int = 500, block_ms: int = 0
    ) -> list[LogLine]:
        """Lines after an id (None: all that are kept), waiting up to `block_ms` for the first; 0 does not wait."""
        command: list[Argument] = ["XREAD", "COUNT", count]
        if block_ms > 0:
            command += ["BLOCK", block_ms]
        command += ["STREAMS", keys.logs(replica), after or "0-0"]
        line = self._waiting if block_ms > 0 else self._commands
        reply = await line.ask(*command, patience=block_ms / 1000)
        found: list[LogLine] = []
        for entry_id, fields in reply[0][1] if reply else []:
            try:
                found.append(LogLine.from_json(fields.get("json", "")).model_copy(update={"id": entry_id}))
            except ValueError as error:
                log.warning("log_line_unreadable", replica=replica, id=entry_id, error=type(error).__name__)
        return found
