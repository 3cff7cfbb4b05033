"""The lines of `why`: the times, the attempts, the losers' reasons; unknown is –, and no line is wider than the room."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_core.records.decision import AttemptRecord, CandidateRecord, DecisionRecord
from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.text import joined
from nebula_tui.presenters.why import why_lines

RECORD = DecisionRecord(
    id="req-1",
    proxy="vm-1",
    at=1_790_346_127.5,
    path="/v1/chat/completions",
    model="chat",
    key_id="k1",
    key_name="ci",
    stream=True,
    outcome="ok",
    status=200,
    kept_because="retried",
    wait_seconds=0.5,
    attempts=(
        AttemptRecord(
            replica="chat-r0",
            strategy="least_pending",
            reason="lowest",
            at_seconds=0.5,
            candidates=(
                CandidateRecord(replica="chat-r0", score=1.0, chosen=True, sample_age_seconds=0.4),
                CandidateRecord(replica="chat-r1", score=3.0, inflight=3, lost_because="score 3 above 1"),
            ),
            candidates_total=30,
            trouble="lost",
            detail="connection reset",
        ),
        AttemptRecord(
            replica="chat-r1",
            strategy="least_pending",
            reason="only",
            at_seconds=1.0,
            guard="loads drifted apart",
            candidates=(CandidateRecord(replica="chat-r1", score=3.0, chosen=True),),
            candidates_total=1,
        ),
    ),
    ttft_seconds=2.0,
    tpot_seconds=0.01,
    overhead_seconds=0.0004,
    duration_seconds=10.0,
    prompt_tokens=1402,
    completion_tokens=801,
    request_bytes=5000,
    response_bytes=90_000,
    trace_id="ab" * 16,
)


def text(record: DecisionRecord, width: int = 118) -> str:
    return "\n".join(joined(line) for line in why_lines(record, width, 0))


def test_all_that_matters_is_said() -> None:
    said = text(RECORD)
    for words in (
        "ok 200 · chat · chat/r1 · 10s",
        "14:22:07.500",
        "key ci (k1)",
        "retries are always kept",
        "waited for room",
        "r0 ▲ lost",
        "▲ lost: connection reset",
        "r1 first token",
        "r1 tokens",
        "prompt 1,402 tok · answer 801 tok · 100 tok/s · TTFT 2.0s · waited 0.50s · proxy's own 0.4ms",
        "score 3 above 1",
        "and 28 more",
        "guard: loads drifted apart",
        f"trace {'ab' * 16}",
    ):
        assert words in said, words
    bars = [joined(line) for line in why_lines(RECORD, 118, 0) if "█" in joined(line)]
    assert [bar.split("█")[0].count(" ") > 0 for bar in bars] == [True] * 4
    starts = [bar.index("█") for bar in bars]
    assert starts == sorted(starts)


def test_troubles_have_colour_and_the_chosen_one_is_marked() -> None:
    lines = why_lines(RECORD, 118, 0)
    assert any(severity is Severity.CRIT for line in lines for _, severity in line)
    assert sum(joined(line).startswith("▶") for line in lines) == 2


def test_an_open_request_and_a_refused_one() -> None:
    open_one = RECORD.model_copy(
        update={"outcome": "open", "status": None, "ttft_seconds": None, "tpot_seconds": None, "attempts": ()}
    )
    said = text(open_one)
    assert "○ open" in said
    assert "– tok/s" in said
    assert "TTFT –" in said
    refused = DecisionRecord(
        id="x", proxy="p", at=0.0, path="/v1/completions", status=429, outcome="overloaded", detail="all are saturated"
    )
    said = text(refused)
    assert "● overloaded 429" in said
    assert "all are saturated" in said
    assert "no replica was considered" in said


@given(
    st.floats(0, 1e6),
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.integers(60, 200),
)
def test_no_bar_leaves_its_room(seconds: float, wait: float | None, ttft: float | None, at: float, width: int) -> None:
    attempts = tuple(one.model_copy(update={"at_seconds": at}) for one in RECORD.attempts)
    record = RECORD.model_copy(
        update={"duration_seconds": seconds, "wait_seconds": wait, "ttft_seconds": ttft, "attempts": attempts}
    )
    for line in why_lines(record, width, 0):
        if "█" in joined(line):
            assert len(joined(line)) <= width
