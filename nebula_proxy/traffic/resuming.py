"""Streams that can be resumed: what is noted of them while they run, and how another replica goes on with them.

`Resumption` belongs to one request. While a stream runs, a `NotedStream` takes the token ids out of it and notes
them: about seven bytes a token, and the latest few chunks. After trouble `point` says where it could go on; the
exchange then sends `outgoing` to another replica and gives the answer to a `ContinuedStream`, which writes the
chunks of `/v1/completions` as the first stream would have gone on. What is safe and why is `decisions/resume`'s.

Until the continuation has said something new the notes stay as they are, so that a second trouble starts from the
same point.
"""

import time
from array import array
from collections import deque

from nebula_core.runtime.http import Failure
from nebula_core.wire.chunks import TAIL, Chunk, Shape, head_of, read_chunk, without_ids
from nebula_core.wire.openai import DONE_EVENT, Usage
from nebula_proxy.decisions import resume
from nebula_proxy.decisions.resume import Cut, Refused, Terms
from nebula_proxy.decisions.retry import Trouble
from nebula_proxy.traffic.contexts import Contexts
from nebula_proxy.traffic.downstream import Downstream
from nebula_proxy.traffic.request import Request
from nebula_proxy.traffic.routing_table import Route
from nebula_proxy.traffic.stream import Course, Stream

_QUOTE = ord('"')
#: An answer to a resumed request that is no stream is read up to here, to say what it was.
_UNWANTED_BYTES = 4096


class Resumption:
    """What is needed to go on with one request's stream elsewhere."""

    __slots__ = (
        "_ids",
        "_spoilt",
        "_why_not",
        "cut",
        "finished",
        "from_start",
        "outgoing",
        "prompt",
        "recent",
        "shape",
        "terms",
        "usage_sent",
    )

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        #: Token ids as they came: decimal, each chunk's with a comma behind.
        self._ids = bytearray()
        self.prompt: array[int] | None = None
        self.shape: Shape | None = None
        #: The latest chunks: as they came, or tokens and text.
        self.recent: deque[bytes | tuple[int, str]] = deque(maxlen=terms.recent)
        #: `recent` reaches back to the begin, or to where the stream was resumed.
        self.from_start = True
        self._spoilt: str | None = None
        #: The engine has given the reason why the answer ends, and said its usage.
        self.finished = False
        self.usage_sent = False
        #: Where the stream goes on, while that is tried.
        self.cut: Cut | None = None
        #: The body that goes on behind the cut, for `/v1/completions`.
        self.outgoing = b""
        self._why_not: str | None = None

    @classmethod
    def of(cls, request: Request, route: Route) -> "Resumption | None":
        """None when this request's stream could not be resumed, so that nothing need be noted."""
        endpoint = route.endpoint
        wishes = request.wishes
        if not endpoint.resume or endpoint.engine not in resume.ENGINES:
            return None
        if wishes.no_resume or wishes.no_retry or wishes.replica is not None:
            return None
        terms = resume.terms_of(request.call, request.body)
        if isinstance(terms, Refused):
            return None
        plane = request.plane
        if terms.limit is None:
            plane.contexts.want(route)
        if plane.resume_budget.left < plane.resume_budget.reserve:
            plane.resume_budget = plane.resume_budget.earned()
        return cls(terms)

    # Notes

    def note(self, event: bytes, ids: bytes) -> None:
        """An ordinary chunk with a text, and its ids; the hot path."""
        self._ids += ids + b","
        self.recent.append(event)

    def note_chunk(self, ids: list[int], text: str) -> None:
        if ids:
            self._ids += b"%b," % b",".join(b"%d" % each for each in ids)
        self._keep(len(ids), text)

    def _keep(self, tokens: int, text: str) -> None:
        recent = self.recent
        before = recent[-1] if recent else None
        together = None if isinstance(before, bytes) else resume.joined(before, tokens, text)
        if together is None:
            recent.append((tokens, text))
        else:
            recent[-1] = together

    def spoil(self, why: str) -> None:
        """From here on the stream cannot be resumed."""
        self._spoilt = self._spoilt or why
        self._ids.clear()
        self.recent.clear()

    @property
    def spoilt(self) -> str | None:
        return self._spoilt

    @property
    def count(self) -> int:
        """Tokens of the answer so far."""
        return self._ids.count(b",")

    @property
    def answer(self) -> list[int]:
        return list(map(int, self._ids.decode("ascii").split(",")[:-1]))

    def usage(self) -> Usage | None:
        """What the noted ids say of the usage."""
        if self._spoilt is not None or self.prompt is None:
            return None
        return Usage(len(self.prompt), self.count)

    # After trouble

    def is_complete(self) -> bool:
        """Whether every token was given, so that only the end of the stream is missing."""
        if self._spoilt is not None or self.cut is not None:
            return False
        if self.finished:
            return True
        point = self._point()
        return isinstance(point, Cut) and not point.overlap and resume.is_complete(self.terms, point.kept)

    def prepare(self, contexts: Contexts, route: Route) -> bool:
        """Works out where and with what the stream can go on; False when it cannot, and `excuse` knows why."""
        point = self._point()
        if isinstance(point, Refused):
            self._why_not = point.why
            return False
        answer = self.answer[: point.kept]
        outgoing = resume.continuation(self.terms, self.prompt or (), answer, contexts.of(route))
        if isinstance(outgoing, Refused):
            self._why_not = outgoing.why
            return False
        self.cut, self.outgoing = point, outgoing
        return True

    def excuse(self, detail: str) -> str:
        """`detail`, and why the stream did not go on elsewhere, if it was for that."""
        return detail if self._why_not is None else f"{detail}; not resumed: {self._why_not}"

    def _point(self) -> Cut | Refused:
        if self.cut is not None:
            return self.cut  # the continuation has not got beyond it
        if self._spoilt is not None:
            return Refused(self._spoilt)
        if self.prompt is None or self.shape is None:
            return Refused("the engine gave no token ids")
        whole = self.from_start and len(self.recent) < (self.recent.maxlen or 0)
        return resume.safe_point(self.terms, self.count, [_weighed(each) for each in self.recent], from_start=whole)

    def went_on(self, chunks: list[tuple[int, str]], ids: list[int]) -> None:
        """The continuation has repeated the overlap and brought something new: it is the stream now."""
        if self.cut is None:
            return
        kept = self.answer[: self.cut.kept]
        self._ids = bytearray(b"".join(b"%d," % each for each in [*kept, *ids]))
        self.recent.clear()
        for tokens, text in chunks:
            self._keep(tokens, text)
        self.from_start = True
        self.cut = None

    def ending(self) -> bytes:
        """What is missing of a stream whose last token was given."""
        events = b""
        shape = self.shape
        if shape is not None:
            if not self.finished:
                events += shape.chunk("", "length")
            if self.terms.usage and not self.usage_sent and self.prompt is not None:
                events += shape.usage_chunk(self.numbers(self.count))
        return events + DONE_EVENT

    def numbers(self, completion: int) -> dict[str, int]:
        """A usage as the API has it."""
        prompt = len(self.prompt or ())
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def _weighed(noted: bytes | tuple[int, str]) -> tuple[int, str]:
    if isinstance(noted, tuple):
        return noted
    chunk = read_chunk(noted)
    return (len(chunk.ids or ()), chunk.text) if chunk is not None else (0, "")


class NotedStream(Stream):
    """The taker of a stream that was asked for its token ids: they are noted and go no further."""

    __slots__ = ("_opening", "_resumption")

    def __init__(
        self, request: Request, course: Course, downstream: Downstream, now: float, resumption: Resumption
    ) -> None:
        super().__init__(request, course, downstream, now)
        self._resumption = resumption
        #: The first event, held until there is a token: before that the whole request can still go elsewhere.
        self._opening = b""

    def response_body(self, body: bytes, *, ended: bool) -> None:
        if self._passing and not ended and body.endswith(TAIL):
            resumption = self._resumption
            shape = resumption.shape
            if shape is not None and body.startswith(shape.prefix) and body.count(b"\n\n") == 1:
                at = body.rfind(shape.marker)
                if at > 0 and body[len(shape.prefix)] != _QUOTE:
                    # A token like most, with a text. `marker` stands outside of any string, `TAIL` ends the event: between are its ids.
                    at += len(shape.marker)
                    ids = body[at:-6]
                    if ids and resumption.spoilt is None:
                        resumption.note(body, ids)
                    plain = b"%bnull}]}\n\n" % body[: at - 1]
                    self._downstream.write(plain)
                    now = time.monotonic()
                    self._itl(now - self.last_at)
                    self.last_at = now
                    self._last = plain
                    self.events += 1
                    self._request.sent_bytes += len(plain)
                    return
        self._look_closely(body, ended=ended)

    def _is_opening(self, chunk: Chunk) -> bool:
        """Says nothing yet but whose answer it is."""
        nothing = not chunk.ids and not chunk.text and chunk.finish_reason is None
        return nothing and chunk.prompt is not None and not self.begun and not self._opening

    def _made_plain(self, events: bytes) -> bytes:
        made: list[bytes] = []
        for event in _split(events):
            chunk = read_chunk(event)
            if chunk is not None:
                self._note(event, chunk)
                if chunk.is_surplus:
                    continue
                if self._is_opening(chunk) and not made:
                    self._opening = without_ids(event)
                    continue
            made.append(without_ids(event))
        if self._opening and made:
            made.insert(0, self._opening)
            self._opening = b""
        return b"".join(made)

    def _note(self, event: bytes, chunk: Chunk) -> None:
        resumption = self._resumption
        if chunk.prompt is not None and resumption.prompt is None:
            resumption.prompt = array("I", chunk.prompt)
        if resumption.shape is None:
            head = head_of(event)
            if head is not None:
                resumption.shape = Shape(head, chat=resumption.terms.chat)
        if not chunk.choices:
            resumption.usage_sent = resumption.usage_sent or chunk.usage is not None
            return
        if resumption.spoilt is None:
            if not chunk.is_text_only or chunk.is_surplus:
                resumption.spoil("it holds more than plain text")
            elif chunk.ids is None and chunk.text:
                resumption.spoil("the engine gave no token ids")
            elif chunk.ids or chunk.text:
                resumption.note_chunk(chunk.ids or [], chunk.text)
        if chunk.finish_reason is not None:
            resumption.finished = True


class ContinuedStream(Stream):
    """The taker of a continuation: chunks of `/v1/completions`, written as the first stream would have gone on."""

    __slots__ = ("_ids", "_overlap", "_resumption", "_waiting")

    def __init__(
        self, request: Request, course: Course, downstream: Downstream, now: float, resumption: Resumption
    ) -> None:
        super().__init__(request, course, downstream, now)
        self.begun = True
        self._resumption = resumption
        #: What is still to be repeated, and what has come of the continuation meanwhile.
        self._overlap = resumption.cut.overlap if resumption.cut is not None else ""
        self._waiting: list[tuple[int, str]] = []
        self._ids: list[int] = []

    def response_body(self, body: bytes, *, ended: bool) -> None:
        self._look_closely(body, ended=ended)  # nothing of it is passed as it came

    def _made_plain(self, events: bytes) -> bytes | None:
        made = []
        for event in _split(events):
            chunk = read_chunk(event)
            if chunk is None:
                made.append(event)
                continue
            dressed = self._dressed(chunk)
            if dressed is None:
                return None
            made.append(dressed)
        return b"".join(made)

    def _dressed(self, chunk: Chunk) -> bytes | None:
        """The chunk as one of the first stream; None when it does not go on where that one was cut."""
        resumption = self._resumption
        shape = resumption.shape
        if shape is None:
            return None
        if not chunk.choices:
            return b""  # usage is counted here
        ids = chunk.ids
        if ids is None and chunk.text:
            resumption.spoil("the engine gave no token ids")
        text = chunk.text
        new = text
        if self._overlap:
            if text.startswith(self._overlap):
                new = text[len(self._overlap) :]
                self._overlap = ""
            elif self._overlap.startswith(text) and chunk.finish_reason is None:
                self._overlap = self._overlap[len(text) :]
                new = ""
            else:
                resumption.spoil("another replica went on differently")
                return None
        last = chunk.finish_reason is not None
        self._count(ids or [], text, last=last)
        if not new and not last:
            return b""
        usage = None
        if resumption.terms.running_usage:
            usage = resumption.numbers(resumption.count)
        events = shape.chunk(
            new,
            chunk.finish_reason,
            chunk.choices[0].stop_reason,
            fingerprint=chunk.system_fingerprint if last and not resumption.terms.usage else None,
            usage=usage,
        )
        if last:
            resumption.finished = True
            if resumption.terms.usage:
                resumption.usage_sent = True
                events += shape.usage_chunk(resumption.numbers(resumption.count), chunk.system_fingerprint)
            self._request.usage = resumption.usage()
        return events

    def _count(self, ids: list[int], text: str, *, last: bool) -> None:
        resumption = self._resumption
        if resumption.cut is None:
            resumption.note_chunk(ids, text)
            return
        self._ids += ids
        self._waiting.append((len(ids), text))
        if last or (not self._overlap and text):
            resumption.went_on(self._waiting, self._ids)
            self._waiting, self._ids = [], []


class Unwanted:
    """The taker of an answer that should have gone on with a stream and is none (a 503, an error)."""

    def __init__(self, course: Course, status: int) -> None:
        self._course = course
        self._status = status
        self._body = b""

    def response_started(self, status: int, headers: object) -> None:
        """It has started: this is the taker of its body."""

    def response_body(self, body: bytes, *, ended: bool) -> None:
        self._body += body
        if ended:
            self._course.engine_done()
        elif len(self._body) < _UNWANTED_BYTES:
            return
        else:
            self._course.abandon()
        busy = self._status in {429, 503} or b"after shutdown" in self._body
        self._course.trouble(Trouble.BUSY if busy else Trouble.BROKEN, f"status {self._status} for the continuation")

    def response_failed(self, failure: Failure) -> None:
        self._course.engine_done()
        self._course.trouble(Trouble.LOST, failure.detail)


def _split(events: bytes) -> list[bytes]:
    """Whole events, one by one, each with its empty line."""
    parts = events.split(b"\n\n")
    last = parts.pop()
    whole = [part + b"\n\n" for part in parts]
    return [*whole, last] if last else whole
