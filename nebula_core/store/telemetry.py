"""Telemetry: latest wins, may be lost. One round trip per report; the stream tells readers what to fetch.

The full report is a string with a TTL (readable, found by a reader that starts); its note in the stream says that it
came, how it differs (a digest) and what its figures are. The compact record of each second is in the stream itself. A stream read in batches costs a reader
1-3 % of a core at 1,000 nodes, pub/sub 11-21 % (performance, 6).
"""

from typing import Final

from nebula_core.records.base import revised
from nebula_core.records.compact import NodeDelta
from nebula_core.records.report import NodeReport, ProxyReport, routing_digest
from nebula_core.store import keys
from nebula_core.store.line import Argument, Line

#: Field names of the stream, short because they travel a thousand times a second.
FULL: Final = "f"
DELTA: Final = "d"
PROXY: Final = "p"
#: In the note of a full report, beside `DELTA`: the report's `routing` digest.
DIGEST: Final = "r"


class Telemetry:
    _commands: Line

    async def publish_report(self, report: NodeReport, ttl: float = 10.0, *, compact: NodeDelta | None = None) -> None:
        """Sets a node's full report and tells the readers.

        With its `compact` form in the note, those who know a report with the same routing digest need not fetch it.
        """
        told: list[Argument] = [FULL, report.node]
        if compact is not None:
            digest = routing_digest(report)
            report = revised(report, {"routing": digest})
            told += [DIGEST, digest, DELTA, compact.to_json()]
        await self._commands.ask_all([_set(keys.report(report.node), report.to_json(), ttl), _note(*told)])

    async def publish_delta(self, delta: NodeDelta) -> None:
        """The compact record of one second."""
        await self._commands.ask(*_note(DELTA, delta.to_json()))

    async def publish_proxy(self, report: ProxyReport, ttl: float = 10.0) -> None:
        await self._commands.ask_all(
            [_set(keys.proxy(report.proxy), report.to_json(), ttl), _note(PROXY, report.proxy)],
        )

    async def any_proxy(self) -> bool:
        """Whether a report of any proxy is there."""
        cursor: int | str = 0
        while True:
            cursor, page = await self._commands.ask("SCAN", cursor, "MATCH", f"{keys.PROXY}*", "COUNT", 1000)
            if page or int(cursor) == 0:
                return bool(page)

    async def withdraw_proxy(self, proxy: str) -> None:
        """A proxy that ends on purpose is gone at once instead of silent for its TTL."""
        await self._commands.ask_all([["DEL", keys.proxy(proxy)], _note(PROXY, proxy)])


def _set(key: str, value: str, ttl: float) -> list[Argument]:
    return ["SET", key, value, "PX", max(1, round(ttl * 1000))]


def _note(*fields: Argument) -> list[Argument]:
    return ["XADD", keys.TELEMETRY, "MAXLEN", "~", keys.TELEMETRY_KEPT, "*", *fields]
