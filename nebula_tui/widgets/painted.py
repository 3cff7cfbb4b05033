"""The ground of our widgets: the palette of the theme, text fitted into cells, and lines built from few segments.

Widgets here draw on Textual's line API: `render_line(y)` gives a `Strip`, and a change repaints only the region it
touched. Two rules keep foreign text harmless: every string goes through `fit` or `Line.add`, which clean what no
terminal should obey, and nothing is ever read as markup.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.color import Color, ColorParseError
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from nebula_core.security.text import clean_text, is_clean
from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.glyphs import SHADES, Mark


@dataclass(frozen=True, slots=True)
class Palette:
    """What a theme says, as styles without background (the widget's own shows through)."""

    normal: Style
    ok: Style
    info: Style
    warn: Style
    crit: Style
    dim: Style
    accent: Style
    border: Style
    border_focus: Style
    title: Style
    header: Style
    match: Style
    cursor: Style
    cursor_blurred: Style
    heat: tuple[Style, ...]
    chart: Style

    def of(self, severity: Severity) -> Style:
        style: Style = getattr(self, severity.value)
        return style


def make_palette(variables: dict[str, str]) -> Palette:
    """From a theme's CSS variables; our themes add `nb-…` ones, any other theme still gives a usable palette."""

    def color(*names: str, default: str = "ansi_default") -> Color:
        for name in names:
            # "ansi_default 50%" carries an opacity we do not use; "auto 87%" names no colour at all.
            value = variables.get(name, "").split(" ")[0]
            if value and not value.startswith("auto"):
                try:
                    return Color.parse(value)
                except ColorParseError:
                    continue
        return Color.parse(default)

    def ink(*names: str, bold: bool | None = None) -> Style:
        return Style(color=color(*names).rich_color, bold=bold)

    foreground, background = color("nb-text", "foreground"), color("background")
    native = foreground.ansi is not None
    muted = color("nb-dim") if "nb-dim" in variables else foreground
    if native:
        dim = Style(dim=True)
        border = Style(dim=True)
        # Reverse would turn meters and shades inside out; the row is told by ▶ as well.
        cursor, blurred = Style(bold=True, underline=True), Style(underline=True)
        heat: tuple[Style, ...] = (dim, Style(), Style(), Style(), Style(bold=True))
    else:
        muted = muted if "nb-dim" in variables else foreground.blend(background, 0.45)
        dim = Style(color=muted.rich_color)
        border = (
            ink("nb-border") if "nb-border" in variables else Style(color=foreground.blend(background, 0.65).rich_color)
        )
        cursor = Style(bgcolor=color("nb-cursor", "primary-muted", "panel").rich_color)
        blurred = Style(bgcolor=color("nb-cursor-blurred", "panel", "surface").rich_color)
        # Idle is quiet, full is bright; the hue is that of charts, for heat is no alarm.
        chart = color("nb-chart", "secondary", "primary")
        steps = (muted.blend(background, 0.35), chart.blend(background, 0.35), chart.blend(background, 0.15), chart)
        heat = tuple(Style(color=c.rich_color) for c in (*steps, chart.blend(foreground, 0.35)))
    return Palette(
        normal=Style(color=foreground.rich_color),
        ok=ink("nb-ok", "success"),
        info=ink("nb-info", "primary"),
        warn=ink("nb-warn", "warning"),
        crit=ink("nb-crit", "error", bold=True),
        dim=dim,
        accent=ink("nb-accent", "accent"),
        border=border,
        border_focus=ink("nb-border-focus", "accent"),
        title=Style(color=foreground.rich_color, bold=True),
        header=dim + Style(bold=True),
        match=ink("nb-match", "warning", bold=True) + Style(underline=True),
        cursor=cursor,
        cursor_blurred=blurred,
        heat=heat,
        chart=ink("nb-chart", "secondary", "primary"),
    )


@lru_cache(maxsize=16)
def _cached_palette(variables: tuple[tuple[str, str], ...]) -> Palette:
    return make_palette(dict(variables))


def glyph_style(glyph: str, palette: Palette) -> Style:
    """The style of what a heat glyph stands for."""
    match glyph:
        case Mark.DOWN:
            return palette.crit
        case Mark.STALE | Mark.CORDONED:
            return palette.warn
        case Mark.DRAINING | Mark.LOADING:
            return palette.info
        case _:
            return palette.heat[max(0, SHADES.find(glyph))]


def palette_of(widget: Widget) -> Palette:
    """The palette of the theme in force."""
    return _cached_palette(tuple(widget.app.theme_variables.items()))


class Painted(Widget, inherit_bindings=False):
    """A widget that draws its own lines with the theme's palette."""

    ALLOW_SELECT = False
    _palette: Palette | None = None
    _ground: Style | None = None

    @property
    def palette(self) -> Palette:
        if self._palette is None:
            self._palette = palette_of(self)
        return self._palette

    def notify_style_update(self) -> None:
        """Textual's word that styles, so perhaps the theme, have changed."""
        self._palette = None
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        line = Line()
        self.draw(y, width, line)
        return self.ground(line.strip(width))

    def ground(self, strip: Strip) -> Strip:
        """The widget's own background under a finished line: Textual leaves that to whoever draws lines."""
        return strip.apply_style(self._ground if self._ground is not None else self.rich_style)

    def render_lines(self, crop: Region) -> list[Strip]:
        # Working out the background walks the ancestors; once for all lines of a paint is enough.
        self._ground = self.rich_style
        return super().render_lines(crop)

    def draw(self, y: int, width: int, line: "Line") -> None:
        """Adds the content of line `y`; what it leaves is blank, what is too wide is cut."""
        raise NotImplementedError


class Line:
    """A line under construction: neighbours of one style become one segment."""

    __slots__ = ("_style", "_text", "segments", "width")

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.width = 0
        self._text = ""
        self._style: Style | None = None

    def add(self, text: str, style: Style) -> "Line":
        if not text:
            return self
        if not is_clean(text):
            text = clean_text(text)
        self.width += len(text) if text.isascii() else cell_len(text)
        if style is self._style:
            self._text += text
        else:
            if self._text:
                self.segments.append(Segment(self._text, self._style))
            self._text, self._style = text, style
        return self

    def pad_to(self, width: int, style: Style) -> "Line":
        return self.add(" " * (width - self.width), style) if width > self.width else self

    def finish(self) -> list[Segment]:
        if self._text:
            self.segments.append(Segment(self._text, self._style))
            self._text = ""
        return self.segments

    def strip(self, width: int) -> Strip:
        return Strip(self.finish(), self.width).adjust_cell_length(width)


CUT: Final = "…"


def text_width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """`text`, cleaned, in exactly `width` cells; what does not fit ends in "…"."""
    if width <= 0:
        return ""
    if not is_clean(text):
        text = clean_text(text)
    if text.isascii():
        if len(text) > width:
            return text[: width - 1] + CUT
        return text.rjust(width) if right else text.ljust(width)
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + CUT
    blank = " " * (width - length)
    return blank + text if right else text + blank
