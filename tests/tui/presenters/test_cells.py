"""Numbers as an operator reads them: units in the title, unknown is a dash, no figure pretends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_tui.presenters.cells import (
    UNKNOWN,
    Cell,
    Severity,
    age,
    clock_time,
    count,
    duration,
    gib,
    milliseconds,
    percent,
    rate,
    ratio,
    short_count,
    stale_age,
)


@pytest.mark.parametrize("show", [count, short_count, rate, percent, gib, milliseconds, duration, age])
def test_unknown_is_a_dash_and_never_zero(show) -> None:
    assert show(None) == UNKNOWN


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (9.4, "9"),
        (812, "812"),
        (999.4, "999"),
        (999.6, "1.0k"),
        (9_140, "9.1k"),
        (9_960, "10k"),
        (184_000, "184k"),
        (999_600, "1.0M"),
        (1_200_000, "1.2M"),
        (3.2e9, "3.2G"),
    ],
)
def test_short_counts(value: float, shown: str) -> None:
    assert short_count(value) == shown


@given(st.floats(0, 9.9e11))
def test_a_short_count_stays_short(value: float) -> None:
    assert len(short_count(value)) <= 4


def test_counts_have_thousands() -> None:
    assert count(62_914) == "62,914"
    assert rate(9_100) == "9.1k/s"


@pytest.mark.parametrize(
    ("fraction", "shown"), [(0, "0"), (0.001, "1"), (0.5, "50"), (0.714, "71"), (0.999, "99"), (1, "100"), (1.2, "120")]
)
def test_percent_says_0_and_100_only_where_true(fraction: float, shown: str) -> None:
    assert percent(fraction) == shown


def test_bytes_are_gib() -> None:
    assert gib(131.2 * 2**30) == "131"
    assert gib(131.2 * 2**30, digits=1) == "131.2"
    assert gib(0) == "0"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.017, "17ms"), (0.64, "640ms"), (1.89, "1890ms"), (9.99, "9990ms"), (14.2, "14.2s")]
)
def test_milliseconds(seconds: float, shown: str) -> None:
    assert milliseconds(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.41, "0.41s"),
        (8.1, "8.1s"),
        (41, "41s"),
        (59.7, "1m00s"),
        (252, "4m12s"),
        (11_040, "3h04m"),
        (273_600, "3d04h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-0.2, "0.0s"), (0.4, "0.4s"), (9.96, "10s"), (48, "48s"), (100, "2m"), (420, "7m"), (7_000, "2h"), (4e5, "5d")],
)
def test_ages(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


@given(st.floats(0, 8e7))
def test_an_age_stays_short(seconds: float) -> None:
    assert len(age(seconds)) <= 4


def test_an_old_age_says_so_in_text_and_severity() -> None:
    assert stale_age(7.2, limit=5).text == "~7.2s"
    assert stale_age(7.2, limit=5).severity is Severity.WARN
    assert stale_age(0.4, limit=5).text == "0.4s"
    assert stale_age(None, limit=5).text == UNKNOWN
    assert stale_age(None, limit=5).severity is Severity.WARN


def test_ratio_with_unknown_parts() -> None:
    assert (ratio(6, 8), ratio(None, 8), ratio(6, None)) == ("6/8", "–/8", "6/–")


def test_clock_time() -> None:
    assert clock_time(51_727.114) == "14:22:07"
    assert clock_time(51_727.114, digits=3) == "14:22:07.114"
    assert clock_time(86_399.9999, digits=3) == "00:00:00.000"


def test_an_unknown_cell_has_no_sort_key() -> None:
    assert Cell(UNKNOWN).sort_key is None
    assert Cell("").sort_key is None
    assert Cell("b").sort_key == "b"
    assert Cell("71%", order=0.71).sort_key == 0.71
    assert Cell("0", order=0).sort_key == 0


def test_a_gauge_keeps_its_place_when_unknown() -> None:
    assert Cell.gauge(0.714).text == "71%"
    unknown = Cell.gauge(None)
    assert (unknown.text, unknown.has_bar, unknown.bar, unknown.sort_key) == (UNKNOWN, True, None, None)


def test_severities_that_ask_for_eyes_have_glyphs_of_their_own() -> None:
    glyphs = [s.glyph for s in (Severity.CRIT, Severity.WARN, Severity.INFO)]
    assert glyphs == ["▲", "●", "○"]
