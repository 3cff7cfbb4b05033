"""Between an exchange and its client: a chat answer leaves as an answer of the Responses API.

An exchange whose engine speaks chat alone becomes a chat exchange: its body and its call are those of the chat, and what
it hands over passes through a `ResponsesDownstream`. So retries, time limits and whatever else befalls a chat are the
same code, and a request that needs no translation pays nothing. The shapes are `nebula_core.wire.responses_*`'s.
"""

import time

from nebula_core.wire.responses_answer import ResponseStream, whole
from nebula_core.wire.responses_request import Asked, Untranslatable, to_chat
from nebula_proxy.decisions.calls import RESPONSES_AS_CHAT
from nebula_proxy.decisions.refusal import Refusal, bad_request, engine_died
from nebula_proxy.traffic.downstream import Downstream
from nebula_proxy.traffic.request import Request

#: A plain chat answer is whole before it can be translated; a larger one is no text for people.
MAX_ANSWER_BYTES = 16 * 1024 * 1024


def as_chat(request: Request, downstream: Downstream) -> Downstream | Refusal:
    """Makes a Responses request a chat request; what its answer must be written to, or why it cannot be one."""
    translated = to_chat(request.body)
    if isinstance(translated, Untranslatable):
        return bad_request(translated.message, param=translated.param, hint=translated.hint)
    request.body = translated.body
    request.call = RESPONSES_AS_CHAT
    return ResponsesDownstream(downstream, translated.asked, request.plane.mint_id().decode("ascii"))


class ResponsesDownstream:
    """Takes a chat answer and writes the Responses answer. Errors, ours and the engine's, pass as they are."""

    def __init__(self, downstream: Downstream, asked: Asked, stem: str) -> None:
        self._downstream = downstream
        self._asked = asked
        self._stem = stem.removeprefix("req-")
        self._created = int(time.time())
        self._stream: ResponseStream | None = None
        #: A plain answer that comes in parts: its status, its head, its parts.
        self._plain: tuple[int, bytes, list[bytes]] | None = None
        self._held = 0

    @property
    def peer(self) -> str | None:
        return self._downstream.peer

    def respond(self, status: int, head: bytes, body: bytes, *, close: bool = False) -> None:
        if status == 200:
            translated = whole(body, self._asked, self._stem, self._created)
            if translated is None:
                status, body = 502, engine_died("of this model", "its answer is no chat completion").body()
            else:
                body = translated
        self._downstream.respond(status, head, body, close=close)

    def begin(self, status: int, head: bytes, body: bytes) -> None:
        if b"content-type: text/event-stream" not in head:
            self._plain = (status, head, [body])
            return
        self._stream = ResponseStream(self._asked, self._stem, self._created)
        self._downstream.begin(status, head, self._stream.feed(body))

    def write(self, body: bytes) -> None:
        if self._stream is not None:
            events = self._stream.feed(body)
            if events:
                self._downstream.write(events)
        elif self._plain is not None:
            self._held += len(body)
            if self._held > MAX_ANSWER_BYTES:
                self.cut()
            else:
                self._plain[2].append(body)

    def end(self, body: bytes = b"", *, close: bool = False) -> None:
        if self._stream is not None:
            self._downstream.end(self._stream.feed(body) + self._stream.finish(), close=close)
        elif self._plain is not None:
            status, head, parts = self._plain
            self._plain = None
            self.respond(status, head, b"".join([*parts, body]), close=close)

    def cut(self) -> None:
        self._plain = None
        self._downstream.cut()
