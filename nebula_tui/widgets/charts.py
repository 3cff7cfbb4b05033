"""Small pictures of numbers: a braille history and a labelled meter. They repaint only when a line differs."""

from collections.abc import Callable, Sequence

from textual.geometry import Region

from nebula_tui.presenters.cells import UNKNOWN, Severity
from nebula_tui.presenters.glyphs import braille, meter, sparkline, top_of
from nebula_tui.widgets.painted import Line, Painted, fit, text_width


class BrailleChart(Painted):
    """History of one measure, two samples to a cell, newest at the right.

    `set_values(values)` takes oldest first, None where unknown (drawn as a gap). The scale is 0 to `maximum`, or to the
    largest value in sight, softened so that it does not jump with every tick. `caption` is a last line under the chart;
    `scale` formats the value of the upper edge, told at the end of that line.
    """

    DEFAULT_CSS = """
    BrailleChart { height: 1fr; width: 1fr; }
    """

    def __init__(
        self,
        *,
        maximum: float | None = None,
        minimum_top: float = 0.0,
        severity: Severity | None = None,
        caption: str = "",
        scale: Callable[[float], str] | None = None,
        name: str | None = None,
        id: str | None = None,  # noqa: A002 - Textual's name
        classes: str | None = None,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._maximum = maximum
        self._minimum_top = minimum_top
        self._severity = severity
        self._caption = caption
        self._scale = scale
        self._values: tuple[float | None, ...] = ()
        self._top = 0.0
        self._lines: list[str] = []
        self._stale = False

    @property
    def top(self) -> float:
        """The value of the chart's upper edge."""
        return self._maximum if self._maximum is not None else self._top

    def set_values(
        self,
        values: Sequence[float | None],
        *,
        maximum: float | None = None,
        severity: Severity | None = None,
        caption: str | None = None,
        stale: bool = False,
    ) -> None:
        """All samples again, oldest first; only the newest that fit are drawn."""
        self._values = tuple(values)
        if maximum is not None:
            self._maximum = maximum
        if (severity, stale) != (self._severity, self._stale):
            self._severity, self._stale = severity, stale
            self._lines = []
        if caption is not None and caption != self._caption:
            self._caption = caption
            self.refresh(Region(0, self.size.height - 1, self.size.width, 1))
        self._redraw()

    @property
    def _has_caption(self) -> bool:
        return bool(self._caption) or self._scale is not None

    def on_resize(self) -> None:
        self._lines = []
        self._redraw()

    def _redraw(self) -> None:
        width, height = self.size
        height -= 1 if self._has_caption else 0
        peak = max(top_of(self._values[-2 * width :]), self._minimum_top) if width else 0.0
        # Up at once, down only when the peak has fallen well below: a scale that breathes cannot be read.
        if peak > self._top or peak < 0.6 * self._top:
            self._top = peak
            if self._scale is not None:
                self.refresh(Region(0, self.size.height - 1, width, 1))
        new = braille(self._values, width, height, maximum=self.top)
        old, self._lines = self._lines, new
        if len(old) != len(new):
            self.refresh()
        elif changed := [Region(0, y, width, 1) for y in range(len(new)) if new[y] != old[y]]:
            self.refresh(*changed)

    def draw(self, y: int, width: int, line: Line) -> None:
        palette = self.palette
        if y < len(self._lines):
            style = palette.chart if self._severity is None else palette.of(self._severity)
            line.add(self._lines[y], palette.dim if self._stale else style)
        elif self._has_caption and y == self.size.height - 1:
            top = "" if self._scale is None or not self._values else f" max {self._scale(self.top)}"
            line.add(fit(self._caption, width - text_width(top)) + top, palette.dim)


class MeterRow(Painted):
    """`GPU util  ■■■■■■■■■■■·····     71%`: a label, a meter (or a history), a value.

    `set(fraction, value, severity)`; with `series` the history is drawn in the meter's place.
    """

    DEFAULT_CSS = """
    MeterRow { height: 1; width: 1fr; }
    """

    def __init__(
        self,
        label: str,
        *,
        label_width: int = 10,
        value_width: int = 8,
        name: str | None = None,
        id: str | None = None,  # noqa: A002 - Textual's name
        classes: str | None = None,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._label, self._label_width, self._value_width = label, label_width, value_width
        self._shown: tuple[float | None, str, Severity, tuple[float | None, ...], bool] = (
            None,
            UNKNOWN,
            Severity.NORMAL,
            (),
            False,
        )

    def set(
        self,
        fraction: float | None,
        value: str,
        severity: Severity = Severity.NORMAL,
        *,
        series: Sequence[float | None] = (),
        stale: bool = False,
    ) -> None:
        """`fraction` 0..1 or None where unknown; `value` is the text at the right."""
        shown = (fraction, value, severity, tuple(series), stale)
        if shown != self._shown:
            self._shown = shown
            self.refresh()

    def draw(self, y: int, width: int, line: Line) -> None:
        if y:
            return
        palette = self.palette
        fraction, value, severity, series, stale = self._shown
        ink = palette.dim if stale else palette.of(severity)
        label = min(self._label_width, max(0, width - self._value_width))
        # A severity that asks for action is told by its glyph too.
        text = f"{value} {severity.glyph}" if severity in (Severity.WARN, Severity.CRIT) else value
        right = min(max(self._value_width, text_width(text)), width - label)
        line.add(fit(self._label, label), palette.dim)
        room = max(0, width - label - right)
        # A history may reach its upper edge anywhere; it must not touch the value.
        bar = fit(sparkline(series, room - 1), room) if series else meter(fraction, room)
        plain = severity is Severity.NORMAL and not stale
        line.add(bar, palette.chart if plain else ink)
        line.add(fit(text, right, right=True), ink)
