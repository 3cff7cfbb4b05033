"""Pictures of numbers, as strings: the size is right, zero is not unknown, and more is never less."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_tui.presenters.glyphs import GAP, Mark, braille, heat, meter, sparkline

VALUES = st.lists(st.none() | st.floats(0, 1e6), max_size=100)


@pytest.mark.parametrize(
    ("fraction", "drawn"),
    [
        (None, "········"),
        (0, "········"),
        (0.01, "■·······"),
        (0.5, "■■■■····"),
        (0.96, "■■■■■■■·"),
        (1, "■■■■■■■■"),
        (1.3, "■■■■■■■■"),
    ],
)
def test_meter(fraction: float | None, drawn: str) -> None:
    assert meter(fraction, 8) == drawn


@given(st.none() | st.floats(-1, 2), st.integers(0, 40))
def test_a_meter_has_its_width(fraction: float | None, width: int) -> None:
    assert len(meter(fraction, width)) == width


@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 40))
def test_a_meter_grows_with_its_value(a: float, b: float, width: int) -> None:
    low, high = sorted((a, b))
    assert meter(low, width).count("■") <= meter(high, width).count("■")


def test_sparkline_shows_the_newest_at_the_right() -> None:
    assert sparkline([9, 1, 2, 4, 8], 4, maximum=8) == "▁▂▄█"
    assert sparkline([8], 4) == "   █"
    assert sparkline([], 3) == "   "


def test_a_gap_in_a_sparkline_is_unlike_zero() -> None:
    assert sparkline([4, None, 0, 4], 4) == "█ ▁█"


@given(VALUES, st.integers(0, 60))
def test_a_sparkline_has_its_width(values: list[float | None], width: int) -> None:
    assert len(sparkline(values, width)) == width


@pytest.mark.parametrize(
    ("fraction", "glyph"),
    [(None, " "), (0, "·"), (0.04, "·"), (0.2, "░"), (0.4, "▒"), (0.7, "▓"), (0.9, "█"), (1, "█"), (1.5, "█")],
)
def test_heat(fraction: float | None, glyph: str) -> None:
    assert heat(fraction) == glyph


def test_a_mark_takes_the_place_of_a_value() -> None:
    assert [heat(0.5, mark) for mark in Mark] == ["▲", "~", "‖", "⊘", "↻"]


def test_all_states_of_a_heat_cell_differ_as_text() -> None:
    glyphs = [heat(v) for v in (None, 0, 0.2, 0.4, 0.7, 0.9)] + [heat(1, mark) for mark in Mark]
    assert len(set(glyphs)) == len(glyphs)


def test_braille_fills_from_below() -> None:
    assert braille([8, 8], 1, 2, maximum=8) == ["⣿", "⣿"]
    assert braille([4, 4], 1, 2, maximum=8) == [" ", "⣿"]
    assert braille([2, 8], 1, 1, maximum=8) == ["⣸"]


def test_zero_has_a_dot_and_unknown_has_none() -> None:
    assert braille([0, 0, None, None, 8, 8], 3, 1, maximum=8) == ["⣀" + GAP + "⣿"]
    assert braille([0, None], 1, 1, maximum=8) == ["⡀"]


def test_before_the_history_began_there_is_nothing() -> None:
    assert braille([8, 8], 3, 1) == ["  ⣿"]
    assert braille([], 3, 2) == ["   ", "   "]


@given(VALUES, st.integers(0, 50), st.integers(0, 10), st.none() | st.floats(0, 1e6))
def test_a_chart_has_its_size(values: list[float | None], width: int, height: int, maximum: float | None) -> None:
    drawn = braille(values, width, height, maximum=maximum)
    assert [len(line) for line in drawn] == ([width] * height if width else [])


@given(st.lists(st.floats(0, 100), min_size=20, max_size=20))
def test_a_chart_has_as_many_dots_as_its_values_say(values: list[float]) -> None:
    drawn = braille(values, 10, 4, maximum=100)
    dots = sum((ord(c) - 0x2800).bit_count() for line in drawn for c in line if c != " ")
    assert dots == sum(max(1, round(v / 100 * 16)) for v in values)
