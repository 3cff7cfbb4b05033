"""The path of one request, from its last byte to its closed ledger entry.

**Theory.** An exchange is a small state machine driven by calls, without a task, a future or a queue of its own:

    start ─► entrance ─► picking ─► response_started ─► response_body… ─► finish
      │                     ▲  │                              │
      ▼                     │  ▼                              ▼
    refused                 └─ trouble ─► another attempt │ an error │ a resumed stream │ an error event
                                                client_gone, expire, shut: at any time

It is the sink of the engine's answer and writes to the client's side (`Downstream`). A plain answer it takes itself;
an event stream is taken by a `Stream`, which tells it of the end. Two rules hold it together:

* *Nothing is written before it is worth writing.* The head of a stream waits for the first whole event, a plain
  answer (up to a bound) for its end. So whatever fails before that can still go to another replica.
* *Every way out passes through `finish`,* which closes the ledger, counts and logs; a second call does nothing.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from nebula_core.records.decision import DecisionRecord
from nebula_core.records.inflight import OpenRequest, RequestPhase
from nebula_core.runtime.http import Call, Failure, Headers, Sink
from nebula_core.wire import openai
from nebula_core.wire.openai import Dialect
from nebula_proxy.decisions import refusal as refusals
from nebula_proxy.decisions.calls import Call as InferenceCall
from nebula_proxy.decisions.ejection import Evidence
from nebula_proxy.decisions.header_lines import (
    advice_lines,
    chosen_lines,
    engine_lines,
    passed_on,
    refusal_lines,
    wants_retry_after,
)
from nebula_proxy.decisions.progress import TELLING_BYTES, Flow
from nebula_proxy.decisions.quarantine import Death
from nebula_proxy.decisions.refusal import Refusal
from nebula_proxy.decisions.resume import COMPLETIONS, asking
from nebula_proxy.decisions.retry import (
    Circumstances,
    Step,
    Trouble,
    evidence_of,
    is_charged,
    is_death,
    is_unreached,
    may_be_repeated,
    next_step,
    pause_after,
)
from nebula_proxy.decisions.whole_answer import trouble_told
from nebula_proxy.decisions.wishes import traceparent
from nebula_proxy.traffic.accounts import note_trouble, record_of, row_of
from nebula_proxy.traffic.closing import close
from nebula_proxy.traffic.downstream import Downstream
from nebula_proxy.traffic.entrance import claim, enter
from nebula_proxy.traffic.picking import hold, others, pick, why_not
from nebula_proxy.traffic.plane import Plane
from nebula_proxy.traffic.request import Request
from nebula_proxy.traffic.resuming import ContinuedStream, NotedStream, Resumption, Unwanted
from nebula_proxy.traffic.routing_table import JSON, Route
from nebula_proxy.traffic.stream import TROUBLE_OF, Stream
from nebula_proxy.traffic.translation import as_chat
from nebula_proxy.traffic.waiting_room import Hold

log = structlog.get_logger(__name__)

#: What the client's side is counted as when nobody is left to get a status.
CLIENT_GONE = 499
#: Looked at on every request; a member of an enumeration costs a lookup each time.
_RESPONSES = Dialect.RESPONSES


class Exchange(Request):
    """One request of one client, and what drives it."""

    __slots__ = (
        "_begun",
        "_content_type",
        "_downstream",
        "_extra",
        "_fresh",
        "_held",
        "_held_bytes",
        "_last_at",
        "_over",
        "_paused_at",
        "_resumption",
        "_status",
        "_stream",
        "_streaming",
        "_unreached",
        "_upstream",
        "_upstream_seconds",
    )

    def __init__(
        self, plane: Plane, downstream: Downstream, call: InferenceCall, headers: Mapping[bytes, bytes], body: bytes
    ) -> None:
        """A complete request, its framing checked; names of `headers` are in lower case."""
        super().__init__(plane, call, headers, body)
        self._downstream = downstream
        #: The answer that is being given by an engine.
        self._upstream: Call | None = None
        self._fresh = False
        #: Attempts that found nobody; see `decisions/retry`.
        self._unreached = 0
        # The answer of the current attempt.
        self._status = 0
        self._content_type = b""
        self._extra = b""
        #: Its taker, where it is an event stream.
        self._stream: Stream | None = None
        #: What its stream needs to go on elsewhere; None when it cannot.
        self._resumption: Resumption | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        #: The client has got bytes of an answer.
        self._begun = False
        #: That answer is an event stream.
        self._streaming = False
        self._over = False
        # Times, monotonic seconds.
        #: The latest bytes of a plain answer.
        self._last_at = 0.0
        self._paused_at: float | None = None
        self._upstream_seconds = 0.0

    @property
    def over(self) -> bool:
        return self._over

    # In

    def start(self) -> None:
        """Checks the request and sends it on its way. Never raises: a bug of ours is an answer too."""
        try:
            refusal = enter(self, self)
            if refusal is None:
                refusal = self._attempt() if self.caller.limits is None else self._claim()  # type: ignore[union-attr]
            if refusal is not None:
                self._refuse(refusal)
        except Exception as error:
            self._failed(error)

    def _claim(self) -> Refusal | None:
        """Goes on once the limits of its key have room: at once, or when the store has answered."""
        refusal = claim(self, self)
        if refusal is None and self.claim is not None and self.claim.taken is not None:
            return self._attempt()
        return refusal

    def claim_settled(self, refusal: Refusal | None) -> None:
        """The store has answered for the limits of its key."""
        try:
            if refusal is None:
                refusal = self._attempt()
            if refusal is not None:
                self._refuse(refusal)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        name = self.request_id.decode("ascii")
        log.error("exchange_failed", request_id=name, exc_info=error)
        self._give_up(refusals.internal_error(name))

    # To an engine

    def _attempt(self) -> Refusal | None:
        """Picks a replica and sends the request there, or lets it wait for one; the refusal when neither can be."""
        plane = self.plane
        # Who was let in before (a retry, a resume) does not stand in line again.
        if plane.room.waiting and self.attempts == 0 and (ahead := self._ahead()) is not None:
            return hold(self, ahead, self)
        found = pick(self)
        if isinstance(found, Route):
            return self._go(found)
        return hold(self, found, self) if isinstance(found, Hold) else found

    def _ahead(self) -> Hold | None:
        """Others wait for this model: nobody goes past them, but by an operator's order."""
        routes = self.routes
        if routes is None or self.wishes.replica is not None or not self.plane.room.stands(routes.view.deployment):
            return None
        return Hold.SATURATED if routes.routes else Hold.STARTING

    def take_turn(self) -> bool:
        """It is the first in line and something has changed: tries to go on; False when it must go on waiting."""
        try:
            routes = None if self.facts is None else self.plane.table.models.get(self.facts.model)
            if routes is None:
                self.end_waiting(None)
                return True
            self.routes = routes
            found = pick(self)
            if not isinstance(found, Route):
                return False  # whatever stands in the way now may be gone before its time is over
            refusal = self._go(found)
            if refusal is not None:
                self._refuse(refusal)
        except Exception as error:
            self._failed(error)
        return True

    def end_waiting(self, refusal: Refusal | None) -> None:
        """It leaves the waiting room unserved; None: because its time there is over."""
        if not self._over:
            self._refuse(why_not(self) if refusal is None else refusal)

    def _go(self, route: Route) -> Refusal | None:
        """Sends the request to the replica that was picked, in words that its engine understands."""
        if (
            self.call.dialect is _RESPONSES
            and not route.speaks_responses
            and (refusal := self._translate()) is not None
        ):
            return refusal
        self._send(route, fresh=False)
        return None

    def _translate(self) -> Refusal | None:
        """From here on it is a chat, and its client's side makes a Responses answer of it."""
        translated = as_chat(self, self._downstream)
        if isinstance(translated, Refusal):
            return translated
        self._downstream = translated
        return None

    def _send(self, route: Route, *, fresh: bool) -> None:
        plane = self.plane
        body = self.body
        path = self.call.path
        headers = self.headers
        if self.facts.stream:  # type: ignore[union-attr] # read at the entrance
            if not self._begun:
                self._resumption = Resumption.of(self, route)
                if self._resumption is not None:
                    body = asking(body)
            elif self._resumption is not None:
                path = COMPLETIONS
                body = self._resumption.outgoing
        served = route.endpoint.served_model
        if served is not None:
            body = openai.with_model(body, served)
        if plane.tracer is not None:
            self.trace = plane.tracer.attempt(self)
        elif b"traceparent" in headers:
            self.trace = traceparent(headers)
        trace = self.trace
        self.attempts += 1
        self._fresh = fresh
        self._status = 0
        if self._stream is not None:
            self._leave_stream(self._stream)
        if self._held:
            self._held.clear()
        self._held_bytes = 0
        data = b"%bx-request-id: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
            route.head(path, headers.get(b"content-type", JSON)),
            self.request_id,
            b"" if trace is None else b"traceparent: %b\r\n" % trace,
            len(body),
            body,
        )
        self.sent_at = self._last_at = time.monotonic()
        self._upstream = plane.client.request(route.address, data, self, fresh=fresh)
        if self._paused_at is not None:
            self._upstream.pause()

    # From an engine (the sink)

    def response_started(self, status: int, headers: Headers) -> Sink | None:
        now = self.first_byte_at = self._last_at = time.monotonic()
        self._upstream_seconds += now - self.sent_at
        self._status = status
        content_type, self._extra = passed_on(headers, JSON)
        self._content_type = content_type
        streams = status == 200 and content_type.startswith(b"text/event-stream")
        if self.plane.ejections.held and not streams:  # its first event will tell
            self._speaks(made=status == 200 and self.call.computes)
        if streams:
            stream = self._stream = self._taker(now)
            return stream
        return Unwanted(self, status) if self._begun else None

    def _speaks(self, *, made: bool) -> None:
        """Speaks for its replica, against which something may be held; `made`: by something that the engine made."""
        ejections = self.plane.ejections
        replica = self.route.replica  # type: ignore[union-attr] # it is sent to one
        if made:
            ejections.clear(replica)
        else:
            ejections.answered(replica)

    def first_event(self) -> None:
        """The first event of the engine's stream has come."""
        if self.plane.ejections.held:
            self._speaks(made=True)

    def _taker(self, now: float) -> Stream:
        resumption = self._resumption
        if resumption is None:
            return Stream(self, self, self._downstream, now)
        if self._begun:
            return ContinuedStream(self, self, self._downstream, now, resumption)
        return NotedStream(self, self, self._downstream, now, resumption)

    def response_body(self, body: bytes, *, ended: bool) -> None:
        """An answer that is no event stream: held back until complete, up to a bound."""
        if ended:
            self._upstream = None  # its connection may serve another exchange from now on
        if self._begun:
            self.sent_bytes += len(body)
            self._last_at = time.monotonic()
            if ended:
                self._downstream.end(body)
                self.finish(self._status, "ok" if self._status < 400 else "engine_error")
            elif body:
                self._downstream.write(body)
            return
        if not ended:
            self._last_at = time.monotonic()
            self._held.append(body)
            self._held_bytes += len(body)
            if self._held_bytes > self.plane.limits.hold_bytes:
                whole = b"".join(self._held)
                self._held.clear()
                self.begin(whole, time.monotonic())
            return
        if self._held:
            body = b"".join([*self._held, body])
            self._held.clear()
        status = self._status
        if status == 200:
            if b'"abort"' in body and openai.read_events(b"data:" + body).aborted:
                self.trouble(Trouble.BROKEN, "the engine cut the answer short")
                return
            self.usage = openai.read_usage(body)
        elif self.call.dialect is _RESPONSES and openai.lacks_the_path(status, body):
            self._ask_in_chat()
            return
        elif self._is_trouble(status, body):
            return
        self._respond(status, body)

    def response_failed(self, failure: Failure) -> None:
        self._upstream = None
        self.trouble(TROUBLE_OF[failure.kind], failure.detail)

    def _ask_in_chat(self) -> None:
        """The engine has no Responses API: while it runs nobody asks it again, and this request is asked in chat."""
        route = self.route
        assert route is not None  # noqa: S101 - it has answered
        route.speaks_responses = False
        refusal = self._translate()
        if refusal is not None:
            self._refuse(refusal)
        else:
            self._send(route, fresh=False)

    def _is_trouble(self, status: int, body: bytes) -> bool:
        """Whether a whole answer other than 200 was trouble that has been dealt with; else the client shall have it."""
        route, facts = self.route, self.facts
        assert route is not None and facts is not None  # noqa: S101, PT018 - it was sent to one, for what it asks
        told = trouble_told(status, body, keyed=route.keyed, adapter=facts.model != route.endpoint.model)
        if told is not None:
            return self.trouble(*told, body)
        if status >= 500:
            self.plane.ejections.strike(route.replica, route.endpoint.engine_epoch, Evidence.ERROR, time.monotonic())
        return False

    # Trouble

    def trouble(self, trouble: Trouble, detail: str, body: bytes | None = None) -> bool:
        """Decides and does what follows. False: the engine's own answer `body` shall reach the client as it is."""
        plane = self.plane
        route = self.route
        assert route is not None  # noqa: S101 - an attempt is under way
        now = time.monotonic()
        note_trouble(self, trouble, detail)
        evidence = Evidence.LOST if is_death(trouble, detail) else evidence_of(trouble)
        if evidence is not None:
            plane.ejections.strike(route.replica, route.endpoint.engine_epoch, evidence, now)
        else:
            plane.ejections.gave_up(route.replica)
        resumption = self._resumption
        if self._begun and resumption is not None and resumption.is_complete():
            self._downstream.end(resumption.ending())
            self.finish(200, "ok", detail)
            return True
        if is_unreached(trouble):
            self._unreached += 1
        quarantined = self._is_quarantined(route, trouble, detail, now)
        step = next_step(
            Circumstances(
                trouble,
                begun=self._begun,
                retried=self.retried,
                fresh=self._fresh,
                others=others(self, now),
                budget=plane.budget.open,
                allowed=not self.wishes.no_retry
                and self.wishes.replica is None
                and may_be_repeated(trouble, self.call, self.body),
                resumable=self._begun and resumption is not None and resumption.prepare(self.plane.contexts, route),
                resumed=self.resumes,
                resume_budget=plane.resume_budget.open,
                unreached=self._unreached,
                quarantined=quarantined,
            )
        )
        match step:
            case Step.RESUME:
                self._resume(route, trouble, detail)
            case Step.FRESH:
                self._send(route, fresh=True)
            case Step.OTHER:
                self._retry(route, trouble, detail)
            case Step.END_STREAM:
                self._end_stream(trouble, f"{detail}; it was there when another engine died" if quarantined else detail)
            case Step.ANSWER:
                if self.retried:
                    self.meter.retry("failed")
                if body is not None and trouble is Trouble.BUSY:
                    return False
                self._refuse(self._refusal_for(trouble, route, detail), detail)
        return True

    def _is_quarantined(self, route: Route, trouble: Trouble, detail: str, now: float) -> bool:
        """Notes the request where an engine has died; whether it was there at too many deaths, and goes nowhere else."""
        if not is_death(trouble, detail):
            return False
        plane = self.plane
        company = plane.ledger.replicas.get(route.replica, 1)
        plane.quarantine.died(self.body, Death(route.replica, route.endpoint.engine_epoch, now, company))
        seconds = plane.quarantine.refuses(self.body, now)
        if seconds is None:
            return False
        log.warning(
            "request_quarantined",
            request_id=self.request_id.decode("ascii"),
            replica=route.replica,
            seconds=seconds,
            key=self.caller.key_id if self.caller is not None else None,
        )
        return True

    def _retry(self, route: Route, trouble: Trouble, detail: str) -> None:
        plane = self.plane
        if is_charged(trouble):
            plane.budget = plane.budget.spent()
        self.retried += 1
        self._leave(route, pause_after(trouble, detail), partial(self._try_again, trouble, detail))

    def _try_again(self, trouble: Trouble, detail: str) -> None:
        refusal = self._attempt()
        if refusal is None:
            self.meter.retry(str(trouble))
        else:
            self._refuse(refusal, detail)

    def _resume(self, route: Route, trouble: Trouble, detail: str) -> None:
        """The stream goes on from another replica."""
        plane = self.plane
        plane.resume_budget = plane.resume_budget.spent()
        if self.resumes == 0:
            self._unreached = 0
        self.resumes += 1
        self._leave(route, pause_after(trouble, detail), partial(self._go_on, route, trouble, detail))

    def _go_on(self, route: Route, trouble: Trouble, detail: str) -> None:
        refusal = self._attempt()
        if refusal is not None:
            self._refuse(refusal, f"{detail}; {refusal.message}")
            return
        self.meter.retry("resumed")
        log.info(
            "stream_resumed",
            request_id=self.request_id.decode("ascii"),
            trouble=str(trouble),
            from_replica=route.replica,
            to_replica=self.route.replica if self.route is not None else None,
        )

    def _leave(self, route: Route, pause: float, go: Callable[[], None]) -> None:
        """The replica has failed it: `go` takes it elsewhere, at once or when the deaths of this moment are known."""
        self.tried = route.replica
        if pause == 0.0:
            go()
        else:
            asyncio.get_running_loop().call_later(pause, self._pause_over, go)

    def _pause_over(self, go: Callable[[], None]) -> None:
        if self._over:
            return  # its client has left, or somebody has ended it
        try:
            go()
        except Exception as error:
            self._failed(error)

    def _refusal_for(self, trouble: Trouble, route: Route, detail: str) -> Refusal:
        plane = self.plane
        match trouble:
            case Trouble.REFUSED | Trouble.CONNECT_TIMEOUT:
                return refusals.no_replica(route.endpoint.model, f"{route.replica} does not answer", plane.roll())
            case Trouble.HUNG:
                return refusals.engine_hangs(route.replica)
            case Trouble.FIRST_BYTE_TIMEOUT | Trouble.GAP_TIMEOUT:
                return refusals.engine_timeout(route.replica, plane.limits.first_byte_seconds)
            case Trouble.BUSY:
                return refusals.overloaded(route.endpoint.model, plane.room.retry_after(route.endpoint.deployment))
            case _:
                return refusals.engine_died(route.replica, detail)

    def _end_stream(self, trouble: Trouble, detail: str) -> None:
        """After the first byte: say so, in the stream where there is one; never a silent end."""
        timed_out = trouble in {Trouble.GAP_TIMEOUT, Trouble.HUNG}
        if self._resumption is not None:
            self.meter.retry("resume_failed")
            detail = self._resumption.excuse(detail)
        if self._streaming:
            code = "engine_timeout" if timed_out else "engine_died"
            message = f"The stream cannot go on: {detail}"
            # The answer has a proper end and the connection goes on: closing it would hit a client's next request.
            self._downstream.end(openai.error_event(code, message, dialect=self.call.dialect))
        else:
            self._downstream.cut()
        self.finish(504 if timed_out else 502, "broken", detail)

    # Out

    def begin(self, body: bytes, now: float) -> None:
        """The first bytes for the client of an answer whose length is not known."""
        self._begun = True
        self.sent_bytes += len(body)
        if self._stream is not None:
            self._streaming = True
            ttft = self.ttft = now - self.at
            self.meter.ttft.observe(ttft)
            if len(self.body) >= TELLING_BYTES:
                self.plane.watch.first_token(self.meter.model, now - self.sent_at, len(self.body))
        if self.ticket is not None:
            self.ticket.read()
        if self.call.dialect is _RESPONSES:
            self._note_response(body, now)
        self._downstream.begin(self._status, self._head(now), body)
        if self.retried:
            self.meter.retry("served")

    def _respond(self, status: int, body: bytes) -> None:
        now = time.monotonic()
        self.sent_bytes = len(body)
        head = self._head(now)
        if status != 200:
            head += advice_lines(status, self._retry_after(status, head))
        elif self.call.dialect is _RESPONSES:
            self._note_response(body, now)
        self._downstream.respond(status, head, body)
        if self.retried:
            self.meter.retry("served")
        self.finish(status, "ok" if status < 400 else "engine_error")

    def _retry_after(self, status: int, head: bytes) -> int | None:
        """Seconds, where the engine asks for patience without naming any."""
        if not wants_retry_after(status, head):
            return None
        return self.plane.room.retry_after("" if self.route is None else self.route.endpoint.deployment)

    def _note_response(self, body: bytes, now: float) -> None:
        """Who goes on from this response must come to the same engine."""
        route = self.route
        if route is not None:
            self.plane.responses.note(body, route.replica, route.endpoint.engine_epoch, now)

    def _head(self, now: float) -> bytes:
        route = self.route
        assert route is not None  # noqa: S101 - an engine has answered
        # Ours is what is neither the engine's time, nor the wait for its first whole event or for room.
        spent = self._upstream_seconds + (self.wait_seconds or 0.0) + (now - self.first_byte_at)
        overhead = self.overhead = max(0.0, now - self.at - spent)
        self.meter.overhead.observe(overhead)
        extra = self._extra
        if self.claim is not None:
            extra += self.plane.key_limits.headers(self.claim)
        went = chosen_lines(route.replica, self.decision)
        return engine_lines(self._content_type, extra, self.request_id, went, overhead)

    def _refuse(self, refusal: Refusal, detail: str | None = None) -> None:
        """An answer of ours; where a stream has begun, its end."""
        if self._begun:
            self._end_stream(Trouble.BUSY, detail or refusal.message)
            return
        if refusal.status in {429, 503} and self.attempts == 0:
            self.meter.admission("reject", refusal.code)
        head = refusal_lines(refusal, self.request_id)
        if self.claim is not None:
            head += self.plane.key_limits.headers(self.claim)
        body = refusal.body()
        self.sent_bytes = len(body)
        self._downstream.respond(refusal.status, head, body)
        self.finish(refusal.status, refusal.code, detail or refusal.message)

    def engine_done(self) -> None:
        """The engine's answer is complete: its connection may serve another exchange from now on."""
        self._upstream = None

    def abandon(self) -> None:
        """The rest of the engine's answer is of no use: closing the connection makes it stop."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.cancel()

    def finish(self, status: int, outcome: str, detail: str | None = None) -> None:
        """The end, whatever it is; what comes after the first call is ignored."""
        if self._over:
            return
        self._over = True
        if status == 200 and self.plane.quarantine.held:
            self.plane.quarantine.served(self.body, time.monotonic())
        route = self.route
        stream = self._stream
        heard = self.heard_at
        if stream is not None:
            self._leave_stream(stream)  # which holds this exchange
        if route is not None and heard > route.heard_at:
            route.heard_at = heard
        if self.usage is None and self._resumption is not None:
            self.usage = self._resumption.usage()
        close(self, status, outcome, detail)

    def _leave_stream(self, stream: Stream) -> None:
        self.events += stream.events
        self._stream = None

    # From the client and the clock

    def client_gone(self) -> None:
        """The client closed its connection: the engine is told at once."""
        if self._over:
            return
        self.abandon()
        if self.route is not None:
            self.plane.ejections.gave_up(self.route.replica)
        self.finish(CLIENT_GONE, "client_gone")

    def pause(self) -> None:
        """The client is slow: stop reading from the engine."""
        self._paused_at = time.monotonic()
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        self._paused_at = None
        self._last_at = time.monotonic()
        if self._stream is not None:
            self._stream.last_at = self._last_at
        if self._upstream is not None:
            self._upstream.resume()

    def _give_up(self, refusal: Refusal) -> None:
        """Nebula itself has failed."""
        if self._over:
            return
        self.abandon()
        if self._begun:
            self._downstream.cut()
            self.finish(500, "internal_error")
        else:
            self._refuse(refusal)

    def expire(self, now: float) -> None:
        """Ends the exchange when a time limit has passed."""
        limits = self.plane.limits
        if self._over or self._upstream is None:
            return
        if self._paused_at is not None:
            if now - self._paused_at > limits.write_seconds:
                self.abandon()
                self._downstream.cut()
                self.finish(CLIENT_GONE, "client_slow")
        elif not self._begun:
            if now - self.sent_at > limits.first_byte_seconds:
                self.abandon()
                self.trouble(Trouble.FIRST_BYTE_TIMEOUT, f"no answer within {limits.first_byte_seconds:g} s")
        elif now - (self._last_at if self._stream is None else self._stream.last_at) > limits.gap_seconds:
            self.abandon()
            self.trouble(Trouble.GAP_TIMEOUT, f"nothing for {limits.gap_seconds:g} s")

    # For the watch

    @property
    def heard_at(self) -> float:
        stream = self._stream
        if stream is not None:  # whose head the server before the engine sends, as it refuses: by itself
            return stream.last_at if stream.events else 0.0
        return self._last_at if self._status == 200 and self.call.computes else 0.0

    def on_engine(self) -> bool:
        return self._upstream is not None and not self._over

    def flow(self, now: float) -> Flow | None:
        facts = self.facts
        if facts is None or self._paused_at is not None or not self.call.generates:
            return None
        size = len(self.body)
        stream = self._stream
        if stream is None or not stream.events:
            # `image_url`, `video_url`, `audio_url`; this is asked once a second of engines that are silent.
            return Flow(now - self.sent_at, 0, None, size, facts.stream is True, b'_url"' in self.body)
        gap = None if stream.events < 2 else (stream.last_at - self.first_byte_at) / (stream.events - 1)
        return Flow(now - stream.last_at, stream.events, gap, size)

    def has_elsewhere(self, now: float) -> bool:
        return others(self, now) > 0

    def engine_hangs(self, detail: str) -> None:
        """Its replica is found hanging: the stream goes on elsewhere or ends, what has not begun goes elsewhere."""
        if self.on_engine():
            self.abandon()
            self.trouble(Trouble.HUNG, detail)

    def shut(self) -> None:
        """The process ends."""
        model = self.facts.model if self.facts is not None else "-"
        refusal = refusals.no_replica(model, "this proxy is stopping", self.plane.roll())
        self._stop(refusal, "proxy_stopping", "broken", "The proxy is stopping", close=True)

    def cancel(self) -> None:
        """Somebody who may has ended it: the client is told, and the engine at once."""
        refusal = refusals.cancelled()
        self._stop(refusal, refusal.code, "cancelled", refusal.message)

    def _stop(self, refusal: Refusal, code: str, outcome: str, message: str, *, close: bool = False) -> None:
        """Ends it from our side: by `refusal` before the first byte, by an error event in a stream."""
        if self._over:
            return
        self.abandon()
        if not self._begun:
            self._refuse(refusal)
        elif self._streaming:
            event = openai.error_event(code, message, origin="nebula", dialect=self.call.dialect)
            self._downstream.end(event, close=close)
            self.finish(refusal.status, outcome, message)
        else:
            self._downstream.cut()
            self.finish(refusal.status, outcome, message)

    # For those who look

    @property
    def phase(self) -> RequestPhase:
        if self._upstream is None and not self._begun:
            return "waiting"
        if self.facts is None or not self.facts.stream:
            return "running"
        return "streaming" if self._begun else "prefill"

    def glance(self, now: float) -> OpenRequest:
        """A row among the open requests."""
        stream = self._stream
        last = self._last_at if stream is None else stream.last_at
        row = row_of(
            self,
            now,
            phase=self.phase,
            silent=None if last == 0.0 else max(0.0, now - last),
            paused=self._paused_at is not None,
            client=self._downstream.peer,
        )
        return row if stream is None else row.model_copy(update={"events": self.events + stream.events})

    def record(self, reason: str) -> DecisionRecord:
        """How it stands."""
        return record_of(self, reason)
