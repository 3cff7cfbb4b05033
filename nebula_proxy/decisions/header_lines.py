"""The header lines of answers: an engine's that was passed on, and ours. Complete lines, each with its CRLF.

The OpenAI clients obey both `x-should-retry` and `Retry-After` (reliability M15): left to themselves they would try a 409 and a
408 again. So whoever was told to slow down is asked back, and whoever asked wrongly is not.
"""

from collections.abc import Iterable
from functools import lru_cache

from nebula_proxy.decisions.refusal import Refusal

#: Headers of an engine that reach the client; all others are the engine's own affair (reliability T17).
PASSED = frozenset({b"cache-control", b"retry-after", b"openai-processing-ms"})
_COME_BACK = b"x-should-retry: true\r\n"
_STAY_AWAY = b"x-should-retry: false\r\n"
#: Statuses that ask for patience.
_SLOW_DOWN = frozenset({429, 503})


def passed_on(headers: Iterable[tuple[bytes, bytes]], otherwise: bytes) -> tuple[bytes, bytes]:
    """Of an engine's headers, names in lower case: the content type (`otherwise` where it has none), and lines for the client."""
    content_type = b""
    lines = b""
    for name, value in headers:
        if name == b"content-type":
            content_type = value
        elif name in PASSED:
            lines += b"%b: %b\r\n" % (name, value)
    return content_type or otherwise, lines


@lru_cache(maxsize=1024)
def chosen_lines(replica: str, decision: str | None) -> bytes:
    """Where a request went, and why. Remembered, because few differ."""
    said = (decision or "").encode("latin-1")
    return b"x-nebula-replica: %b\r\nx-nebula-decision: %b\r\n" % (replica.encode("latin-1"), said)


def engine_lines(content_type: bytes, passed: bytes, request_id: bytes, went: bytes, overhead_seconds: float) -> bytes:
    """Of an engine's answer. `passed` and `went` are lines; of the overhead milliseconds are shown, to a hundredth."""
    # Whole numbers: formatting a float takes three times as long.
    hundredths = int(overhead_seconds * 100_000.0 + 0.5)
    return b"content-type: %b\r\n%bx-request-id: %b\r\n%bx-nebula-overhead-ms: %d.%02d\r\n" % (
        content_type,
        passed,
        request_id,
        went,
        hundredths // 100,
        hundredths % 100,
    )


def wants_retry_after(status: int, head: bytes) -> bool:
    """Whether an engine's answer asks for patience without saying how much."""
    return status in _SLOW_DOWN and b"retry-after: " not in head


def advice_lines(status: int, retry_after: int | None) -> bytes:
    """Whether to try again, for an engine's answer other than 200; `retry_after` in seconds where the engine named none."""
    lines = b"" if retry_after is None else b"retry-after: %d\r\n" % retry_after
    if 400 <= status < 500 or status == 503:
        lines += _COME_BACK if status in _SLOW_DOWN else _STAY_AWAY
    return lines


def refusal_lines(refusal: Refusal, request_id: bytes) -> bytes:
    """Of an answer of ours."""
    lines = b"content-type: application/json\r\nx-request-id: %b\r\n" % request_id
    if refusal.retry_after is not None:
        return lines + b"retry-after: %d\r\n%b" % (refusal.retry_after, _COME_BACK)
    return lines + _STAY_AWAY if refusal.status < 500 else lines
