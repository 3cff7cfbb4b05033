"""What is said of two clocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.decisions.clock_skew import ClockReading, clock_problem


@pytest.mark.parametrize(
    ("ahead", "severity", "said"),
    [
        (0.3, None, ""),
        (-5.0, "warn", "5 s behind the store's"),
        (44.0, "crit", "44 s ahead of the store's: commands are refused until it is set; engines go on"),
        (-3600.0, "crit", "3600 s behind"),
    ],
)
def test_the_words_follow_from_the_difference(ahead, severity, said):
    problem = clock_problem(ahead)
    assert (None if problem is None else problem.severity) == severity
    assert problem is None or said in problem.message


@given(st.floats(-1e9, 1e9), st.floats(0, 10), st.floats(-1e6, 1e6))
def test_a_slow_answer_says_nothing(here, took, ahead):
    reading = ClockReading(here, here - ahead, took)
    assert (reading.ahead_seconds is None) == (took > 1.0)
