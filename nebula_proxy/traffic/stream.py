"""Reading an engine's event stream: whole events pass, what they say is noted, and its end is judged.

Only whole events leave. The tail of a read that is not a whole event waits for the next read, so when an engine dies
in the middle of an event, the error event that follows is not glued to half a line.

Per event of a stream this costs one `endswith`, three substring searches, a clock reading, and one write.
"""

import time
from collections.abc import Callable
from typing import Protocol

from nebula_core.runtime.http import Failure, FailureKind
from nebula_core.wire import openai, sse
from nebula_core.wire.openai import Dialect
from nebula_proxy.decisions.retry import Trouble
from nebula_proxy.traffic.downstream import Downstream
from nebula_proxy.traffic.request import Request

TROUBLE_OF = {
    FailureKind.REFUSED: Trouble.REFUSED,
    FailureKind.CONNECT_TIMEOUT: Trouble.CONNECT_TIMEOUT,
    FailureKind.STALE: Trouble.STALE,
    FailureKind.LOST: Trouble.LOST,
    FailureKind.MALFORMED: Trouble.MALFORMED,
}


class Course(Protocol):
    """What the reader of an answer asks of its exchange."""

    def first_event(self) -> None:
        """The engine has made something."""

    def begin(self, body: bytes, now: float) -> None:
        """The first bytes for the client."""

    def trouble(self, trouble: Trouble, detail: str, body: bytes | None = None) -> bool:
        """The engine's answer cannot go on: decides and does what follows."""

    def abandon(self) -> None:
        """The rest of the engine's answer is of no use."""

    def engine_done(self) -> None:
        """The engine's answer is complete: its connection may serve another exchange from now on."""

    def finish(self, status: int, outcome: str, detail: str | None = None) -> None:
        """All is over."""


class Stream:
    """The taker of one event stream of one engine."""

    __slots__ = (
        "_course",
        "_dialect",
        "_downstream",
        "_event_bytes",
        "_itl",
        "_last",
        "_passing",
        "_request",
        "_rest",
        "begun",
        "events",
        "last_at",
    )

    def __init__(self, request: Request, course: Course, downstream: Downstream, now: float) -> None:
        self._request = request
        self._course = course
        self._downstream = downstream
        self._dialect: Dialect = request.call.dialect
        self._event_bytes = request.plane.limits.event_bytes
        self._itl: Callable[[float], None] = request.meter.itl.observe
        #: The client has got an event.
        self.begun = False
        #: An event has begun, and no part of one is held back.
        self._passing = False
        self._rest = b""
        self._last = b""
        #: Reads that completed events: one token each, unless they come in heaps.
        self.events = 0
        #: When the engine last said something, monotonic seconds.
        self.last_at = now

    # From the engine

    def response_started(self, status: int, headers: object) -> None:
        """It has started: this is the taker of its body."""

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
            self._itl(now - self.last_at)
            self.last_at = now
            self._last = body
            self.events += 1
            self._request.sent_bytes += len(body)
            return
        self._look_closely(body, ended=ended)

    def _look_closely(self, body: bytes, *, ended: bool) -> None:
        """Takes a read that is not plainly whole events with nothing to be read in them."""
        if ended:
            self._course.engine_done()
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
            plain = self._made_plain(body)
            if plain is None:
                self._diverged()
                return
            if plain:
                self._pass_on(plain, time.monotonic())
                self._last = plain
        self._passing = self.begun and not self._rest
        if self._rest and len(self._rest) > self._event_bytes:
            self._course.abandon()
            self._course.trouble(Trouble.MALFORMED, "an event without an end")

    def response_failed(self, failure: Failure) -> None:
        self._course.engine_done()
        if failure.kind is FailureKind.LOST and self._rest_is_finished():
            return
        self._course.trouble(TROUBLE_OF[failure.kind], failure.detail)

    def _made_plain(self, events: bytes) -> bytes | None:
        """Whole events as the client shall see them; None when they must not reach it."""
        return events

    def _diverged(self) -> None:
        self._course.abandon()
        self._course.trouble(Trouble.DIVERGED, "another replica went on differently")

    def _pass_on(self, events: bytes, now: float) -> None:
        if not self.events:
            self._course.first_event()
        self.events += 1
        if self.begun:
            self._request.sent_bytes += len(events)
            self._itl(now - self.last_at)
            self.last_at = now
            self._downstream.write(events)
        else:
            self.begun = True
            self.last_at = now
            self._course.begin(events, now)

    def _last_events(self, body: bytes) -> None:
        """The engine has ended its stream properly framed; whether it is finished is for its events to say."""
        if body and openai.worth_reading(body) and not self._read_events(body):
            return
        dialect = self._dialect
        now = time.monotonic()
        last = body if openai.is_closed(body, dialect) else self._last + body
        if not openai.is_finished(last, dialect):
            whole = self._made_plain(body[: sse.whole_events(body)])
            if self.begun and whole:
                self._downstream.write(whole)
            self._course.trouble(Trouble.UNFINISHED, "the stream ended unfinished")
            return
        if not openai.is_closed(last, dialect):
            # An engine that ends without the mark: a client must be able to tell an end from a break.
            body = (body if not body or body.endswith(b"\n\n") else body + b"\n\n") + openai.DONE_EVENT
        plain = self._made_plain(body)
        if plain is None:
            self._diverged()
            return
        body = plain
        if self.begun:
            self._request.sent_bytes += len(body)
            if body:
                self._itl(now - self.last_at)
            if not self.events:  # the whole of a continuation
                self._course.first_event()
                self.events += 1
            self._downstream.end(body)
        else:
            self._pass_on(body, now)
            self._downstream.end()
        self._course.finish(200, "ok")

    def _read_events(self, events: bytes) -> bool:
        """Notes usage; False when the engine says in these events that it cannot go on: then all is done."""
        news = openai.read_events(events)
        if news.usage is not None:
            self._request.usage = news.usage
        if news.bad_at is None:
            return True
        course = self._course
        # What is sound of it is the client's, if it can be; a first event alone is not worth beginning for.
        sound = self._made_plain(events[: news.bad_at]) or b""
        course.abandon()
        detail = "the engine cut the answer short" if news.aborted else str(news.error)
        if self.begun or sound:
            if self.begun:
                if sound:
                    self._downstream.write(sound)
            else:
                self._pass_on(sound, time.monotonic())
            course.trouble(Trouble.BROKEN, detail)
        elif news.error_code is not None and 400 <= news.error_code < 500 and news.error_code != 429:
            # The request itself is wrong: the engine's words reach the client as they are.
            self._pass_on(events[news.bad_at :], time.monotonic())
            self._downstream.end()
            course.finish(news.error_code, "engine_error", detail)
        else:
            busy = news.error_code in {429, 503}
            course.trouble(Trouble.BUSY if busy else Trouble.BROKEN, detail)
        return False

    def _rest_is_finished(self) -> bool:
        """An engine may close without the end of its framing after a stream that says itself that it is over."""
        if not self.begun or self._rest or not openai.is_closed(self._last, self._dialect):
            return False
        self._downstream.end()
        self._course.finish(200, "ok")
        return True
