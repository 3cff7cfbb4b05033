"""Ten minutes of many series, a few bytes a sample."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_tui.presenters.history import History, shape

VALUES = st.one_of(st.none(), st.floats(0, 1e6, width=32))


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), VALUES), max_size=40), st.integers(1, 20))
def test_it_reads_back_the_newest_values_of_every_series(frames: list[dict[str, float | None]], window: int) -> None:
    history = History(window)
    for frame in frames:
        history.record(frame)
    seen = {name for frame in frames for name in frame}
    for name in seen:
        expected = tuple(frame.get(name) for frame in frames[-window:])
        assert history.read(name) == expected
        assert history.read(name, 3) == expected[-3:]
    assert history.read("never") == ()


def test_slots_of_what_is_long_gone_are_used_again_and_tell_nothing_of_it() -> None:
    history = History(30)
    history.record({"old": 7.0})
    for _ in range(120):
        history.record({"kept": 1.0})
    history.record({"kept": 1.0, "new": 2.0})
    assert history.read("old") == ()
    assert [value for value in history.read("new") if value is not None] == [2.0]
    assert set(history.read("kept")) == {1.0}


def test_downsampling_keeps_the_peaks() -> None:
    history = History(600)
    for tick in range(600):
        history.record({"a": 100.0 if tick == 301 else 1.0})
    drawn = history.downsampled("a", 20)
    assert len(drawn) == 20
    assert max(value for value in drawn if value is not None) == 100.0


@given(st.lists(VALUES, max_size=40))
def test_a_shape_is_between_nothing_and_one_and_keeps_the_unknown(values: list[float | None]) -> None:
    drawn = shape(values)
    assert [value is None for value in drawn] == [value is None for value in values]
    assert all(value is None or 0 <= value <= 1.0001 for value in drawn)


def test_what_does_not_move_is_a_quiet_line_and_a_tenth_can_be_seen() -> None:
    assert shape([5.0, 5.0, 5.01]) == (0.0, 0.0, 0.0)
    low, high = shape([100.0, 110.0])
    assert low is not None
    assert high is not None
    assert high - low > 0.5
