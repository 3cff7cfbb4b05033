"""A stream's bytes may be split anywhere: what the client gets is the same, in whole events, and ids never reach it."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.wire.chunks import without_ids
from nebula_core.wire.openai import Usage
from nebula_proxy.decisions.calls import CALLS
from nebula_proxy.decisions.resume import Terms, terms_of
from nebula_proxy.decisions.retry import Trouble
from nebula_proxy.traffic.plane import Limits
from nebula_proxy.traffic.resuming import NotedStream, Resumption
from nebula_proxy.traffic.stream import Stream
from tests.support.scripted_engine import DONE, event, tokens
from tests.support.token_engine import Emission, TokenEngine

BODY = b'{"model":"m","stream":true,"messages":[]}'
PROMPT = [7, 8, 9]


class Client:
    """The exchange and the client's side in one: notes what comes."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.troubles: list[Trouble] = []
        self.ended = self.abandoned = False

    def begin(self, body: bytes, _now: float) -> None:
        self.pieces.append(body)

    def write(self, body: bytes) -> None:
        self.pieces.append(body)

    def end(self, body: bytes = b"") -> None:
        if body:
            self.pieces.append(body)
        self.ended = True

    def trouble(self, trouble: Trouble, _detail: str) -> bool:
        self.troubles.append(trouble)
        return True

    def abandon(self) -> None:
        self.abandoned = True

    def engine_done(self) -> None: ...

    def first_event(self) -> None: ...

    def finish(self, _status: int, _outcome: str) -> None: ...


def request() -> Any:
    meter = SimpleNamespace(itl=SimpleNamespace(observe=lambda _: None))
    plane = SimpleNamespace(limits=Limits())
    return SimpleNamespace(call=CALLS[b"/v1/chat/completions"], plane=plane, meter=meter, sent_bytes=0, usage=None)


def fed(stream: Stream, data: bytes, cuts: list[int]) -> None:
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    start = 0
    for end in ends:
        stream.response_body(data[start:end], ended=False)
        start = end
    stream.response_body(b"", ended=True)


CUTS = st.lists(st.integers(0, 3000), max_size=40)
TEXTS = st.lists(st.text(max_size=6), min_size=1, max_size=8)


@given(texts=TEXTS, cuts=CUTS)
def test_a_plain_stream_passes_as_it_is(texts: list[str], cuts: list[int]) -> None:
    data = b"".join(tokens(*texts))
    client, asked = Client(), request()
    fed(Stream(asked, client, client, time.monotonic()), data, cuts)  # type: ignore[arg-type] # as much of them as it uses
    assert b"".join(client.pieces) == data
    assert all(piece.endswith(b"\n\n") for piece in client.pieces)
    assert client.ended
    assert client.troubles == []
    assert asked.usage == Usage(3, len(texts))


EMISSIONS = st.lists(
    st.builds(Emission, st.lists(st.integers(0, 150_000), max_size=4), st.text(max_size=6)), min_size=1, max_size=8
)


@given(made=EMISSIONS, cuts=CUTS, chat=st.booleans())
def test_token_ids_are_noted_and_taken_out(made: list[Emission], cuts: list[int], chat: bool) -> None:
    made[-1].finish = "length"
    engine = TokenEngine([])
    data = b"".join([*engine.frames({"return_token_ids": True}, made, PROMPT, chat=chat), DONE])
    plain = b"".join([*engine.frames({}, made, PROMPT, chat=chat), DONE])
    assert without_ids(data) == plain
    path = b"/v1/chat/completions" if chat else b"/v1/completions"
    terms = terms_of(CALLS[path], BODY if chat else b'{"model":"m","stream":true,"prompt":"x"}')
    assert isinstance(terms, Terms)
    resumption = Resumption(terms)
    client, asked = Client(), request()
    stream = NotedStream(asked, client, client, time.monotonic(), resumption)  # type: ignore[arg-type] # as above
    fed(stream, data, cuts)
    assert b"".join(client.pieces) == plain
    assert all(piece.endswith(b"\n\n") for piece in client.pieces)
    assert client.ended
    assert client.troubles == []
    if resumption.spoilt is None:
        assert list(resumption.prompt or ()) == PROMPT
        assert resumption.answer == [each for one in made for each in one.ids]


@pytest.mark.parametrize("at", range(0, 400, 7))
def test_a_text_that_looks_like_ids_stays(at: int) -> None:
    """What a model writes is text, whatever it looks like."""
    text = '"token_ids":[1,2,3]}]}\n\ndata: [DONE] "finish_reason":null,"token_ids":['
    made = [Emission([5], text), Emission([6], text, "stop")]
    engine = TokenEngine([])
    data = b"".join([*engine.frames({"return_token_ids": True}, made, PROMPT, chat=True), DONE])
    terms = terms_of(CALLS[b"/v1/chat/completions"], BODY)
    assert isinstance(terms, Terms)
    client = Client()
    resumption = Resumption(terms)
    fed(NotedStream(request(), client, client, 0.0, resumption), data, [at, at + 100])  # type: ignore[arg-type] # as above
    assert b"".join(client.pieces) == b"".join([*engine.frames({}, made, PROMPT, chat=True), DONE])
    assert resumption.answer == [5, 6]


def test_chunks_for_ids_alone_are_left_out_and_spoil() -> None:
    """vLLM sends `delta: {}` for tokens its parser swallows, but only to who asked for ids."""
    made = [Emission([5], "a"), Emission([6], "b"), Emission([7], "c", "stop")]
    engine = TokenEngine([])
    opening, first, second, last = engine.frames({"return_token_ids": True}, made, PROMPT, chat=True)
    silent = second.replace(b'{"content":"b"}', b"{}")
    terms = terms_of(CALLS[b"/v1/chat/completions"], BODY)
    assert isinstance(terms, Terms)
    client = Client()
    resumption = Resumption(terms)
    stream = NotedStream(request(), client, client, 0.0, resumption)  # type: ignore[arg-type] # as above
    for piece in (opening, first, silent, last + DONE):
        stream.response_body(piece, ended=False)
    stream.response_body(b"", ended=True)
    plain = engine.frames({}, made, PROMPT, chat=True)
    assert b"".join(client.pieces) == b"".join([*plain[:2], plain[3], DONE])
    assert resumption.spoilt is not None
    assert client.ended


def test_half_an_event_never_leaves() -> None:
    client = Client()
    stream = Stream(request(), client, client, 0.0)  # type: ignore[arg-type] # as above
    stream.response_body(event("a") + event("b")[:30], ended=False)
    assert client.pieces == [event("a")]
