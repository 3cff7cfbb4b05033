"""Choosing a replica: the laws of filter, admission and score."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions.admission import nothing_ready, saturation
from nebula_proxy.decisions.candidates import SAMPLE_FRESH_SECONDS, Candidate, Standing, untried
from nebula_proxy.decisions.routing import STRATEGIES, Choice, NoChoice, choose, explain


def candidate(replica: str = "r0", **changes: object) -> Candidate:
    fields: dict[str, object] = {
        "replica": replica,
        "standing": Standing.SOUND,
        "inflight": 0,
        "elsewhere": 0,
        "waiting": 0,
        "kv_cache_usage": 0.1,
        "sample_age": 0.5,
        "max_waiting": 8,
        "max_kv_cache_usage": 0.95,
        "max_inflight": 256,
    }
    return Candidate(**(fields | changes))  # type: ignore[arg-type]


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        replica=st.text("abcdef", min_size=1, max_size=6),
        standing=st.sampled_from(Standing),
        inflight=st.integers(0, 10),
        elsewhere=st.integers(0, 10),
        waiting=st.none() | st.integers(0, 12),
        kv_cache_usage=st.none() | st.floats(0, 1),
        sample_age=st.floats(0, 10),
        max_waiting=st.integers(1, 10),
        max_kv_cache_usage=st.floats(0.5, 1),
        max_inflight=st.integers(1, 20),
    ),
    max_size=8,
    unique_by=lambda each: each.replica,
)


@given(CANDIDATES, st.sampled_from(sorted(STRATEGIES)), st.integers(0, 100), st.none() | st.just("a"))
def test_the_choice_is_the_best_of_the_best(
    candidates: list[Candidate], strategy: str, turn: int, without: str | None
) -> None:
    choice = choose(candidates, strategy, turn, without=without)
    able = [each for each in candidates if each.standing is not Standing.OUT and each.replica != without]
    assert untried(candidates, without) == len(able)
    if not able:
        assert choice is NoChoice.NOBODY
        return
    tier = min(max(0, each.standing - 1) if each.standing is Standing.PROBE else each.standing for each in able)
    best = [each for each in able if (0 if each.standing is Standing.PROBE else each.standing) == tier]
    roomy = [each for each in best if saturation(each) < 1]
    if not roomy:
        assert choice is NoChoice.SATURATED
        return
    assert isinstance(choice, Choice)
    assert choice.candidate in roomy
    assert choice.of == len(roomy)
    assert choice.score == min(STRATEGIES[strategy](each) for each in roomy)


@given(st.integers(1, 6), st.integers(0, 50))
def test_equals_take_turns(count: int, turn: int) -> None:
    equals = [candidate(f"r{number}") for number in range(count)]
    picked = set()
    for step in range(count):
        choice = choose(equals, "least_pending", turn + step)
        assert isinstance(choice, Choice)
        picked.add(choice.candidate.replica)
    assert len(picked) == count


def replica_of(choice: Choice | NoChoice) -> str:
    assert isinstance(choice, Choice)
    return choice.candidate.replica


def test_least_pending_counts_what_all_proxies_opened_and_what_waits() -> None:
    busy, idle = candidate("busy", inflight=3), candidate("idle", inflight=2)
    assert replica_of(choose([busy, idle], "least_pending", 0)) == "idle"
    assert replica_of(choose([busy, idle._replace(elsewhere=5)], "least_pending", 0)) == "busy"
    assert replica_of(choose([busy, idle._replace(waiting=4)], "least_pending", 0)) == "busy"
    # A figure that has grown old says nothing.
    stale = idle._replace(waiting=4, sample_age=SAMPLE_FRESH_SECONDS + 0.1)
    assert replica_of(choose([busy, stale], "least_pending", 0)) == "idle"
    assert replica_of(choose([busy, idle._replace(waiting=None)], "least_pending", 0)) == "idle"


def test_least_kv_cache_takes_the_emptier() -> None:
    full, empty = candidate("full", kv_cache_usage=0.8), candidate("empty", kv_cache_usage=0.2)
    assert replica_of(choose([full, empty], "least_kv_cache", 0)) == "empty"
    unknown = candidate("unknown", kv_cache_usage=None)
    assert replica_of(choose([full, unknown], "least_kv_cache", 0)) == "unknown"


def test_an_unknown_strategy_falls_back_and_says_so() -> None:
    choice = choose([candidate("a"), candidate("b", inflight=1)], "fastest", 0)
    assert isinstance(choice, Choice)
    assert (choice.candidate.replica, choice.strategy, choice.reason) == ("a", "least_pending", "fallback")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, pytest.approx(0.1 / 0.95)),
        ({"waiting": 4}, 0.5),
        ({"waiting": 8}, 1.0),
        ({"kv_cache_usage": 0.95}, 1.0),
        ({"inflight": 128, "elsewhere": 128}, 1.0),
        ({"waiting": 8, "sample_age": 60.0}, 0.0),
        ({"waiting": None, "kv_cache_usage": None}, 0.0),
    ],
)
def test_saturation(changes: dict[str, object], expected: float) -> None:
    assert saturation(candidate(**changes)) == expected


@pytest.mark.parametrize(
    ("starting", "ejected", "wanted", "code"),
    [(1, 0, 2, "model_starting"), (1, 1, 2, "model_starting"), (0, 1, 2, "no_replica"), (0, 0, 0, "no_replica"), (0, 0, 2, "no_capacity")],
)  # fmt: skip
@pytest.mark.parametrize("roll", [0.0, 0.5, 0.999])
def test_why_nothing_is_ready(starting: int, ejected: int, wanted: int, code: str, roll: float) -> None:
    refusal = nothing_ready("m", ejected=ejected, starting=starting, wanted=wanted, roll=roll)
    assert (refusal.status, refusal.code) == (503, code)
    assert refusal.retry_after is not None
    assert 1 <= refusal.retry_after <= 60
    assert refusal.hint


def test_a_choice_is_explained_in_one_line() -> None:
    assert explain("least_pending", "lowest", 2.0, 3) == "least_pending; lowest; score=2; of=3"
