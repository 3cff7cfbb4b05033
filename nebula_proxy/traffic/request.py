"""One request of one client, as far as it is known: filled in on its way, read by everybody who speaks of it.

The exchange *is* its request (it inherits from this class) so that what is asked for on every request costs no second
object. The rooms of the path take a `Request`: the entrance writes who calls and what for, the picking writes where
it goes, the exchange writes what came of it, the closing reads it all.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nebula_core.records.decision import AttemptRecord
from nebula_core.wire.openai import Facts, Usage
from nebula_proxy.decisions.calls import Call
from nebula_proxy.decisions.candidates import Candidate
from nebula_proxy.decisions.routing import Choice
from nebula_proxy.decisions.strategies import Ask
from nebula_proxy.decisions.waiting import Place
from nebula_proxy.decisions.wishes import NO_WISHES, Wishes, request_id
from nebula_proxy.traffic.authentication import Pass
from nebula_proxy.traffic.key_limits import KeyClaim
from nebula_proxy.traffic.ledger import Ticket
from nebula_proxy.traffic.meters import ModelMeter
from nebula_proxy.traffic.plane import OpenExchange, Plane
from nebula_proxy.traffic.routing_table import ModelRoutes, Route
from nebula_proxy.traffic.waiting_room import Waiting


class Trace(NamedTuple):
    """The ids of a traced request."""

    trace_id: int
    span_id: int
    #: 0: nobody above it.
    parent_id: int
    sampled: bool
    #: Of the spans of its attempts, as their engines were told.
    attempts: list[int]


class Request:
    """What is known of a request. Times are monotonic seconds, durations seconds; None is not known (yet)."""

    __slots__ = (
        "ask",
        "at",
        "attempts",
        "body",
        "call",
        "caller",
        "choice",
        "claim",
        "decision",
        "events",
        "facts",
        "failed",
        "first_byte_at",
        "headers",
        "meter",
        "overhead",
        "place",
        "plane",
        "request_id",
        "resumes",
        "retried",
        "route",
        "routes",
        "sent_at",
        "sent_bytes",
        "ticket",
        "trace",
        "tracing",
        "tried",
        "ttft",
        "usage",
        "wait_seconds",
        "weighed",
        "wishes",
    )

    def __init__(self, plane: Plane, call: Call, headers: Mapping[bytes, bytes], body: bytes) -> None:
        """A complete request, its framing checked; names of `headers` are in lower case."""
        self.plane = plane
        self.call = call
        self.headers = headers
        self.body = body
        self.at = time.monotonic()
        self.request_id = request_id(headers) or plane.mint_id()
        # By the entrance.
        self.caller: Pass | None = None
        self.facts: Facts | None = None
        self.wishes: Wishes = NO_WISHES
        self.meter: ModelMeter = plane.meters.nobody
        self.routes: ModelRoutes | None = None
        self.ticket: Ticket[OpenExchange] | None = None
        #: What it has (or waits for) of its key's limits, where these are shared between workers.
        self.claim: KeyClaim | None = None
        #: Where it stands in the waiting room, while it does.
        self.place: Place[Waiting] | None = None
        #: Spent in the waiting room; None when it did not have to.
        self.wait_seconds: float | None = None
        # By the picking, anew for each attempt.
        self.route: Route | None = None
        self.decision: str | None = None
        self.ask: Ask | None = None
        #: What the decision was and what it was made from: enough to explain it later, if anybody asks.
        self.choice: Choice | None = None
        self.weighed: Sequence[Candidate] = ()
        #: The replica of the attempt before.
        self.tried: str | None = None
        #: Requests sent to engines, and those of them that went to another replica after trouble.
        self.attempts = 0
        self.retried = 0
        #: How often another replica went on with a stream that had begun.
        self.resumes = 0
        #: Attempts that failed, as they are told in the record.
        self.failed: tuple[AttemptRecord, ...] = ()
        # By the exchange.
        self.sent_at = 0.0
        self.first_byte_at = 0.0
        #: `traceparent` as the engine gets it.
        self.trace: bytes | None = None
        #: Its ids, where requests are traced.
        self.tracing: Trace | None = None
        self.sent_bytes = 0
        #: Of streams, those that have ended.
        self.events = 0
        self.usage: Usage | None = None
        self.overhead: float | None = None
        self.ttft: float | None = None

    @property
    def trace_id(self) -> str | None:
        """32 hex digits."""
        return None if self.trace is None else self.trace[3:35].decode("ascii")

    def tpot(self, seconds: float) -> float | None:
        """Mean time per token after the first, of a stream that took `seconds`; by its events where no usage was sent."""
        ttft = self.ttft
        if ttft is None:
            return None
        usage = self.usage
        tokens = None if usage is None else usage.completion_tokens
        if tokens is None:
            tokens = self.events
        return (seconds - ttft) / (tokens - 1) if tokens > 1 else None
