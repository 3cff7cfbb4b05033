"""The looks: nebula-dark, nebula-light, cb-safe. Colour means severity; the rest is one ink in three strengths.

`cb-safe` takes its severities from Okabe and Ito's palette, whose hues and lightnesses stay apart in the three common
colour vision deficiencies; glyph and word tell them apart in every theme. For a terminal's own colours, or none at all
(`NO_COLOR`), `choose_theme` gives Textual's ANSI themes: then focus, cursor and stale rows are told by glyphs, reverse
and dim.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from textual.app import App
from textual.filter import LineFilter, Monochrome, NoColor
from textual.theme import Theme

NEBULA_DARK: Final = Theme(
    name="nebula-dark",
    dark=True,
    primary="#7AA2F7",
    secondary="#6F8FBF",
    accent="#7AA2F7",
    foreground="#C8CCD4",
    background="#0E1116",
    surface="#141820",
    panel="#1A1F29",
    success="#7FB685",
    warning="#E0AF57",
    error="#F2686F",
    variables={
        "nb-dim": "#7A8494",
        "nb-info": "#74A7D8",
        "nb-border": "#333B48",
        "nb-border-focus": "#7AA2F7",
        "nb-cursor": "#263248",
        "nb-cursor-blurred": "#1B222E",
        "nb-chart": "#5F7FB0",
        "nb-match": "#F0C674",
        "border": "#7AA2F7",
        "border-blurred": "#333B48",
    },
)

NEBULA_LIGHT: Final = Theme(
    name="nebula-light",
    dark=False,
    primary="#2F5FB3",
    secondary="#54709C",
    accent="#2F5FB3",
    foreground="#22272E",
    background="#FBFBF9",
    surface="#F3F3F0",
    panel="#EAEAE6",
    success="#2E7D3B",
    warning="#96600A",
    error="#BC2F36",
    variables={
        "nb-dim": "#6A727D",
        "nb-info": "#2A6E9E",
        "nb-border": "#C3C7CC",
        "nb-border-focus": "#2F5FB3",
        "nb-cursor": "#D9E4F7",
        "nb-cursor-blurred": "#ECEFF3",
        "nb-chart": "#54709C",
        "nb-match": "#8A5A00",
        "border": "#2F5FB3",
        "border-blurred": "#C3C7CC",
    },
)

CB_SAFE: Final = Theme(
    name="cb-safe",
    dark=True,
    primary="#56B4E9",
    secondary="#8FA9BD",
    accent="#CC79A7",
    foreground="#D6D6D2",
    background="#101214",
    surface="#16191C",
    panel="#1D2125",
    success="#009E73",
    warning="#F0E442",
    error="#FF8838",
    variables={
        "nb-dim": "#868C94",
        "nb-info": "#56B4E9",
        "nb-border": "#3A4047",
        "nb-border-focus": "#CC79A7",
        "nb-cursor": "#2C3640",
        "nb-cursor-blurred": "#1F252B",
        "nb-chart": "#8FA9BD",
        "nb-match": "#F0E442",
        "border": "#CC79A7",
        "border-blurred": "#3A4047",
    },
)

THEMES: Final = (NEBULA_DARK, NEBULA_LIGHT, CB_SAFE)
DEFAULT: Final = NEBULA_DARK.name
NO_COLOR_THEME: Final = "ansi-dark"


def register_themes(app: App[Any]) -> None:
    """Makes ours known to the app; the caller sets `app.theme`."""
    for theme in THEMES:
        app.register_theme(theme)


def choose_theme(asked: str | None, environment: Mapping[str, str]) -> str:
    """What was asked for; else no colours of our own under NO_COLOR or a dumb terminal, else the default."""
    if asked:
        return asked
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return NO_COLOR_THEME
    return DEFAULT


def colorless(filters: Sequence[LineFilter]) -> list[LineFilter]:
    """For `App.get_line_filters` under NO_COLOR: no colour at all, where Textual, which chose its filter before our
    theme was set, would send greys. Bold, dim and underline stay.
    """
    return [NoColor() if isinstance(one, Monochrome) else one for one in filters]
