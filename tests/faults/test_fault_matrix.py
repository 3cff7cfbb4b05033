"""`benchmarks/fault_matrix.py` in small: every row once. What had not started is never lost (R1), attempts stay few (R16)."""

import pytest

from benchmarks.broken_streams import TOLD, WHOLE
from benchmarks.fault_matrix import TOKENS, Outcome, arguments, judge, measure
from nebula_proxy.decisions.retry import Budget

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

#: Requests that meet two deaths at once are held back as poison: `all_but_one` is for the benchmark to count.
#: Hangs take eight seconds each: `tests/contracts/data_plane/test_hang.py` has them with a clock of its own.
ROWS = "crash,core_dies,drain,store_killed,store_silent,store_full"


@pytest.mark.parametrize(
    ("raw", "stream", "found"),
    [
        (b"", True, "lost"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n{}", False, "lost"),
        (b"HTTP/1.1 200 OK\r\n\r\n5\r\ndata:", True, "bad"),
        (b"HTTP/1.1 200 OK\r\n\r\n0\r\n\r\n", True, "bad"),
        (b"HTTP/1.1 200 OK\r\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", True, "bad"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"usage":{"completion_tokens":1}}', False, "bad"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"usage":{"completion_tokens":%d}}' % TOKENS, False, WHOLE),
        (b"HTTP/1.1 200 OK\r\n\r\nf\r\nevent: error\n\n\n\r\n0\r\n\r\n", True, TOLD),
    ],
)
def test_each_end_is_known_for_what_it_is(raw: bytes, stream: bool, found: str) -> None:
    assert judge(raw, stream=stream).split(":")[0].split(" ")[0] == found


def test_the_wait_is_the_longest_silence_behind_the_fault() -> None:
    one = Outcome(stream=True, began=1.0, arrivals=[2.0, 8.0, 8.5, 10.0, 11.0])
    assert one.waited(8.25) == 1.5
    assert one.waited(0.5) is None
    assert one.waited(12.0) is None
    assert one.waited(1.5) == 6.0


async def test_nothing_that_had_not_started_is_lost() -> None:
    found = await measure(arguments("--seeds", "1", "--rows", ROWS, "--clients", "12"))
    rows = found["rows"]
    assert list(rows) == ROWS.split(",")  # type: ignore[call-overload]
    for name, row in rows.items():  # type: ignore[attr-defined]
        assert row["requests"] > 20, name
        assert (row["lost"], row["bad"]) == (0, 0), (name, row["examples"])
        # So few requests (fewer still on a busy machine) do not earn the reserve, which a row may spend as a whole.
        few = Budget().reserve / row["requests"]
        assert row["attempts_per_request"] <= 1.0 + max(0.1, Budget().ratio + few), name
    for name in ("store_killed", "store_silent", "store_full"):
        assert rows[name]["told"] == 0  # type: ignore[index]
        assert rows[name]["attempts_per_request"] == 1.0  # type: ignore[index]
    assert found["inflight_at_the_end"] == 0
