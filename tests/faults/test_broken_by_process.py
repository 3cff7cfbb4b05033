"""`benchmarks/broken_streams.py` in small: a real worker, engines that break off and are killed, clients on bare sockets."""

import pytest

from benchmarks.broken_streams import LEFT, REFUSED, TOLD, WHOLE, arguments, measure, verdict

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices":[{"delta":{"content":"ab"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'event: error\ndata: {"error":{"code":"engine_died","message":"m"}}\n\n'


def framed(*events: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return HEAD + b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in events) + end


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (framed(TOKEN, DONE), WHOLE),
        (framed(TOKEN, ERROR), TOLD),
        (framed(ERROR), TOLD),
        (framed(TOKEN), "silent end"),
        (framed(TOKEN, end=b""), "framing cut"),
        (framed(TOKEN, DONE, TOKEN), "more after whole"),
        (framed(TOKEN, ERROR, DONE), "more after told"),
        (framed(TOKEN, TOKEN, DONE), "another text"),
        (framed(TOKEN, TOKEN, ERROR), "told after another text"),
        (framed(TOKEN, b'data: {"cho\n\n', DONE), "torn event"),
        (b"", "nothing"),
        (b'HTTP/1.1 502 X\r\n\r\n{"error":{"code":"engine_died"}}', "refused 502 engine_died"),
    ],
)
def test_no_bad_end_is_taken_for_a_good_one(raw: bytes, found: str) -> None:
    assert verdict(raw, "ab") == found


async def test_a_thousand_broken_streams() -> None:
    found = await measure(arguments("--broken", "1000", "--at-once", "48", "--kill-every", "1", "--seed", "11"))
    assert found["bad"] == {}, found["examples"]
    assert found["broken"] >= 1000
    assert found["kills"] > 0
    kinds = {how.split(" ")[0] for how in found["ends"]}
    assert kinds <= {WHOLE, TOLD, REFUSED, LEFT}
    assert {WHOLE, TOLD} <= kinds
    assert found["resumed"] > 100
    assert found["resumed_share"] >= 0.98
    # A tenth of the traffic, and the reserve of 20 that a proxy starts with.
    assert found["attempts_per_request"] <= 1.1 + 20 / found["streams"]
    assert found["after"] == found["before"]
