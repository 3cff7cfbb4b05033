"""Header lines of answers: whole lines whatever came, and advice that the OpenAI clients obey."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions import header_lines
from nebula_proxy.decisions.refusal import Refusal, bad_request

PLAIN = b"application/json"
VALUES = st.binary(max_size=12).filter(lambda value: not {13, 10} & set(value))
NAMES = st.sampled_from(
    [b"content-type", b"set-cookie", b"server", b"retry-after", b"cache-control", b"x-nebula-replica"]
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_only_named_headers_of_an_engine_reach_the_client(headers: list[tuple[bytes, bytes]]) -> None:
    content_type, lines = header_lines.passed_on(headers, PLAIN)
    types = [value for name, value in headers if name == b"content-type"]
    assert content_type == ((types[-1] if types else b"") or PLAIN)
    allowed = [(name, value) for name, value in headers if name in header_lines.PASSED]
    assert lines == b"".join(name + b": " + value + b"\r\n" for name, value in allowed)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, b"0.00"), (0.000_004, b"0.00"), (0.000_123_4, b"0.12"), (0.000_999_9, b"1.00"), (1.5, b"1500.00")],
)
def test_the_overhead_is_shown_in_hundredths_of_a_millisecond(seconds: float, shown: bytes) -> None:
    went = header_lines.chosen_lines("m-r1", "prefix 12 blocks")
    head = header_lines.engine_lines(PLAIN, b"cache-control: no-store\r\n", b"r1", went, seconds)
    assert head.split(b"\r\n") == [
        b"content-type: application/json",
        b"cache-control: no-store",
        b"x-request-id: r1",
        b"x-nebula-replica: m-r1",
        b"x-nebula-decision: prefix 12 blocks",
        b"x-nebula-overhead-ms: " + shown,
        b"",
    ]


@pytest.mark.parametrize(
    ("status", "again"),
    [(429, b"true"), (503, b"true"), (400, b"false"), (408, b"false"), (409, b"false"), (500, None), (502, None)],
)
def test_who_is_asked_back(status: int, again: bytes | None) -> None:
    lines = header_lines.advice_lines(status, None)
    assert lines == (b"" if again is None else b"x-should-retry: " + again + b"\r\n")
    assert header_lines.advice_lines(status, 7) == b"retry-after: 7\r\n" + lines


def test_an_engines_own_patience_is_left_to_it() -> None:
    assert header_lines.wants_retry_after(429, b"content-type: x\r\n")
    assert not header_lines.wants_retry_after(429, b"retry-after: 3\r\n")
    assert not header_lines.wants_retry_after(500, b"")


@pytest.mark.parametrize(
    ("refusal", "lines"),
    [
        (bad_request("no"), b"x-should-retry: false\r\n"),
        (Refusal(429, "queue_full", "full", retry_after=4), b"retry-after: 4\r\nx-should-retry: true\r\n"),
        (Refusal(502, "engine_died", "gone"), b""),
    ],
)
def test_a_refusal_of_ours_says_whether_to_come_back(refusal: Refusal, lines: bytes) -> None:
    head = header_lines.refusal_lines(refusal, b"r1")
    assert head == b"content-type: application/json\r\nx-request-id: r1\r\n" + lines
