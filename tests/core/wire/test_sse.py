"""Server-sent events: the same events however the bytes are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.wire.sse import Decoder, Event, TooLong, encode, payloads, whole_events

LINES = st.text(alphabet=st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=20)
NAMES = st.text(alphabet="abcdefghij.", min_size=1, max_size=10)
EVENTS = st.lists(
    st.builds(
        Event,
        data=st.lists(LINES, min_size=1, max_size=3).map("\n".join),
        event=st.one_of(st.just("message"), NAMES),
        id=st.none(),
    ),
    max_size=8,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def wire(events: list[Event]) -> bytes:
    return b"".join(encode(each.data, event=None if each.event == "message" else each.event) for each in events)


@given(EVENTS, st.lists(st.integers(0, 10_000), max_size=20), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_decoding_does_not_depend_on_the_cuts(events: list[Event], places: list[int], newline: bytes) -> None:
    decoder = Decoder()
    data = wire(events).replace(b"\n", newline)
    found = [event for piece in cut(data, places) for event in decoder.feed(piece)]
    # A lone CR at the very end may still become a CRLF: the event before it is complete all the same.
    assert found == events


@given(EVENTS, st.lists(st.integers(0, 10_000), max_size=20), st.sampled_from([b"\n", b"\r\n"]))
def test_letting_whole_events_pass_loses_nothing_and_splits_none(
    events: list[Event], places: list[int], newline: bytes
) -> None:
    data = wire(events).replace(b"\n", newline)
    rest, passed = b"", []
    for piece in cut(data, places):
        held = rest + piece
        at = whole_events(held)
        if at:
            passed.append(held[:at])
            assert len(Decoder().feed(held[:at])) >= 1
        rest = held[at:]
    assert b"".join(passed) + rest == data
    assert rest in (b"", newline)[: 1 + (newline == b"\r\n")] or not events or rest == b""


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"", 0),
        (b"data: a", 0),
        (b"data: a\n", 0),
        (b"data: a\n\n", 9),
        (b"data: a\n\ndata: b", 9),
        (b"data: a\r\n\r\n", 11),
        (b"data: a\r\n\r\ndata: b\r\n", 11),
        (b"data: a\n\ndata: b\r\n\r\nda", 20),
        (b": comment\n\n", 11),
    ],
)
def test_where_whole_events_end(data: bytes, length: int) -> None:
    assert whole_events(data) == length


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: a\n\n", [Event("a")]),
        (b"data:a\n\n", [Event("a")]),
        (b"data:  a\n\n", [Event(" a")]),
        (b"data\n\n", [Event("")]),
        (b"event: x\n\n", []),  # without data there is no event
        (b"event: error\ndata: {}\nid: 7\n\n", [Event("{}", "error", "7")]),
        (b"id: 7\ndata: a\n\ndata: b\n\n", [Event("a", id="7"), Event("b", id="7")]),
        (b": keep-alive\n\ndata: a\n\n", [Event("a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event("a")]),
        (b"retry: 10\nother: x\ndata: a\n\n", [Event("a")]),
        (b"data: \xff\n\n", [Event("�")]),
        (b"data: unfinished", []),
    ],
)
def test_what_an_event_is(data: bytes, events: list[Event]) -> None:
    assert Decoder().feed(data) == events


def test_an_event_may_not_grow_without_end() -> None:
    decoder = Decoder(max_event_bytes=100)
    decoder.feed(b"data: " + b"x" * 50 + b"\n\n")
    decoder.feed(b"data: " + b"x" * 50)
    with pytest.raises(TooLong):
        decoder.feed(b"x" * 60)


def test_payloads_are_the_data_lines() -> None:
    assert list(payloads(b"event: x\ndata: {}\n\ndata:1\r\n\r\n: no\n\n")) == [b"{}", b"1"]
