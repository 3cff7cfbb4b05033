"""Rates and quantiles against the definition, restarts of counters, and progress."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.decisions.progress import Progress
from nebula_agent.decisions.rates import WINDOW_SECONDS, History, Reading, quantile

INF = math.inf


def history(*readings):
    made = History()
    for reading in readings:
        made = made.with_reading(reading)
    return made


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values, q):
    bounds = [0.1, 0.5, 1.0, 2.5, 5.0, INF]
    buckets = tuple((bound, float(sum(value <= bound for value in values))) for bound in bounds)
    found = quantile(buckets, q)
    true = sorted(values)[math.ceil(q * len(values)) - 1]
    upper = next(bound for bound in bounds if true <= bound)
    lower = max((bound for bound in bounds if bound < upper), default=0.0)
    assert lower - 1e-9 <= found <= upper + 1e-9


def test_quantiles_at_the_edges():
    assert quantile((), 0.5) is None
    assert quantile(((1.0, 0.0), (INF, 0.0)), 0.5) is None
    assert quantile(((1.0, 0.0), (INF, 4.0)), 0.5) == 1.0
    assert quantile(((2.0, 4.0), (INF, 4.0)), 0.5) == 1.0


def test_one_scrape_says_nothing_of_rates():
    assert history(Reading(1.0, {"a": 5.0})).rate("a") is None


def test_a_rate_is_between_the_last_two():
    made = history(Reading(1.0, {"a": 0.0}), Reading(2.0, {"a": 100.0}), Reading(4.0, {"a": 110.0}))
    assert made.rate("a") == 5.0
    assert made.rate("b") is None


def test_a_drop_of_any_counter_is_another_start_and_skips_the_interval():
    made = history(Reading(1.0, {"a": 50.0, "b": 7.0}), Reading(2.0, {"a": 60.0, "b": 0.0}))
    assert made.rate("a") is None
    assert made.with_reading(Reading(3.0, {"a": 61.0, "b": 1.0})).rate("a") == 1.0


def test_the_window_forgets():
    readings = [Reading(float(at), {"hit": float(at), "all": float(2 * at)}) for at in range(40)]
    made = history(*readings)
    assert made.readings[0].at == 39 - WINDOW_SECONDS
    assert made.ratio("hit", "all") == 0.5


def test_a_ratio_without_traffic_is_unknown():
    assert history(Reading(1.0, {"h": 1, "q": 2}), Reading(2.0, {"h": 1, "q": 2})).ratio("h", "q") is None


@given(
    st.lists(st.tuples(st.none() | st.integers(0, 3), st.sampled_from([(1.0,), (2.0,), ()])), min_size=1, max_size=30)
)
def test_still_only_while_requests_run_and_nothing_moved(scrapes):
    progress, since, former = Progress(), None, None
    for now, (running, marks) in enumerate(scrapes):
        progress = progress.seen(running, marks, float(now))
        still = bool(running) and bool(marks) and marks == former
        since = (float(now) if since is None else since) if still else None
        former = marks
        assert progress.still_since == since


def test_movement_is_judged_by_any_mark():
    progress = Progress().seen(2, (10.0, 5.0), 1.0).seen(2, (10.0, 5.0), 2.0)
    assert progress.still_since == 2.0
    # A step without a token, as in a long prefill.
    assert progress.seen(2, (10.0, 6.0), 3.0).still_since is None
    assert pytest.approx(progress.seen(2, (10.0, 5.0), 9.0).still_since) == 2.0
