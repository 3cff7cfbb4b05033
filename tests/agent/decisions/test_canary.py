"""Canaries: asked only of the idle, believed twice, and never in anybody's figures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.decisions.canary import MOST_FAILURES, Canary, Toll
from nebula_agent.decisions.rates import Reading
from nebula_core.records.base import frozen_map


def reading(at=0.0, finished=0.0, tokens=0.0, prompt=0.0, buckets=((0.1, 0.0), (float("inf"), 0.0))):
    counters = {"finished": finished, "generation_tokens": tokens, "prompt_tokens": prompt}
    return Reading(at, frozen_map(counters), frozen_map({"ttft": buckets}))


def test_it_is_due_after_a_minute_of_idleness_and_once_a_minute_then():
    canary = Canary().seen(idle=True, moved=False, now=0.0)
    assert not canary.due(59.9, after=60)
    assert canary.due(60.0, after=60)
    canary = canary.answered(60.2, passed=True)
    assert not canary.due(100, after=60)
    assert canary.due(120.2, after=60)


def test_real_traffic_is_the_better_witness():
    canary = Canary().seen(idle=True, moved=False, now=0.0).seen(idle=True, moved=True, now=50.0)
    assert not canary.due(70, after=60)
    canary = canary.seen(idle=True, moved=False, now=51.0)
    assert not canary.due(110, after=60)
    assert canary.due(111, after=60)
    assert not Canary().seen(idle=False, moved=False, now=0).due(1000, after=60)
    assert not Canary().seen(idle=None, moved=False, now=0).due(1000, after=60)


def test_a_failure_is_followed_at_once_by_another_and_tokens_forgive_it():
    canary = Canary().seen(idle=True, moved=False, now=0.0).answered(75.0, passed=False)
    assert canary.failures == 1
    assert canary.due(75.1, after=60)
    assert canary.answered(90, passed=False).failures == MOST_FAILURES
    assert canary.seen(idle=False, moved=True, now=76).failures == 0
    assert canary.answered(90, passed=True).failures == 0


def test_a_canary_alone_leaves_no_trace():
    before = reading(finished=4, tokens=100, prompt=50, buckets=((0.1, 3.0), (float("inf"), 4.0)))
    after = reading(1.0, finished=5, tokens=101, prompt=51, buckets=((0.1, 4.0), (float("inf"), 5.0)))
    toll = Toll().with_canary(before, after, 1.0)
    shown = toll.off(after)
    assert (shown.counters, shown.histograms) == (before.counters, before.histograms)


def test_of_a_canary_among_others_only_its_known_cost_is_taken_off():
    before, after = reading(), reading(1.0, finished=7, tokens=900, prompt=4000, buckets=((0.1, 7.0), (9.0, 7.0)))
    shown = Toll().with_canary(before, after, 3.0).off(after)
    assert shown.counters == {"finished": 6, "generation_tokens": 899, "prompt_tokens": 3997}
    assert shown.histograms == after.histograms


amounts = st.integers(0, 50)


@given(st.lists(st.tuples(st.booleans(), amounts, amounts), max_size=20))
def test_figures_never_fall_and_end_where_users_brought_them(steps):
    """Users' requests and canaries in any order, one after the other."""
    raw = shown = reading()
    toll, users = Toll(), reading()
    for at, (is_canary, tokens, prompt) in enumerate(steps, 1):
        if is_canary:
            grown = reading(
                at, *(raw.counters[name] + 1 for name in ("finished", "generation_tokens", "prompt_tokens"))
            )
            toll = toll.with_canary(raw, grown, 1.0)
            raw = grown
        else:
            add = {"finished": 1, "generation_tokens": tokens, "prompt_tokens": prompt}
            raw = Reading(at, frozen_map({name: raw.counters[name] + add[name] for name in add}), raw.histograms)
            users = Reading(at, frozen_map({name: users.counters[name] + add[name] for name in add}), users.histograms)
        former, shown = shown, toll.off(raw)
        assert all(shown.counters[name] >= former.counters[name] for name in shown.counters)
    assert shown.counters == pytest.approx(dict(users.counters))
