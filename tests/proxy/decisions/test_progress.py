"""A replica hangs when nothing of it moves; anything that moves acquits it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions.progress import (
    MOVING_EVENTS,
    MUTE_UNSEEN_SECONDS,
    STALL_SECONDS,
    TELLING_BYTES,
    Flow,
    PromptPace,
    Replica,
    Verdict,
    first_guess,
    hang,
)

FLOWS = st.builds(
    Flow,
    silent=st.floats(0, 200),
    events=st.integers(0, 100),
    gap=st.none() | st.floats(0.001, 5),
    size=st.integers(10, 400_000),
    streamed=st.booleans(),
    fetches=st.booleans(),
)
SEEN = st.builds(
    Replica,
    flows=st.lists(FLOWS, max_size=5),
    plain=st.integers(0, 3),
    quiet=st.floats(0, 200),
    witnessed=st.booleans(),
)
#: Between two looks of the watch.
LOOK_SECONDS = 1.0


def flow(silent: float, events: int = 50, gap: float | None = 0.02, size: int = 400, **more: bool) -> Flow:
    return Flow(silent, events, gap, size, **more)


def mute(silent: float, size: int = 400, **more: bool) -> Flow:
    return flow(silent, 0, None, size, **more)


@given(seen=SEEN, pace=st.none() | st.floats(1e-6, 1e-3))
def test_the_laws_of_hanging(seen: Replica, pace: float | None) -> None:
    verdict = hang(seen, pace)
    if verdict is None:
        return
    assert seen.flows
    assert seen.quiet > STALL_SECONDS
    # One stream that moves is enough, and so is one counter that went up.
    alive = seen._replace(flows=[*seen.flows, flow(1.0)], quiet=1.0)
    assert hang(alive, pace) is None
    assert hang(seen._replace(quiet=STALL_SECONDS), pace) is None
    # More silence never acquits.
    later = [each._replace(silent=each.silent + 10) for each in seen.flows]
    assert hang(seen._replace(flows=later, quiet=seen.quiet + 10), pace) is not None


@given(
    events=st.integers(0, 2000),
    gap=st.floats(0.001, 0.2),
    size=st.integers(50, 20_000),
    streamed=st.booleans(),
    long_ago=st.floats(0, 1000),
    pace=st.floats(1e-6, 1e-4),
)
def test_a_lone_request_leaves_a_hung_engine_within_ten_seconds(
    events: int, gap: float, size: int, streamed: bool, long_ago: float, pace: float
) -> None:
    """R4: by a witness whatever it is; without one by the tokens that came."""
    silent = 10.0 - LOOK_SECONDS
    alone = flow(silent, events if streamed else 0, gap if streamed and events > 1 else None, size, streamed=streamed)
    assert hang(Replica([alone], 0, silent + long_ago, True), pace) is not None
    assert hang(Replica([alone._replace(size=size % TELLING_BYTES)], 0, silent + long_ago, True), None) is not None
    if streamed and events >= MOVING_EVENTS:
        assert hang(Replica([alone], 0, silent, False), None) is not None


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (Replica([flow(5.5), flow(6.0)], 0, 5.5, False), Verdict.STALLED),
        # A counter went up a moment ago.
        (Replica([flow(5.5), flow(6.0)], 0, 3.5, True), None),
        (Replica([flow(60.0), flow(0.5)], 0, 0.5, False), None),
        # A request that ended a moment ago was served.
        (Replica([flow(60.0)], 0, 1.0, True), None),
        # Slow tokens: 20 gaps of 0.5 s are 10 s.
        (Replica([flow(8.0, gap=0.5)], 0, 8.0, True), None),
        (Replica([flow(10.5, gap=0.5)], 0, 10.5, True), Verdict.STALLED),
        # A lone stream without a witness may think.
        (Replica([flow(7.5)], 0, 7.5, False), None),
        (Replica([flow(8.5)], 0, 8.5, False), Verdict.STALLED),
        (Replica([flow(5.5)], 0, 5.5, True), Verdict.STALLED),
        # A long prompt holds the others up: 200 kB at the first guess are 15 s, three times that are allowed.
        (Replica([flow(30.0), flow(30.0), mute(30.0, 200_000)], 0, 30.0, True), None),
        (Replica([flow(46.0), flow(46.0), mute(46.0, 200_000)], 0, 46.0, True), Verdict.STALLED),
        # No token yet: who waits inside a busy engine sees the same, unless the engine is known to stand still.
        (Replica([mute(9.0)], 0, 9.0, True), Verdict.MUTE),
        (Replica([mute(7.0)], 0, 7.0, True), None),
        # How fast the model reads a long prompt is not known yet.
        (Replica([mute(14.0, 4_000)], 0, 14.0, True), None),
        (Replica([mute(16.0, 4_000)], 0, 16.0, True), Verdict.MUTE),
        (Replica([mute(16.0)], 0, 16.0, False), Verdict.MUTE),
        (Replica([mute(14.0)], 0, 14.0, False), None),
        (Replica([mute(60.0)], 0, 2.0, False), None),
        # A token or two, and then nothing.
        (Replica([flow(9.0, 2)], 0, 9.0, True), Verdict.MUTE),
        (Replica([flow(16.0, 1, None)], 0, 16.0, False), Verdict.MUTE),
        # An answer that is not streamed shows nothing: the witness alone can tell, of it and of those behind it.
        (Replica([mute(9.0, streamed=False)], 0, 9.0, True), Verdict.MUTE),
        (Replica([mute(100.0, streamed=False)], 0, 100.0, False), None),
        (Replica([mute(16.0), mute(16.0, streamed=False)], 0, 16.0, False), None),
        (Replica([mute(16.0)], 1, 16.0, False), None),
        (Replica([mute(16.0)], 1, 16.0, True), Verdict.MUTE),
        # The engine fetches a film before it begins.
        (Replica([mute(30.0, fetches=True)], 0, 30.0, True), None),
        (Replica([mute(31.0, fetches=True)], 0, 31.0, True), Verdict.MUTE),
        (Replica([], 5, 500.0, True), None),
        # Nobody else could take them: as long as the agent waits before it ends such an engine.
        (Replica([flow(29.0), flow(29.0)], 0, 29.0, True, elsewhere=False), None),
        (Replica([flow(49.0)], 0, 49.0, True, elsewhere=False), Verdict.STALLED),
        (Replica([mute(29.0)], 0, 29.0, True, elsewhere=False), None),
        (Replica([mute(31.0)], 0, 31.0, True, elsewhere=False), Verdict.MUTE),
    ],
)
def test_cases(seen: Replica, verdict: Verdict | None) -> None:
    assert hang(seen, None) is verdict


def test_the_pace_of_prompts_rises_at_once_and_falls_slowly() -> None:
    pace = PromptPace().seen(3.0, 100)
    assert pace.value is None
    pace = pace.seen(1.0, 10_000)
    assert pace.value == pytest.approx(1e-4)
    pace = pace.seen(10.0, 10_000)
    assert pace.value == pytest.approx(1e-3)
    lower = pace.seen(1.0, 10_000)
    assert lower.value == pytest.approx(0.955e-3)
    assert hang(Replica([mute(MUTE_UNSEEN_SECONDS + 1, 20_000)], 0, 100.0, False), 1e-3) is None


def test_a_model_without_a_gpu_reads_slowly() -> None:
    reading = Replica([mute(25.0, 2_000)], 0, 25.0, True)
    assert hang(reading, None, first_guess("llamacpp")) is None
    assert hang(reading, None, first_guess("vllm")) is Verdict.MUTE
    assert hang(reading, 1e-4, first_guess("llamacpp")) is Verdict.MUTE
