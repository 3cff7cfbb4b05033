"""From figures of a moment ago to the load of now."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions.load import NO_FIGURES, Figures, most_open, slots_after, waiting_now

COUNTS = st.integers(0, 300)
FIGURES = st.builds(Figures, st.none() | COUNTS, st.none() | COUNTS)


@pytest.mark.parametrize(
    ("slots", "said", "before", "now", "expected"),
    [
        # One sample with a queue may be a burst that has just come.
        (None, None, NO_FIGURES, Figures(2, 18), None),
        (None, None, Figures(2, 18), Figures(20, 4), None),
        (None, None, Figures(16, 4), Figures(16, 8), 16),
        (None, None, Figures(16, 4), Figures(15, 8), 16),
        (16, None, Figures(16, 8), Figures(16, 0), 16),
        (16, None, Figures(16, 8), Figures(3, 0), 16),
        # More run than it was thought to be able to.
        (3, None, Figures(3, 0), Figures(11, 0), None),
        (3, 32, Figures(3, 0), Figures(11, 0), 32),
        (None, 32, Figures(8, 4), Figures(8, 4), 8),
        (16, None, Figures(16, 4), Figures(None, None), 16),
    ],
)
def test_slots(slots: int | None, said: int | None, before: Figures, now: Figures, expected: int | None) -> None:
    assert slots_after(slots, said, before, now) == expected


@given(st.none() | st.integers(1, 300), st.none() | st.integers(1, 300), st.lists(FIGURES, min_size=2, max_size=20))
def test_slots_are_never_below_one_nor_below_what_runs_alone(
    slots: int | None, said: int | None, samples: list[Figures]
) -> None:
    for before, now in itertools.pairwise(samples):
        slots = slots_after(slots, said, before, now)
        assert slots is None or slots >= 1
        if slots is not None and slots != said and now.running is not None and now.waiting == 0:
            assert now.running <= slots, "what it is seen to run, it can run"


@given(st.none() | COUNTS, COUNTS, COUNTS)
def test_waiting_follows_what_was_opened_and_ended(waiting: int | None, opened: int, then: int) -> None:
    now = waiting_now(waiting, opened, then)
    if not waiting:
        assert now == waiting, "who had no queue may have room for more than was sent"
    else:
        assert now is not None
        assert now >= 0
        assert waiting_now(waiting, opened + 1, then) in (now, now + 1)
    assert waiting_now(waiting, then, then) == waiting


def test_full_at_slots_and_the_bound() -> None:
    assert most_open(256, 8, None) == 256
    assert most_open(256, 8, 16) == 24
    assert most_open(20, 8, 16) == 20
