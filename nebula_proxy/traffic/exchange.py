"""The path of one request, from its last byte to its closed ledger entry.

**Theory.** An exchange is a small state machine driven by calls, without a task, a future or a queue of its own:

    start ─► checks ─► attempt ─► response_started ─► response_body… ─► finished
      │                  ▲  │                              │
      ▼                  │  ▼                              ▼
    refused              └─ trouble ─► another attempt │ an error │ an error event
                                                client_gone, expire, shut: at any time

It is the sink of the engine's answer and writes to the client's side (`Downstream`). Three rules hold it together:

* *Nothing is written before it is worth writing.* The head of a stream waits for the first whole event, a plain
  answer (up to a bound) for its end. So whatever fails before that can still go to another replica.
* *Only whole events leave.* The tail of a read that is not a whole event waits for the next read. So when an engine
  dies in the middle of an event, the error event that follows is not glued to half a line.
* *Every way out passes through `_finish`,* which closes the ledger, counts and logs; a second call does nothing.

Per event of a stream this costs one `endswith`, three substring searches, a clock reading, and one write.
"""

import time
from collections.abc import Mapping

import structlog

from nebula_core.runtime.http import Call, Failure, FailureKind, Headers
from nebula_core.wire import openai, sse
from nebula_core.wire.openai import BadBody, Facts, Usage
from nebula_proxy.decisions import refusal as refusals
from nebula_proxy.decisions.admission import nothing_ready
from nebula_proxy.decisions.calls import Call as InferenceCall
from nebula_proxy.decisions.candidates import untried
from nebula_proxy.decisions.ejection import Evidence
from nebula_proxy.decisions.refusal import Refusal
from nebula_proxy.decisions.retry import Circumstances, Step, Trouble, evidence_of, is_charged, next_step
from nebula_proxy.decisions.routing import DEFAULT_STRATEGY, STRATEGIES, Choice, NoChoice, choose, explain
from nebula_proxy.decisions.wishes import NO_WISHES, Wishes, read_wishes, request_id, traceparent
from nebula_proxy.traffic.authentication import Pass
from nebula_proxy.traffic.downstream import Downstream
from nebula_proxy.traffic.ledger import Ticket
from nebula_proxy.traffic.meters import ModelMeter
from nebula_proxy.traffic.plane import OpenExchange, Plane
from nebula_proxy.traffic.request_log import RequestLine
from nebula_proxy.traffic.routing_table import ModelRoutes, Route

log = structlog.get_logger(__name__)

#: Headers of an engine that reach the client; all others are the engine's own affair (reliability T17).
_PASSED = frozenset({b"cache-control", b"retry-after", b"openai-processing-ms"})
_JSON = b"application/json"
#: What the client's side is counted as when nobody is left to get a status.
CLIENT_GONE = 499

_TROUBLE_OF = {
    FailureKind.REFUSED: Trouble.REFUSED,
    FailureKind.CONNECT_TIMEOUT: Trouble.CONNECT_TIMEOUT,
    FailureKind.STALE: Trouble.STALE,
    FailureKind.LOST: Trouble.LOST,
    FailureKind.MALFORMED: Trouble.MALFORMED,
}


class Exchange:
    """One request of one client."""

    __slots__ = (
        "_at",
        "_attempts",
        "_began_at",
        "_begun",
        "_body",
        "_call",
        "_content_type",
        "_decision",
        "_downstream",
        "_extra",
        "_facts",
        "_first_byte_at",
        "_fresh",
        "_headers",
        "_held",
        "_held_bytes",
        "_itl",
        "_last",
        "_last_at",
        "_meter",
        "_model",
        "_over",
        "_overhead",
        "_pass",
        "_passing",
        "_path",
        "_paused_at",
        "_plane",
        "_request_id",
        "_rest",
        "_retried",
        "_route",
        "_sent_at",
        "_sent_bytes",
        "_status",
        "_streams",
        "_ticket",
        "_tried",
        "_ttft",
        "_upstream_seconds",
        "_usage",
        "_wishes",
    )

    def __init__(
        self, plane: Plane, downstream: Downstream, call: InferenceCall, headers: Mapping[bytes, bytes], body: bytes
    ) -> None:
        """A complete request, its framing checked; names of `headers` are in lower case."""
        self._plane = plane
        self._downstream = downstream
        self._path = call
        self._headers = headers
        self._body = body
        self._at = time.monotonic()
        self._request_id = request_id(headers) or plane.mint_id()
        self._pass: Pass | None = None
        self._facts: Facts | None = None
        self._wishes: Wishes = NO_WISHES
        self._meter: ModelMeter = plane.meters.nobody
        self._model: ModelRoutes | None = None
        self._ticket: Ticket[OpenExchange] | None = None
        self._route: Route | None = None
        self._decision: str | None = None
        self._call: Call | None = None
        self._tried: str | None = None
        self._attempts = 0
        self._retried = 0
        self._fresh = False
        # The answer of the current attempt.
        self._status = 0
        self._content_type = b""
        self._extra = b""
        self._streams = False
        self._rest = b""
        self._held: list[bytes] = []
        self._held_bytes = 0
        #: A stream has begun and no part of an event is held back.
        self._passing = False
        # What the client has got.
        self._begun = False
        self._last = b""
        self._sent_bytes = 0
        self._usage: Usage | None = None
        self._over = False
        # Times, monotonic seconds.
        self._sent_at = 0.0
        self._first_byte_at = 0.0
        self._began_at = 0.0
        self._last_at = 0.0
        self._paused_at: float | None = None
        self._upstream_seconds = 0.0
        self._overhead: float | None = None
        self._ttft: float | None = None

    @property
    def request_id(self) -> bytes:
        return self._request_id

    @property
    def over(self) -> bool:
        return self._over

    # In

    def start(self) -> None:
        """Checks the request and sends it on its way. Never raises: a bug of ours is an answer too."""
        try:
            refusal = self._enter()
            if refusal is None:
                refusal = self._attempt()
            if refusal is not None:
                self._refuse(refusal)
        except Exception:
            name = self._request_id.decode("ascii")
            log.exception("exchange_failed", request_id=name)
            self._give_up(refusals.internal_error(name))

    def _enter(self) -> Refusal | None:
        """Everything that must hold before a replica is looked for."""
        plane = self._plane
        checked = self._pass = plane.authenticator.check(self._headers)
        if checked is None:
            return refusals.invalid_key()
        facts = openai.read_facts(self._body)
        if isinstance(facts, BadBody):
            return refusals.bad_request(facts.message, param=facts.param, hint=facts.hint)
        self._facts = facts
        wishes = read_wishes(self._headers)
        if isinstance(wishes, Refusal):
            return wishes
        self._wishes = wishes
        model = facts.model
        if not checked.may_use(model):
            return refusals.model_not_allowed(model, checked.principal.name)
        routes = plane.table.models.get(model)
        if routes is None:
            if not plane.table.known:
                return refusals.no_replica(model, "this proxy has not heard of the cluster yet", plane.roll())
            return refusals.model_not_found(model, [name for name in plane.table.models if checked.may_use(name)])
        self._model = routes
        self._meter = plane.meters.of(model)
        if wishes.strategy is not None and wishes.strategy not in STRATEGIES:
            return refusals.bad_request(
                f"There is no strategy {wishes.strategy!r}", param="x-nebula-strategy", hint=", ".join(STRATEGIES)
            )
        if wishes.replica is not None and not checked.operator:
            return refusals.pin_not_allowed()
        most = checked.max_inflight
        if most is not None and plane.ledger.keys.get(checked.key_id, 0) >= most:
            return refusals.rate_limited(most, plane.roll())
        self._ticket = plane.ledger.open(self, model, None if most is None else checked.key_id)
        budget = plane.budget
        if budget.left < budget.reserve:
            plane.budget = budget.earned()
        return None

    # To an engine

    def _attempt(self) -> Refusal | None:
        """Picks a replica and sends the request there; the refusal when there is none."""
        chosen = self._choose()
        if isinstance(chosen, Refusal):
            return chosen
        plane = self._plane
        choice, route = chosen
        self._route = route
        self._decision = explain(choice.strategy, choice.reason, choice.score, choice.of)
        if plane.ejections:
            plane.ejections.trying(route.replica, route.endpoint.engine_epoch, time.monotonic())
        self._ticket.move(route.replica)  # type: ignore[union-attr] # opened by _enter
        self._meter.route(choice.strategy, choice.reason)
        self._send(route, fresh=False)
        return None

    def _choose(self) -> tuple[Choice, Route] | Refusal:
        plane = self._plane
        model = self._model
        assert model is not None  # noqa: S101 - set by _enter, for the type checker
        now = self._at if self._attempts == 0 else time.monotonic()
        name = model.view.model
        candidates = plane.table.candidates(model, plane.ledger.replicas, now)
        pinned = self._wishes.replica
        if pinned is not None:
            # An operator's wish is an order: neither standing nor load stand in its way.
            for candidate in candidates:
                route = model.route(candidate.replica)
                if candidate.replica == pinned and route is not None:
                    self._meter.admission("admit", "pinned")
                    return Choice(candidate, "pinned", "pinned", 0.0, 1), route
            return refusals.no_replica(name, f"{pinned} is not one of its ready replicas", plane.roll())
        strategy = self._wishes.strategy or model.strategy or DEFAULT_STRATEGY
        choice = choose(candidates, strategy, next(plane.turns), without=self._tried)
        if choice is NoChoice.NOBODY:
            view = model.view
            return nothing_ready(
                name, ejected=len(candidates), starting=view.starting, wanted=view.wanted, roll=plane.roll()
            )
        if choice is NoChoice.SATURATED:
            return refusals.overloaded(name, plane.roll())
        if self._attempts == 0:
            self._meter.admitted += 1
        route = model.route(choice.candidate.replica)
        if route is None:
            raise LookupError(choice.candidate.replica)  # candidates come from these routes
        return choice, route

    def _send(self, route: Route, *, fresh: bool) -> None:
        body = self._body
        headers = self._headers
        content_type = headers.get(b"content-type", _JSON)
        head = b"%bcontent-type: %b\r\nx-request-id: %b\r\n" % (
            route.head(self._path.path),
            content_type,
            self._request_id,
        )
        if b"traceparent" in headers and (trace := traceparent(headers)) is not None:
            head += b"traceparent: %b\r\n" % trace
        self._attempts += 1
        self._fresh = fresh
        self._status = 0
        self._streams = False
        self._rest = b""
        self._held.clear()
        self._held_bytes = 0
        self._sent_at = self._last_at = time.monotonic()
        data = b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        self._call = self._plane.client.request(route.address, data, self, fresh=fresh)
        if self._paused_at is not None:
            self._call.pause()

    # From an engine (the sink)

    def response_started(self, status: int, headers: Headers) -> None:
        now = self._first_byte_at = self._last_at = time.monotonic()
        self._upstream_seconds += now - self._sent_at
        self._status = status
        content_type = b""
        extra = b""
        for name, value in headers:
            if name == b"content-type":
                content_type = value
            elif name in _PASSED:
                extra += b"%b: %b\r\n" % (name, value)
        self._content_type = content_type or _JSON
        self._extra = extra
        self._streams = status == 200 and content_type.startswith(b"text/event-stream")
        if self._plane.ejections:
            self._plane.ejections.clear(self._route.replica)  # type: ignore[union-attr] # it is sent to one

    def response_body(self, body: bytes, *, ended: bool) -> None:
        if (
            self._passing
            and not ended
            and body.endswith(b"\n\n")
            and not (b'"usage"' in body or b'"error"' in body or b'"abort"' in body)  # openai.worth_reading
        ):
            # A token like most: whole events in the middle of a stream, and nothing to be read in them.
            self._downstream.write(body)
            now = time.monotonic()
            self._itl(now - self._last_at)
            self._last_at = now
            self._last = body
            self._sent_bytes += len(body)
            return
        if ended:
            self._call = None  # its connection may serve another exchange from now on
        if not self._streams:
            self._plain(body, ended=ended)
            return
        if self._rest:
            body = self._rest + body
            self._rest = b""
        if ended:
            self._last_events(body)
            return
        if not body.endswith(b"\n\n"):
            whole = sse.whole_events(body)
            body, self._rest = body[:whole], body[whole:]
        if body:
            if openai.worth_reading(body) and not self._read_events(body):
                return
            now = time.monotonic()
            self._last = body
            if self._begun:
                self._sent_bytes += len(body)
                self._itl(now - self._last_at)
                self._last_at = now
                self._downstream.write(body)
            else:
                self._last_at = now
                self._begin(body, now)
        self._passing = not self._rest
        if self._rest and len(self._rest) > self._plane.limits.event_bytes:
            self._abandon()
            self._trouble(Trouble.MALFORMED, "an event without an end")

    def _last_events(self, body: bytes) -> None:
        """The engine has ended its stream properly framed; whether it is finished is for its events to say."""
        if body and openai.worth_reading(body) and not self._read_events(body):
            return
        dialect = self._path.dialect
        now = time.monotonic()
        last = body if openai.is_closed(body, dialect) else self._last + body
        if not openai.is_finished(last, dialect):
            whole = body[: sse.whole_events(body)]
            if self._begun and whole:
                self._downstream.write(whole)
            self._trouble(Trouble.UNFINISHED, "the stream ended unfinished")
            return
        if not openai.is_closed(last, dialect):
            # An engine that ends without the mark: a client must be able to tell an end from a break.
            body = (body if not body or body.endswith(b"\n\n") else body + b"\n\n") + openai.DONE_EVENT
        if self._begun:
            self._sent_bytes += len(body)
            if body:
                self._itl(now - self._last_at)
            self._downstream.end(body)
        else:
            self._begin(body, now)
            self._downstream.end()
        self._finish(200, "ok")

    def _read_events(self, events: bytes) -> bool:
        """Notes usage; False when the engine says in these events that it cannot go on: then all is done."""
        news = openai.read_events(events)
        if news.usage is not None:
            self._usage = news.usage
        if news.bad_at is None:
            return True
        sound = events[: news.bad_at]
        self._abandon()
        detail = "the engine cut the answer short" if news.aborted else str(news.error)
        if self._begun or sound:
            now = time.monotonic()
            if self._begun:
                if sound:
                    self._downstream.write(sound)
            else:
                self._begin(sound, now)
            self._trouble(Trouble.BROKEN, detail)
        elif news.error_code is not None and 400 <= news.error_code < 500 and news.error_code != 429:
            # The request itself is wrong: the engine's words reach the client as they are.
            self._begin(events, time.monotonic())
            self._downstream.end()
            self._finish(news.error_code, "engine_error", detail)
        else:
            busy = news.error_code in {429, 503}
            self._trouble(Trouble.BUSY if busy else Trouble.BROKEN, detail)
        return False

    def _plain(self, body: bytes, *, ended: bool) -> None:
        """An answer that is no event stream: held back until complete, up to a bound."""
        if self._begun:
            self._sent_bytes += len(body)
            self._last_at = time.monotonic()
            if ended:
                self._downstream.end(body)
                self._finish(self._status, "ok" if self._status < 400 else "engine_error")
            elif body:
                self._downstream.write(body)
            return
        if not ended:
            self._last_at = time.monotonic()
            self._held.append(body)
            self._held_bytes += len(body)
            if self._held_bytes > self._plane.limits.hold_bytes:
                whole = b"".join(self._held)
                self._held.clear()
                self._begin(whole, time.monotonic())
            return
        if self._held:
            body = b"".join([*self._held, body])
            self._held.clear()
        status = self._status
        if status == 200:
            if b'"abort"' in body and openai.read_events(b"data:" + body).aborted:
                self._trouble(Trouble.BROKEN, "the engine cut the answer short")
                return
            self._usage = openai.read_usage(body)
        elif (trouble := self._trouble_in(status, body)) is not None and self._trouble(
            trouble, f"status {status}", body
        ):
            return
        self._respond(status, body)

    def _trouble_in(self, status: int, body: bytes) -> Trouble | None:
        """What a whole answer other than 200 says about the engine; None when it is the request's own fault."""
        route = self._route
        if status in {429, 503} or (status == 500 and b"after shutdown" in body):
            return Trouble.BUSY  # vLLM says 500 "… after shutdown" while it drains: it never ran
        if status == 401 and route is not None and route.keyed:
            return Trouble.BROKEN  # our key, not the client's: the engine was started anew
        if status >= 500 and route is not None:
            self._plane.ejections.strike(route.replica, route.endpoint.engine_epoch, Evidence.ERROR, time.monotonic())
        return None

    def response_failed(self, failure: Failure) -> None:
        self._call = None
        if failure.kind is FailureKind.LOST and self._streams and self._rest_is_finished():
            return
        self._trouble(_TROUBLE_OF[failure.kind], failure.detail)

    def _rest_is_finished(self) -> bool:
        """An engine may close without the end of its framing after a stream that says itself that it is over."""
        if not self._begun or self._rest or not openai.is_closed(self._last, self._path.dialect):
            return False
        self._downstream.end()
        self._finish(200, "ok")
        return True

    # Trouble

    def _trouble(self, trouble: Trouble, detail: str, body: bytes | None = None) -> bool:
        """Decides what follows. False: the engine's own answer `body` shall reach the client as it is."""
        plane = self._plane
        route = self._route
        assert route is not None  # noqa: S101 - an attempt is under way
        now = time.monotonic()
        evidence = evidence_of(trouble)
        if evidence is not None:
            plane.ejections.strike(route.replica, route.endpoint.engine_epoch, evidence, now)
        else:
            plane.ejections.gave_up(route.replica)
        step = next_step(
            Circumstances(
                trouble,
                begun=self._begun,
                retried=self._retried,
                fresh=self._fresh,
                others=self._others(route, now),
                budget=plane.budget.open,
                allowed=not self._wishes.no_retry and self._wishes.replica is None,
            )
        )
        match step:
            case Step.FRESH:
                self._send(route, fresh=True)
            case Step.OTHER:
                self._retry(route, trouble, detail)
            case Step.END_STREAM:
                self._end_stream(trouble, detail)
            case Step.ANSWER:
                if self._retried:
                    self._meter.retry("failed")
                if body is not None and trouble is Trouble.BUSY:
                    return False
                self._refuse(self._refusal_for(trouble, route, detail), detail)
        return True

    def _others(self, route: Route, now: float) -> int:
        model = self._plane.table.models.get(route.endpoint.model)
        if model is None:
            return 0
        self._model = model
        candidates = self._plane.table.candidates(model, self._plane.ledger.replicas, now)
        return untried(candidates, route.replica)

    def _retry(self, route: Route, trouble: Trouble, detail: str) -> None:
        plane = self._plane
        if is_charged(trouble):
            plane.budget = plane.budget.spent()
        self._retried += 1
        self._tried = route.replica
        refusal = self._attempt()
        if refusal is None:
            self._meter.retry(str(trouble))
        else:
            self._refuse(refusal, detail)

    def _refusal_for(self, trouble: Trouble, route: Route, detail: str) -> Refusal:
        plane = self._plane
        match trouble:
            case Trouble.REFUSED | Trouble.CONNECT_TIMEOUT:
                return refusals.no_replica(route.endpoint.model, f"{route.replica} does not answer", plane.roll())
            case Trouble.FIRST_BYTE_TIMEOUT | Trouble.GAP_TIMEOUT:
                return refusals.engine_timeout(route.replica, plane.limits.first_byte_seconds)
            case Trouble.BUSY:
                return refusals.overloaded(route.endpoint.model, plane.roll())
            case _:
                return refusals.engine_died(route.replica, detail)

    def _end_stream(self, trouble: Trouble, detail: str) -> None:
        """After the first byte: say so, in the stream where there is one; never a silent end."""
        timed_out = trouble is Trouble.GAP_TIMEOUT
        if self._streams:
            code = "engine_timeout" if timed_out else "engine_died"
            message = f"The stream cannot go on: {detail}"
            # The answer has a proper end and the connection goes on: closing it would hit a client's next request.
            self._downstream.end(openai.error_event(code, message, dialect=self._path.dialect))
        else:
            self._downstream.cut()
        self._finish(504 if timed_out else 502, "broken", detail)

    # Out

    def _begin(self, body: bytes, now: float) -> None:
        self._begun = True
        self._began_at = now
        self._sent_bytes += len(body)
        if self._streams:
            self._itl = self._meter.itl.observe
            ttft = self._ttft = now - self._at
            self._meter.ttft.observe(ttft)
        self._downstream.begin(self._status, self._head(now), body)
        if self._retried:
            self._meter.retry("served")

    def _respond(self, status: int, body: bytes) -> None:
        now = time.monotonic()
        self._sent_bytes = len(body)
        head = self._head(now)
        if status in {429, 503} and b"retry-after: " not in head:
            head += b"retry-after: %d\r\n" % refusals.jittered(2.0, self._plane.roll())
        self._downstream.respond(status, head, body)
        if self._retried:
            self._meter.retry("served")
        self._finish(status, "ok" if status < 400 else "engine_error")

    def _head(self, now: float) -> bytes:
        route = self._route
        assert route is not None  # noqa: S101 - an engine has answered
        # Ours is what is neither the engine's time nor the wait for its first whole event.
        overhead = self._overhead = max(0.0, now - self._at - self._upstream_seconds - (now - self._first_byte_at))
        self._meter.overhead.observe(overhead)
        return (
            b"content-type: %b\r\n%bx-request-id: %b\r\nx-nebula-replica: %b\r\nx-nebula-decision: %b\r\nx-nebula-overhead-ms: %.2f\r\n"
            % (
                self._content_type,
                self._extra,
                self._request_id,
                route.replica.encode("latin-1"),
                (self._decision or "").encode("latin-1"),
                overhead * 1000.0,
            )
        )

    def _refuse(self, refusal: Refusal, detail: str | None = None) -> None:
        """An answer of ours."""
        if refusal.status in {429, 503} and self._attempts == 0:
            self._meter.admission("reject", refusal.code)
        head = b"content-type: application/json\r\nx-request-id: %b\r\n" % self._request_id
        if refusal.retry_after is not None:
            # The OpenAI clients obey both (reliability M15).
            head += b"retry-after: %d\r\nx-should-retry: true\r\n" % refusal.retry_after
        body = refusal.body()
        self._sent_bytes = len(body)
        self._downstream.respond(refusal.status, head, body)
        self._finish(refusal.status, refusal.code, detail or refusal.message)

    def _abandon(self) -> None:
        """The rest of the engine's answer is of no use: closing the connection makes it stop."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _finish(self, status: int, outcome: str, detail: str | None = None) -> None:
        if self._over:
            return
        self._over = True
        ticket = self._ticket
        if ticket is not None:
            self._ticket = None  # which holds the exchange
            ticket.close()
        meter = self._meter
        now = time.monotonic()
        seconds = now - self._at
        meter.finished(status, seconds)
        usage = self._usage
        if usage is not None:
            meter.tokens(usage.prompt_tokens, usage.completion_tokens)
        log = self._plane.log
        facts = self._facts
        log.write(
            RequestLine(
                "request",
                log.stamp(time.time()),
                "info" if status < 500 else "warning",
                self._request_id.decode("ascii"),
                self._path.path.decode("ascii"),
                status,
                outcome,
                seconds,
                facts.model[:128] if facts is not None else None,
                self._pass.key_id if self._pass is not None else None,
                self._route.replica if self._route is not None else None,
                self._decision,
                facts.stream if facts is not None else None,
                self._ttft,
                self._overhead,
                usage.prompt_tokens if usage is not None else None,
                usage.completion_tokens if usage is not None else None,
                len(self._body),
                self._sent_bytes,
                self._attempts,
                detail[:500] if detail is not None else None,
            )
        )

    # From the client and the clock

    def client_gone(self) -> None:
        """The client closed its connection: the engine is told at once."""
        if self._over:
            return
        self._abandon()
        if self._route is not None:
            self._plane.ejections.gave_up(self._route.replica)
        self._finish(CLIENT_GONE, "client_gone")

    def pause(self) -> None:
        """The client is slow: stop reading from the engine."""
        self._paused_at = time.monotonic()
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        self._paused_at = None
        self._last_at = time.monotonic()
        if self._call is not None:
            self._call.resume()

    def _give_up(self, refusal: Refusal) -> None:
        """Nebula itself has failed."""
        if self._over:
            return
        self._abandon()
        if self._begun:
            self._downstream.cut()
            self._finish(500, "internal_error")
        else:
            self._refuse(refusal)

    def expire(self, now: float) -> None:
        """Ends the exchange when a time limit has passed."""
        limits = self._plane.limits
        if self._over or self._call is None:
            return
        if self._paused_at is not None:
            if now - self._paused_at > limits.write_seconds:
                self._abandon()
                self._downstream.cut()
                self._finish(CLIENT_GONE, "client_slow")
        elif self._status == 0 or not self._begun:
            if now - self._sent_at > limits.first_byte_seconds:
                self._abandon()
                self._trouble(Trouble.FIRST_BYTE_TIMEOUT, f"no answer within {limits.first_byte_seconds:g} s")
        elif now - self._last_at > limits.gap_seconds:
            self._abandon()
            self._trouble(Trouble.GAP_TIMEOUT, f"nothing for {limits.gap_seconds:g} s")

    def shut(self) -> None:
        """The process ends."""
        if self._over:
            return
        self._abandon()
        if not self._begun:
            model = self._facts.model if self._facts is not None else "-"
            self._refuse(refusals.no_replica(model, "this proxy is stopping", self._plane.roll()))
        elif self._streams:
            message = "The proxy is stopping"
            self._downstream.end(
                openai.error_event("proxy_stopping", message, origin="nebula", dialect=self._path.dialect),
                close=True,
            )
            self._finish(503, "broken", message)
        else:
            self._downstream.cut()
            self._finish(503, "broken", "the proxy is stopping")
