"""A known head is found again with any length, and by nothing but its own bytes."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions.calls import CALLS
from nebula_proxy.decisions.known_head import KnownHead, known_head

PATH = b"/v1/chat/completions"
NAMES = st.sampled_from([b"Host", b"Accept", b"User-Agent", b"Authorization", b"X-Stainless-Lang", b"Content-Type"])
VALUES = st.binary(max_size=20).map(lambda raw: bytes(byte for byte in raw if 0x20 < byte < 0x7F))


@st.composite
def heads(draw: st.DrawFn) -> tuple[list[tuple[bytes, bytes]], int]:
    """Headers without the length, each name once, and where the length stands among them."""
    headers = draw(st.lists(st.tuples(NAMES, VALUES), unique_by=lambda header: header[0], max_size=6))
    return headers, draw(st.integers(0, len(headers)))


def message(headers: list[tuple[bytes, bytes]], at: int, body: bytes, target: bytes = PATH) -> bytes:
    lines = [b"%b: %b" % header for header in headers]
    lines.insert(at, b"Content-Length: %d" % len(body))
    return b"\r\n".join([b"POST %b HTTP/1.1" % target, *lines, b"", body])


def learnt(headers: list[tuple[bytes, bytes]], at: int, body: bytes) -> KnownHead:
    by_name = {name.lower(): value for name, value in headers} | {b"content-length": b"%d" % len(body)}
    known = known_head(message(headers, at, body), PATH, CALLS[PATH], by_name)
    assert known is not None
    return known


@given(heads(), st.binary(max_size=200), st.binary(max_size=200))
def test_the_same_head_is_found_with_any_length(
    drawn: tuple[list[tuple[bytes, bytes]], int], first: bytes, second: bytes
) -> None:
    headers, at = drawn
    data = message(headers, at, second)
    assert learnt(headers, at, first).found_in(data) == (b"%d" % len(second), len(data) - len(second))


@given(heads(), st.binary(max_size=50), st.data())
def test_a_head_that_differs_anywhere_is_not_found(
    drawn: tuple[list[tuple[bytes, bytes]], int], body: bytes, data: st.DataObject
) -> None:
    headers, at = drawn
    known = learnt(headers, at, body)
    head = message(headers, at, body)
    head = head[: len(head) - len(body)]
    digits = range(len(known.before), len(known.before) + len(b"%d" % len(body)))
    place = data.draw(st.integers(0, len(head) - 1))
    byte = data.draw(st.integers(0, 255))
    other = head[:place] + bytes([byte]) + head[place + 1 :]
    found = known.found_in(other + body)
    if other == head or (place in digits and 0x30 <= byte <= 0x39):
        assert found is not None
    else:
        assert found is None
    for end in range(len(head)):
        assert known.found_in(head[:end]) is None


def test_lengths_that_are_no_number_are_the_parsers() -> None:
    known = learnt([(b"Host", b"n")], 1, b"abc")
    for length in (b"", b" 3", b"+3", b"-3", b"0x3", b"3,3", b"3 ", b"9" * 13, b"\xb2"):
        assert known.found_in(known.before + length + known.after + b"abc") is None, length


def test_heads_whose_bytes_do_not_say_it_all_are_not_remembered() -> None:
    call = CALLS[PATH]
    headers = {b"host": b"n", b"content-length": b"2"}
    sound = b"POST %b HTTP/1.1\r\nHost: n\r\nContent-Length: 2\r\n\r\n{}" % PATH
    assert known_head(sound, PATH, call, headers) is not None
    assert known_head(sound, b"/v1/completions", call, headers) is None
    assert known_head(sound.replace(b"/1.1", b"/1.0"), PATH, call, headers) is None
    assert known_head(sound[:-10], PATH, call, headers) is None  # not complete
    twice = sound.replace(b"Host: n\r\n", b"Host: n\r\nAccept: a\r\nAccept: b\r\n")
    assert known_head(twice, PATH, call, headers | {b"accept": b"b"}) is None
    waits = sound.replace(b"Host: n\r\n", b"Host: n\r\nExpect: 100-continue\r\n")
    assert known_head(waits, PATH, call, headers | {b"expect": b"100-continue"}) is None
    long = sound.replace(b"Host: n\r\n", b"Host: n\r\nX: %b\r\n" % (b"x" * 3000))
    assert known_head(long, PATH, call, headers | {b"x": b"x" * 3000}) is None
