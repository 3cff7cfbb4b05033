"""The store as the house uses it: records in, records out, a limit on every wait.

One class made of one small module per concern; see there. Every method raises StoreUnavailable when the store does
not answer in time and StoreUnfit when it must not be used as it is. redis-py is met in `line` alone.
"""

from types import TracebackType
from typing import Self

from nebula_core.store.claims import Claims
from nebula_core.store.commands import Commands
from nebula_core.store.durable import Durable
from nebula_core.store.holdings import Holdings
from nebula_core.store.inflight import Inflight
from nebula_core.store.journal import Journal
from nebula_core.store.leadership import Leadership
from nebula_core.store.limits import Limits
from nebula_core.store.line import Line, StoreSettings
from nebula_core.store.logs import Logs
from nebula_core.store.telemetry import Telemetry

_LEASE_CONNECTIONS = 2
#: How long a request may be held up at most by a store that does not answer for the limits of its key.
LIMITS_TIMEOUT_SECONDS = 0.5


class Store(Durable, Leadership, Telemetry, Journal, Logs, Claims, Limits, Commands, Inflight, Holdings):
    """Opens no connection until the first call. Close it with `aclose()` or use it as an async context."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self._commands = self.open_line(connections=settings.max_connections)
        # Those who wait for logs and events hold their connections: never the ones others need.
        self._waiting = self.open_line(connections=settings.max_connections)
        self._lease = self.open_line(
            connections=_LEASE_CONNECTIONS,
            timeout_seconds=min(settings.lease_timeout_seconds, settings.socket_timeout_seconds),
        )

        # Requests wait for its first answer: better none than a late one.
        self._limits = self.open_line(
            connections=1, timeout_seconds=min(LIMITS_TIMEOUT_SECONDS, settings.socket_timeout_seconds)
        )

    def open_line(self, *, connections: int, timeout_seconds: float | None = None) -> Line:
        """A line of its own to the same store; whoever opens it closes it."""
        return Line(
            self.settings,
            timeout_seconds=self.settings.socket_timeout_seconds if timeout_seconds is None else timeout_seconds,
            connections=connections,
        )

    async def clock(self) -> float:
        """The store's own time, Unix seconds: to see how far a node's clock is off, for nothing else."""
        seconds, microseconds = await self._commands.ask("TIME")
        return int(seconds) + int(microseconds) / 1e6

    async def aclose(self) -> None:
        for line in (self._commands, self._waiting, self._limits, self._lease):
            await line.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
