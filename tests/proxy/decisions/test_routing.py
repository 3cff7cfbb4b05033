"""Choosing a replica: the laws of filter, score and pick."""

import json
from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.wire.openai import Facts, read_facts
from nebula_proxy.decisions.admission import nothing_ready, saturation
from nebula_proxy.decisions.candidates import Candidate, Standing, slow_start, untried
from nebula_proxy.decisions.field import Weighed, field_of, is_full_by_sample
from nebula_proxy.decisions.prefix_index import PrefixIndex
from nebula_proxy.decisions.routing import Choice, NoChoice, choose, explain
from nebula_proxy.decisions.strategies import BUILT_IN, Ask, Verdict
from tests.support.candidates import CANDIDATES, candidate

NAMES = st.sampled_from(sorted(BUILT_IN))
PROMPTS = st.sampled_from(["", "short", "long " * 300])
INFLIGHT = st.dictionaries(st.text("abcdef", min_size=1, max_size=6), st.integers(0, 25), max_size=8)


def facts_of(text: str, **fields: object) -> Facts:
    facts = read_facts(json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **fields}).encode())
    assert isinstance(facts, Facts)
    return facts


def tier_of(each: Candidate) -> Standing:
    return Standing.SOUND if each.standing is Standing.PROBE else each.standing


@given(CANDIDATES, NAMES, st.integers(0, 100), st.none() | st.just("a"), INFLIGHT, PROMPTS)
def test_the_choice_is_of_the_best_standing_and_has_room(
    candidates: list[Candidate], strategy: str, turn: int, without: str | None, inflight: dict[str, int], text: str
) -> None:
    ask = Ask(facts_of(text, user="somebody"), index=PrefixIndex())
    choice = choose(field_of(candidates, without=without), strategy, turn, inflight=inflight, ask=ask)
    able = [each for each in candidates if each.standing is not Standing.OUT and each.replica != without]
    assert untried(candidates, without) == len(able)
    if not able:
        assert choice is NoChoice.NOBODY
        return
    tier = min(tier_of(each) for each in able)
    best = [each._replace(inflight=inflight.get(each.replica, 0)) for each in able if tier_of(each) is tier]
    roomy = [each for each in best if saturation(each) < 1]
    if not roomy:
        assert choice is NoChoice.SATURATED
        return
    if isinstance(choice, Choice):
        chosen = next(each for each in roomy if each.replica == choice.replica)
        # A share of 0 takes nothing while another with room has one.
        assert chosen.weight > 0 or all(each.weight == 0 for each in best if not is_full_by_sample(each))
        assert choice.verdict is not None
        assert isfinite(choice.score)
        assert choice.score <= min(choice.verdict.scores) + choice.verdict.slack
    else:
        # All that have room by their sample are full by what was sent since, or have no share beside one that is full.
        assert choice is NoChoice.SATURATED
        assert all(
            each.weight == 0
            or (each.waiting and each.inflight - each.inflight_at_sample >= each.max_waiting - each.waiting)
            for each in roomy
        )


@given(st.integers(1, 6), st.integers(0, 50), st.sampled_from(["least_pending", "least_kv_cache", "round_robin"]))
def test_equals_take_turns(count: int, turn: int, strategy: str) -> None:
    equals = field_of([candidate(f"r{number}") for number in range(count)])
    assert {replica_of(choose(equals, strategy, turn + step)) for step in range(count)} == set(equals.replicas)


@given(NAMES, st.integers(2, 6))
def test_no_strategy_starves_a_replica(strategy: str, count: int) -> None:
    """Requests that stay open: whatever the strategy prefers, nobody is left without any."""
    field = field_of([candidate(f"r{number}", seat=1 << number) for number in range(count)])
    index = PrefixIndex()
    inflight: dict[str, int] = {}
    for turn in range(60 * count):
        ask = Ask(facts_of("the same " * 100, user="u"), index=index)
        choice = choose(field, strategy, turn, inflight=inflight, ask=ask)
        replica = replica_of(choice)
        inflight[replica] = inflight.get(replica, 0) + 1
        if ask.looked_up:
            index.insert(ask.chain, 1 << field.replicas.index(replica), 0.0)
    assert set(inflight) == set(field.replicas)
    assert max(inflight.values()) - min(inflight.values()) <= 40


def replica_of(choice: Choice | NoChoice) -> str:
    assert isinstance(choice, Choice)
    return choice.replica


def pick(*candidates: Candidate, strategy: str = "least_pending", inflight: dict[str, int] | None = None) -> str:
    return replica_of(choose(field_of(candidates), strategy, 0, inflight=inflight or {}))


def test_least_pending_counts_what_all_proxies_opened_and_what_waits() -> None:
    busy, idle = candidate("busy"), candidate("idle")
    inflight = {"busy": 3, "idle": 2}
    assert pick(busy, idle, inflight=inflight) == "idle"
    assert pick(busy, idle._replace(elsewhere=5), inflight=inflight) == "busy"
    assert pick(busy, idle._replace(waiting=4), inflight=inflight) == "busy"


def test_a_figure_that_has_grown_old_says_nothing() -> None:
    busy, idle = candidate("busy"), candidate("idle", waiting=4, sample_age=2.6)
    assert pick(busy, idle, inflight={"busy": 3, "idle": 2}) == "idle"


@given(st.integers(0, 7), st.floats(0, 0.9), st.floats(2.51, 60))
def test_silence_neither_wins_nor_loses(waiting: int, usage: float, age: float) -> None:
    """One whose figures are stale counts as the others do: with the same open requests they are equal."""
    known = candidate("known", waiting=waiting, kv_cache_usage=usage)
    silent = candidate("silent", waiting=0, kv_cache_usage=0.0, sample_age=age)
    for strategy in ("least_pending", "least_kv_cache"):
        choice = choose(field_of([known, silent]), strategy, 0)
        assert isinstance(choice, Choice)
        assert choice.verdict is not None
        assert choice.verdict.scores[0] == pytest.approx(choice.verdict.scores[1])


def test_least_kv_cache_takes_the_emptier() -> None:
    full, empty = candidate("full", kv_cache_usage=0.8), candidate("empty", kv_cache_usage=0.2)
    assert pick(full, empty, strategy="least_kv_cache") == "empty"
    assert pick(full, candidate("unknown", kv_cache_usage=None), empty, strategy="least_kv_cache") == "empty"


def test_what_was_sent_since_the_sample_counts_for_the_kv_cache() -> None:
    one = candidate("one", kv_cache_usage=0.4, running=4)
    other = candidate("other", kv_cache_usage=0.45, running=4, inflight_at_sample=4)
    assert pick(one, other, strategy="least_kv_cache") == "one"
    # Two more were sent there, each worth a tenth.
    assert pick(one, other, strategy="least_kv_cache", inflight={"one": 2, "other": 4}) == "other"


def test_what_was_sent_since_the_sample_fills_the_queue() -> None:
    crowded = candidate("crowded", waiting=6, max_waiting=8, inflight_at_sample=10)
    assert pick(crowded, inflight={"crowded": 11}) == "crowded"
    assert choose(field_of([crowded]), "least_pending", 0, inflight={"crowded": 12}) is NoChoice.SATURATED
    # Until the next sample says otherwise, or this one is old.
    assert pick(crowded._replace(sample_age=2.6), inflight={"crowded": 12}) == "crowded"


def test_a_new_replica_gets_its_share_slowly() -> None:
    assert [slow_start(seconds) for seconds in (0.0, 3.0, 15.0, 30.0, 1e9)] == [0.1, 0.1, 0.5, 1.0, 1.0]
    field = field_of([candidate("old"), candidate("new", weight=0.25)])
    inflight = {"old": 0, "new": 0}
    for turn in range(100):
        inflight[replica_of(choose(field, "least_pending", turn, inflight=inflight))] += 1
    assert inflight == {"old": 80, "new": 20}


def test_a_share_of_nothing_takes_requests_only_alone() -> None:
    aside, other = candidate("aside", weight=0.0), candidate("other")
    assert pick(aside, other, inflight={"other": 100}) == "other"
    assert pick(aside) == "aside"
    assert pick(aside, candidate("gone", standing=Standing.OUT)) == "aside"


def test_two_of_the_equals_are_compared_by_their_cache() -> None:
    field = field_of([candidate(f"r{n}", kv_cache_usage=0.5 if n else 0.1) for n in range(3)])
    assert [replica_of(choose(field, "least_pending", turn)) for turn in range(6)].count("r0") > 2


def test_an_unknown_strategy_falls_back_and_says_so() -> None:
    choice = choose(field_of([candidate("a"), candidate("b")]), "fastest", 0, inflight={"b": 1})
    assert isinstance(choice, Choice)
    assert (choice.replica, choice.strategy, choice.reason) == ("a", "least_pending", "fallback")
    assert choice.problem == "there is no strategy 'fastest' here"


def _raises(_ask: Ask, _weighed: Weighed) -> list[float]:
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("strategy", "problem"),
    [
        (_raises, "strategy 'mine' failed: RuntimeError"),
        (lambda _ask, _weighed: [1.0], "it scored 1 of 2"),
        (lambda _ask, _weighed: [float("nan"), 1.0], "it left no replica to be taken"),
        (lambda _ask, _weighed: Verdict([float("inf")] * 2), "it left no replica to be taken"),
        (lambda _ask, _weighed: None, "strategy 'mine' failed: TypeError"),
    ],
)
def test_a_broken_plug_in_is_not_the_requests_trouble(strategy: object, problem: str) -> None:
    choice = choose(
        field_of([candidate("a"), candidate("b")]),
        "mine",
        0,
        inflight={"a": 1},
        strategies={**BUILT_IN, "mine": strategy},  # type: ignore[dict-item]
    )
    assert isinstance(choice, Choice)
    assert (choice.replica, choice.strategy, choice.reason, choice.problem) == (
        "b",
        "least_pending",
        "fallback",
        problem,
    )


def test_a_plug_in_is_one_function() -> None:
    def most_pending(_ask: Ask, weighed: Weighed) -> list[float]:
        return [-load for load in weighed.loads]

    choice = choose(
        field_of([candidate("a"), candidate("b")]),
        "most_pending",
        0,
        inflight={"b": 1},
        strategies={**BUILT_IN, "most_pending": most_pending},
    )
    assert isinstance(choice, Choice)
    assert (choice.replica, choice.strategy, choice.reason) == ("b", "most_pending", "lowest")


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
    field = field_of([candidate("a"), candidate("b"), candidate("c")])
    inflight = {"a": 2, "b": 3, "c": 4}
    choice = choose(field, "least_pending", 0, inflight=inflight)
    assert isinstance(choice, Choice)
    assert explain(choice) == explain(choice, full=False) == "least_pending; lowest; score=2; of=3"
    assert explain(Choice("a", "pinned", "pinned", 0.0, 1)) == "pinned; pinned; score=0; of=1"


def test_what_a_prefix_tells_of_others_is_for_operators() -> None:
    choice = choose(field_of([candidate("a"), candidate("b")]), "prefix_cache_aware", 0, ask=Ask(facts_of("x" * 999)))
    assert isinstance(choice, Choice)
    assert explain(choice, full=False) == "prefix_cache_aware; of=2"
    assert explain(choice) == f"prefix_cache_aware; cold; score={choice.score:g}; of=2"
