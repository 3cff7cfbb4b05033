"""The looks: readable on their background, severities apart in lightness where hue may fail, no colour on request."""

from itertools import combinations

import pytest
from textual.app import App
from textual.color import Color
from textual.theme import Theme

from nebula_tui.presenters.cells import Severity
from nebula_tui.themes import CB_SAFE, DEFAULT, NO_COLOR_THEME, THEMES, choose_theme, register_themes
from nebula_tui.widgets.painted import make_palette


def variables(theme: Theme) -> dict[str, str]:
    return {**theme.to_color_system().generate(), **theme.variables}


def linear(part: float) -> float:
    x = part / 255
    return x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4


def contrast(ink: str, ground: str) -> float:
    """Of WCAG 2: 4.5 is good for text."""
    low, high = sorted(
        sum(w * linear(part) for w, part in zip((0.2126, 0.7152, 0.0722), Color.parse(c).rgb, strict=True))
        for c in (ink, ground)
    )
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_text_is_readable_on_its_background_and_under_the_cursor(theme: Theme) -> None:
    v = variables(theme)
    for name in ("foreground", "success", "warning", "error", "accent", "nb-info", "nb-match"):
        assert contrast(v[name], v["background"]) >= 4.5, name
        assert contrast(v[name], v["nb-cursor"]) >= 3.5, name
    assert contrast(v["nb-dim"], v["background"]) >= 4.5
    assert contrast(v["nb-dim"], v["nb-cursor"]) >= 3
    # The cursor's row is told from its neighbours, by more than its glyph.
    assert contrast(v["nb-cursor"], v["background"]) >= 1.2


# How the three common deficiencies see linear RGB (Machado, Oliveira and Fernandes 2009, severity 1.0).
_SEEN_BY = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def seen(ink: str, by: str) -> tuple[float, float, float]:
    def display(x: float) -> float:
        x = min(1.0, max(0.0, x))
        return 255 * (12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055)

    rgb = [linear(part) for part in Color.parse(ink).rgb]
    red, green, blue = (display(sum(a * b for a, b in zip(row, rgb, strict=True))) for row in _SEEN_BY[by])
    return red, green, blue


@pytest.mark.parametrize("by", _SEEN_BY)
def test_cb_safe_keeps_severities_apart(by: str) -> None:
    v = variables(CB_SAFE)
    inks = {
        name: seen(v[key], by)
        for name, key in (("ok", "success"), ("info", "nb-info"), ("warn", "warning"), ("crit", "error"))
    }
    for (a, first), (b, second) in combinations(inks.items(), 2):
        distance = sum((x - y) ** 2 for x, y in zip(first, second, strict=True)) ** 0.5
        assert distance > 40, f"{a} and {b} look alike to {by}"


def test_no_two_severities_that_ask_for_eyes_share_a_glyph() -> None:
    glyphs = [s.glyph for s in Severity if s.glyph]
    assert len(set(glyphs)) == len(glyphs)


@pytest.mark.parametrize(
    ("asked", "environment", "chosen"),
    [
        (None, {}, DEFAULT),
        ("cb-safe", {}, "cb-safe"),
        (None, {"NO_COLOR": "1"}, NO_COLOR_THEME),
        (None, {"NO_COLOR": ""}, DEFAULT),
        (None, {"TERM": "dumb"}, NO_COLOR_THEME),
        ("nebula-light", {"NO_COLOR": "1"}, "nebula-light"),
    ],
)
def test_choice(asked: str | None, environment: dict[str, str], chosen: str) -> None:
    assert choose_theme(asked, environment) == chosen


def test_every_theme_can_be_registered_and_the_ansi_one_exists() -> None:
    app: App[None] = App()
    register_themes(app)
    assert {theme.name for theme in THEMES} | {NO_COLOR_THEME} <= set(app.available_themes)


def test_any_theme_gives_a_palette() -> None:
    app: App[None] = App()
    register_themes(app)
    for theme in app.available_themes.values():
        palette = make_palette({**theme.to_color_system().generate(), **theme.variables})
        assert len(palette.heat) == 5
        for severity in Severity:
            assert palette.of(severity) is not None
    assert make_palette({}).normal is not None
