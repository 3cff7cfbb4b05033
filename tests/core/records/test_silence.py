"""When a silent node is suspect and when it is lost (GOALS R5), in time that only passes when a test says so."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_core.records.compact import NodeDelta
from nebula_core.records.snapshot import LOST_AFTER_SECONDS, SUSPECT_AFTER_SECONDS, ClusterSnapshot, NodeState
from tests.support.records import a_report

READY, SUSPECT, LOST = NodeState.READY, NodeState.SUSPECT, NodeState.LOST


def heard(at: float) -> ClusterSnapshot:
    return ClusterSnapshot().with_reports([a_report()], at=at)


def test_the_thresholds_are_two_and_ten_seconds():
    view = heard(100.0)
    ages = {0.0: READY, 2.0: READY, 2.001: SUSPECT, 10.0: SUSPECT, 10.001: LOST, 1e6: LOST}
    assert {age: view.node_state("n1", 100.0 + age) for age in ages} == ages
    assert (SUSPECT_AFTER_SECONDS, LOST_AFTER_SECONDS) == (2.0, 10.0)
    assert view.node_state("never-heard-of", 100.0) is LOST


@given(st.lists(st.floats(0.0, 9.99), min_size=1, max_size=30), st.data())
def test_who_says_something_within_ten_seconds_is_never_lost(gaps, data):
    view, now = heard(0.0), 0.0
    for sequence, gap in enumerate(gaps, 2):
        look = now + data.draw(st.floats(0.0, gap))
        state = view.node_state("n1", look)
        assert state is not LOST
        assert (state is SUSPECT) is (look - now > SUSPECT_AFTER_SECONDS)
        now += gap
        if data.draw(st.booleans()):
            view = view.with_deltas([NodeDelta(node="n1", sequence=sequence)], at=now)
        else:
            view = view.with_reports([a_report(sequence=sequence)], at=now)
        assert view.node_state("n1", now) is READY


@given(st.integers(0, 8 * 10**5), st.integers(0, 8 * 60))
def test_seconds_in_which_nobody_could_be_heard_do_not_count(deaf, silent):
    deaf, silent = deaf / 8, silent / 8  # sums of eighths are exact, also at the thresholds
    view = heard(0.0).forgiving(deaf)
    assert view.node_state("n1", deaf + silent) is heard(0.0).node_state("n1", silent)
