"""Telemetry: latest wins, may be lost. One round trip per report; the stream tells readers what to fetch.

The full report is a string with a TTL (readable, found by a reader that starts) and its note in the stream says only
that it came; the compact record of each second is in the stream itself. A stream read in batches costs a reader
1-3 % of a core at 1,000 nodes, pub/sub 11-21 % (performance, 6).
"""

from typing import Final

from nebula_core.records.report import NodeDelta, NodeReport, ProxyReport
from nebula_core.store import keys
from nebula_core.store.line import Argument, Line

#: Field names of the stream, short because they travel a thousand times a second.
FULL: Final = "f"
DELTA: Final = "d"
PROXY: Final = "p"


class Telemetry:
    _commands: Line

    async def publish_report(self, report: NodeReport, ttl: float = 10.0) -> None:
        """Sets a node's full report and tells the readers."""
        await self._commands.ask_all(
            [_set(keys.report(report.node), report.to_json(), ttl), _note(FULL, report.node)],
        )

    async def publish_delta(self, delta: NodeDelta) -> None:
        """The compact record of one second."""
        await self._commands.ask(*_note(DELTA, delta.to_json()))

    async def publish_proxy(self, report: ProxyReport, ttl: float = 10.0) -> None:
        await self._commands.ask_all(
            [_set(keys.proxy(report.proxy), report.to_json(), ttl), _note(PROXY, report.proxy)],
        )

    async def withdraw_proxy(self, proxy: str) -> None:
        """A proxy that ends on purpose is gone at once instead of silent for its TTL."""
        await self._commands.ask_all([["DEL", keys.proxy(proxy)], _note(PROXY, proxy)])


def _set(key: str, value: str, ttl: float) -> list[Argument]:
    return ["SET", key, value, "PX", max(1, round(ttl * 1000))]


def _note(field: str, value: str) -> list[Argument]:
    return ["XADD", keys.TELEMETRY, "MAXLEN", "~", keys.TELEMETRY_KEPT, "*", field, value]
