"""The data plane of one process: what every request shares, and the one sweep that keeps its time limits.

No request has a timer of its own: once a second all that is open is looked at. That costs nothing per request and a
time limit is at most a second late.
"""

import itertools
import os
import random
from typing import NamedTuple, Protocol

from nebula_core.runtime.http import UpstreamClient
from nebula_proxy.adapters.engine_keys import EngineKeys
from nebula_proxy.decisions.retry import Budget
from nebula_proxy.traffic.authentication import Authenticator
from nebula_proxy.traffic.ejections import Ejections
from nebula_proxy.traffic.ledger import Ledger
from nebula_proxy.traffic.meters import Meters
from nebula_proxy.traffic.request_log import RequestLog
from nebula_proxy.traffic.routing_table import RoutingTable


class Limits(NamedTuple):
    """Bounds of the data plane, in bytes and seconds."""

    max_body_bytes: int = 8 * 1024 * 1024
    #: A request head must be complete in this time, a body must come at 1 KiB/s after a grace of 5 s.
    header_seconds: float = 10.0
    body_grace_seconds: float = 5.0
    body_bytes_per_second: float = 1024.0
    #: Above the idle time of common load balancers (60 s), so that they close first.
    idle_seconds: float = 65.0
    #: A client that takes nothing for so long is dropped.
    write_seconds: float = 30.0
    connect_seconds: float = 1.0
    #: For a plain answer this is the whole time of generation.
    first_byte_seconds: float = 600.0
    #: Longest silence between two events of a stream.
    gap_seconds: float = 120.0
    #: Answers up to this size are held back until complete, so that a death in the middle can be retried.
    hold_bytes: int = 1024 * 1024
    #: An event of a stream may not be longer.
    event_bytes: int = 1024 * 1024


class OpenExchange(Protocol):
    """What the plane does with a request that is under way."""

    def expire(self, now: float) -> None:
        """Ends it if one of its time limits has passed."""

    def shut(self) -> None:
        """Ends it because the process ends."""


class Plane:
    """Shared by all requests of a process; everything here is touched from the event loop only."""

    def __init__(
        self,
        *,
        proxy: str = "",
        limits: Limits | None = None,
        require_auth: bool = True,
        engine_keys: EngineKeys | None = None,
        log: RequestLog | None = None,
    ) -> None:
        self.proxy = proxy
        self.limits = limits or Limits()
        self.authenticator = Authenticator(required=require_auth)
        self.ejections = Ejections()
        self.table = RoutingTable(engine_keys or EngineKeys(None), self.ejections, proxy)
        self.ledger: Ledger[OpenExchange] = Ledger()
        self.meters = Meters()
        self.log = log or RequestLog(None)
        self.client = UpstreamClient(connect_timeout_seconds=self.limits.connect_seconds)
        self.budget = Budget()
        #: The process is going away: connections are closed after their answer.
        self.draining = False
        self.turns = itertools.count()
        self.roll = random.random
        self._id_prefix = f"req-{os.urandom(5).hex()}-".encode("ascii")
        self._ids = itertools.count(1)

    def mint_id(self) -> bytes:
        """A request id that no other process makes."""
        return b"%b%x" % (self._id_prefix, next(self._ids))

    def sweep(self, now: float) -> None:
        """Once a second: time limits of what is open, connections kept too long, lines that wait."""
        for exchange in self.ledger:
            exchange.expire(now)
        self.client.sweep(now)
        self.log.flush()

    async def aclose(self) -> None:
        """Ends what is still open, telling each client, and closes every connection to an engine."""
        for exchange in self.ledger:
            exchange.shut()
        await self.client.aclose()
        self.log.flush()
