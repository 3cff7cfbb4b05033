"""One cell of a table in exactly its width: text, meter, history, or pieces of different severity."""

from itertools import groupby
from typing import Final

from rich.style import Style

from nebula_tui.presenters.cells import Cell, Column
from nebula_tui.presenters.glyphs import meter, sparkline
from nebula_tui.widgets.painted import Line, Palette, fit, glyph_style, text_width

_BOLD: Final = Style(bold=True)
_LEAST_BAR: Final = 4


def draw_cell(
    line: Line, cell: Cell, width: int, column: Column, palette: Palette, *, dimmed: Style | None, flash: bool = False
) -> None:
    """One cell in exactly `width` cells of the screen."""
    ink = dimmed or palette.of(cell.severity)
    text_style = ink + _BOLD if cell.bold or flash else ink
    right = column.align == "right"
    if cell.has_bar:
        room = max(text_width(cell.text), 4) + 1
        bar = width - room if width - room >= _LEAST_BAR else 0
        line.add(meter(cell.bar, bar), palette.chart if ink is palette.normal else ink)
        line.add(fit(cell.text, width - bar, right=True), text_style)
    elif cell.series:
        room = text_width(cell.text) + 1 if cell.text else 0
        line.add(sparkline(cell.series, max(0, width - room)), ink if dimmed else palette.chart)
        line.add(fit(cell.text, min(room, width), right=True), text_style)
    elif cell.heat and dimmed is None:
        for glyph, run in groupby(fit(cell.text, width, right=right)):
            line.add(glyph * len(list(run)), glyph_style(glyph, palette))
    elif cell.parts and dimmed is None and text_width(cell.text) <= width:
        blank = width - text_width(cell.text)
        line.add(" " * blank if right else "", palette.normal)
        for text, severity in cell.parts:
            line.add(text, palette.of(severity))
        line.add("" if right else " " * blank, palette.normal)
    else:
        line.add(fit(cell.text, width, right=right), text_style)


def same_look(old: Cell, new: Cell, width: int) -> bool:
    """Whether two cells come out the same: a figure may move without its meter gaining a cell."""
    if (old.text, old.severity, old.bold, old.parts, old.series) != (
        new.text,
        new.severity,
        new.bold,
        new.parts,
        new.series,
    ):
        return False
    return old.bar == new.bar or meter(old.bar, width) == meter(new.bar, width)
