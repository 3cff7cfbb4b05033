"""The data plane of one process: what every request shares, and the one sweep that keeps its time limits.

No request has a timer of its own: once a second all that is open is looked at. That costs nothing per request and a
time limit is at most a second late.
"""

import itertools
import os
import random
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from nebula_core.records.decision import DecisionRecord
from nebula_core.records.inflight import OpenRequest, RequestPhase
from nebula_core.runtime.http import UpstreamClient
from nebula_proxy.adapters.engine_keys import EngineKeys
from nebula_proxy.decisions.known_head import KnownHead
from nebula_proxy.decisions.parameters import ParameterLimits
from nebula_proxy.decisions.prefix_index import MOST_ENTRIES
from nebula_proxy.decisions.quarantine import Death
from nebula_proxy.decisions.retry import RESUME_BUDGET, Budget
from nebula_proxy.decisions.strategies import BUILT_IN, DEFAULT_STRATEGY, Strategy
from nebula_proxy.traffic.authentication import Authenticator
from nebula_proxy.traffic.contexts import Contexts
from nebula_proxy.traffic.ejections import Ejections
from nebula_proxy.traffic.guard import Guard
from nebula_proxy.traffic.key_limits import KeyLimiter
from nebula_proxy.traffic.ledger import Ledger
from nebula_proxy.traffic.meters import Meters
from nebula_proxy.traffic.quarantine import Quarantine
from nebula_proxy.traffic.recorder import Recorder
from nebula_proxy.traffic.request_log import RequestLog
from nebula_proxy.traffic.response_holders import ResponseHolders
from nebula_proxy.traffic.routing_table import RoutingTable
from nebula_proxy.traffic.waiting_room import RoomLimits, WaitingRoom
from nebula_proxy.traffic.watch import Watch, Watched

#: Request heads of clients that are remembered (`decisions/known_head`).
HEADS_KEPT = 1024


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


class Tracing(Protocol):
    """What a request asks of its tracer; see `tracing`. `request` is a `traffic.request.Request`."""

    def attempt(self, request: Any) -> bytes:
        """`traceparent` for the engine that is asked next."""

    def ended(self, request: Any, status: int, outcome: str, detail: str | None) -> None:
        """It is over."""


class Routing(NamedTuple):
    """How this process routes."""

    #: The built-in strategies and those of plug-ins, by name.
    strategies: Mapping[str, Strategy] = BUILT_IN
    #: What a deployment that names none gets.
    default_strategy: str = DEFAULT_STRATEGY
    #: Entries of the prefix indexes of all models.
    prefix_entries: int = MOST_ENTRIES
    #: Whether the keys of different callers share what is known of prefixes.
    prefixes_shared: bool = True
    #: Seeds all digests of prompts, the same in all proxies of a cluster; 0: there is no secret, and none are told.
    secret: int = 0


class OpenExchange(Watched, Protocol):
    """What the plane does with a request that is under way."""

    request_id: bytes
    #: When it arrived, monotonic seconds.
    at: float

    @property
    def phase(self) -> RequestPhase: ...

    def glance(self, now: float) -> OpenRequest:
        """It as a row among those that are open."""

    def record(self, reason: str) -> DecisionRecord:
        """How it stands; `reason` is why somebody wants to know."""

    def cancel(self) -> None:
        """Ends it because somebody who may asks for it."""

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
        recorder: Recorder | None = None,
        room: RoomLimits | None = None,
        parameters: ParameterLimits | None = None,
        allowed_origins: Iterable[str] = (),
        routing: Routing | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.proxy = proxy
        self.guard = guard or Guard()
        self.limits = limits or Limits()
        self.parameters = parameters or ParameterLimits()
        #: Web pages that may read answers (`traffic/cors`).
        self.allowed_origins = frozenset(allowed_origins)
        self.authenticator = Authenticator(required=require_auth)
        self.ejections = Ejections()
        self.ledger: Ledger[OpenExchange] = Ledger()
        self.routing = routing or Routing()
        self.table = RoutingTable(
            engine_keys or EngineKeys(None), self.ejections, proxy, self.ledger.replicas, self.routing.prefix_entries
        )
        self.table.tells_prefixes = self.routing.secret != 0
        self.responses = ResponseHolders()
        #: Strategies that were asked for and could not decide: each is logged once.
        self.fell_back: set[str] = set()
        self.meters = Meters()
        self.log = log or RequestLog(None)
        self.recorder = Recorder() if recorder is None else recorder
        self.client = UpstreamClient(connect_timeout_seconds=self.limits.connect_seconds)
        self.contexts = Contexts(self.client)
        self.watch = Watch(self.ejections)
        self.quarantine = Quarantine(self._lives, self.routing.secret)
        self.budget = Budget()
        self.resume_budget = RESUME_BUDGET
        #: None: nobody traces.
        self.tracer: Tracing | None = None
        #: The process is going away: connections are closed after their answer.
        self.draining = False
        self.turns = itertools.count()
        self.roll = random.random
        self.room = WaitingRoom(room or RoomLimits(), self.roll)
        self.key_limits = KeyLimiter(proxy, lambda: self.table.workers, self.roll)
        self.table.listeners.append(self.room.all_changed)
        self._heads: dict[tuple[bytes, bytes], KnownHead] = {}
        self._id_prefix = f"req-{os.urandom(5).hex()}-".encode("ascii")
        self._ids = itertools.count(1)

    def _lives(self, death: Death) -> bool:
        """Whether an engine that seemed to die has answered since: then nothing is held against it any more."""
        route = self.table.route(death.replica)
        return (
            route is not None
            and route.endpoint.engine_epoch == death.engine_epoch
            and death.replica not in self.ejections.held
        )

    def remember(self, head: KnownHead) -> KnownHead:
        """The one copy of this head; of a thousand different ones the memory starts anew."""
        heads = self._heads
        if len(heads) >= HEADS_KEPT:
            heads.clear()
        return heads.setdefault((head.before, head.after), head)

    def mint_id(self) -> bytes:
        """A request id that no other process makes."""
        return b"%b%x" % (self._id_prefix, next(self._ids))

    def sweep(self, now: float) -> None:
        """Once a second: time limits of what is open, connections kept too long, lines that wait."""
        for exchange in self.ledger:
            exchange.expire(now)
        self.watch.look(list(self.ledger), now)
        if self.quarantine.held:
            self.quarantine.sweep(now)
        self.room.sweep(now)
        self.key_limits.sweep(now)
        self.client.sweep(now)
        self.log.flush()
        self.recorder.tick()

    async def aclose(self) -> None:
        """Ends what is still open, telling each client, and closes every connection to an engine."""
        for exchange in self.ledger:
            exchange.shut()
        await self.contexts.aclose()
        await self.client.aclose()
        self.log.flush()
