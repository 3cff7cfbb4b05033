"""The fleet as a picture: one glyph is one GPU, blocks are nodes, lines are groups of nodes.

A block's glyphs come as a string (`presenters.glyphs.heat` makes each), so 8,000 GPUs are a thousand short strings and a
tick compares lines. Severity follows from the glyph, so the picture survives without colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Final

from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message

from nebula_tui.widgets.painted import Line, Painted, Palette, fit, glyph_style, text_width

LEGEND: Final = "· idle ░▒▓█ 25-100%  ▲ fault/down  ~ stale  ‖ draining  ⊘ cordoned  ↻ loading"
_REVERSE: Final = Style(reverse=True)


@dataclass(frozen=True, slots=True)
class HeatBlock:
    """One node: its id, and a glyph for each of its GPUs."""

    id: str
    glyphs: str


@dataclass(frozen=True, slots=True)
class HeatGroup:
    """Blocks under one label, as a rack or a model."""

    label: str
    blocks: tuple[HeatBlock, ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A block on a line of the picture; `at` is its number in reading order."""

    block: HeatBlock
    x: int
    at: int


@dataclass(frozen=True, slots=True)
class _GridLine:
    label: str
    placed: tuple[_Placed, ...]


class HeatGrid(Painted, can_focus=True):
    """API: `set_groups`, `cursor`; messages `CellHighlighted` and `CellSelected` carry the block id and GPU index."""

    DEFAULT_CSS = """
    HeatGrid { height: 1fr; width: 1fr; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l,right", "move(1)", "right", show=False, id="heat.right"),
        Binding("h,left", "move(-1)", "left", show=False, id="heat.left"),
        Binding("j,down", "line(1)", "down", show=False, id="heat.down"),
        Binding("k,up", "line(-1)", "up", show=False, id="heat.up"),
        Binding("g,home", "edge(False)", "first", show=False, id="heat.first"),
        Binding("G,end", "edge(True)", "last", show=False, id="heat.last"),
        Binding("enter", "select", "open", show=False, id="heat.open"),
    ]

    class HeatMessage(Message):
        """Carries the GPU under the cursor: the id of its block and its index in it."""

        def __init__(self, grid: "HeatGrid", block_id: str, index: int) -> None:
            super().__init__()
            self.grid, self.block_id, self.index = grid, block_id, index

        @property
        def control(self) -> "HeatGrid":
            return self.grid

    class CellHighlighted(HeatMessage):
        """The cursor is on another GPU."""

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, HeatGrid.CellHighlighted)

    class CellSelected(HeatMessage):
        """Enter, or a second click."""

    def __init__(
        self,
        *,
        legend: str = LEGEND,
        empty_text: str = "No GPU has reported yet.",
        name: str | None = None,
        id: str | None = None,  # noqa: A002 - Textual's name
        classes: str | None = None,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._legend = legend
        self.empty_text = empty_text
        self._groups: tuple[HeatGroup, ...] = ()
        self._grid: list[_GridLine] = []
        self._cursor: tuple[str, int] | None = None
        self._top = 0
        self._label_width = 0

    @property
    def cursor(self) -> tuple[str, int] | None:
        """Block id and GPU index; None while there is nothing."""
        return self._cursor

    def set_groups(self, groups: Sequence[HeatGroup]) -> None:
        """All groups again; only lines that differ are repainted."""
        new = tuple(groups)
        if new == self._groups:
            return
        self._groups = new
        old = self._grid
        self._lay_out()
        if len(old) != len(self._grid) or not old:
            self.refresh()
            return
        width = self.size.width
        changed = [
            Region(0, y - self._top, width, 1)
            for y in range(self._top, min(self._top + self._rows, len(old)))
            if old[y] != self._grid[y]
        ]
        if changed:
            self.refresh(*changed)

    @property
    def _rows(self) -> int:
        return max(1, self.size.height - (1 if self._legend else 0))

    def on_resize(self) -> None:
        self._lay_out()
        self.refresh()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def _lay_out(self) -> None:
        self._label_width = min(max((text_width(g.label) for g in self._groups), default=0) + 1, 16)
        room, at = self.size.width, 0
        self._grid = []
        for group in self._groups:
            label, placed, x = group.label, list[_Placed](), self._label_width
            for block in group.blocks:
                if placed and x + len(block.glyphs) > room:
                    self._grid.append(_GridLine(label, tuple(placed)))
                    label, placed, x = "", [], self._label_width
                placed.append(_Placed(block, x, at))
                x += len(block.glyphs) + 1
                at += 1
            self._grid.append(_GridLine(label, tuple(placed)))
        if self._cursor is None or self._find(self._cursor) is None:
            first = next((p.block for line in self._grid for p in line.placed if p.block.glyphs), None)
            self._put((first.id, 0) if first else None)
        self._top = max(0, min(self._top, len(self._grid) - self._rows))

    def _find(self, cursor: tuple[str, int]) -> tuple[int, int] | None:
        """Line and cell of a GPU in the picture."""
        for y, line in enumerate(self._grid):
            for placed in line.placed:
                if placed.block.id == cursor[0] and cursor[1] < len(placed.block.glyphs):
                    return y, placed.x + cursor[1]
        return None

    def _at(self, y: int, x: int) -> tuple[str, int] | None:
        """The GPU nearest to cell `x` of line `y`."""
        placed = [p for p in self._grid[y].placed if p.block.glyphs] if 0 <= y < len(self._grid) else []
        if not placed:
            return None
        best = min(placed, key=lambda p: max(p.x - x, x - (p.x + len(p.block.glyphs) - 1), 0))
        return best.block.id, max(0, min(x - best.x, len(best.block.glyphs) - 1))

    def _put(self, cursor: tuple[str, int] | None) -> None:
        if cursor == self._cursor:
            return
        before = None if self._cursor is None else self._find(self._cursor)
        self._cursor = cursor
        after = None if cursor is None else self._find(cursor)
        if cursor is not None:
            self.post_message(self.CellHighlighted(self, *cursor))
        if after is not None:
            top = max(after[0] - self._rows + 1, min(self._top, after[0]))
            if top != self._top:
                self._top = top
                self.refresh()
                return
        lines = {where[0] - self._top for where in (before, after) if where is not None}
        if lines:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in lines))

    def action_move(self, by: int) -> None:
        cells = [(p.block.id, i) for line in self._grid for p in line.placed for i in range(len(p.block.glyphs))]
        if cells:
            at = cells.index(self._cursor) if self._cursor in cells else 0
            self._put(cells[max(0, min(at + by, len(cells) - 1))])

    def action_line(self, by: int) -> None:
        where = None if self._cursor is None else self._find(self._cursor)
        if where is not None:
            self._put(self._at(max(0, min(where[0] + by, len(self._grid) - 1)), where[1]) or self._cursor)

    def action_edge(self, last: bool) -> None:
        self.action_move(1_000_000 if last else -1_000_000)

    def action_select(self) -> None:
        if self._cursor is not None:
            self.post_message(self.CellSelected(self, *self._cursor))

    def on_click(self, event: events.Click) -> None:
        where = event.get_content_offset(self)
        found = None if where is None or where.y >= self._rows else self._at(self._top + where.y, where.x)
        if found is None:
            return
        again = found == self._cursor and event.chain > 1
        self._put(found)
        if again:
            self.action_select()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._scroll(2)
        event.stop()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._scroll(-2)
        event.stop()

    def _scroll(self, by: int) -> None:
        top = max(0, min(self._top + by, len(self._grid) - self._rows))
        if top != self._top:
            self._top = top
            self.refresh()

    def draw(self, y: int, width: int, line: Line) -> None:
        palette = self.palette
        if self._legend and y == self.size.height - 1:
            more = len(self._grid) - self._top - self._rows
            note = f"↓ {more} more lines" if more > 0 else ""
            line.add(fit(self._legend, width - text_width(note) - 1), palette.dim).add(" ", palette.dim)
            line.add(note, palette.accent)
            return
        at = self._top + y
        if not any(entry.placed for entry in self._grid):
            if y == self._rows // 3:
                line.pad_to((width - len(self.empty_text)) // 2, palette.dim).add(self.empty_text, palette.dim)
            return
        if at >= len(self._grid):
            return
        line.add(fit(self._grid[at].label, self._label_width - 1), palette.dim)
        for placed in self._grid[at].placed:
            line.pad_to(placed.x, palette.normal)
            here = self._cursor[1] if self._cursor is not None and self._cursor[0] == placed.block.id else -1
            self._draw_block(line, placed.block.glyphs, here, palette)

    def _draw_block(self, line: Line, glyphs: str, cursor: int, palette: Palette) -> None:
        at = 0
        for glyph, run in groupby(glyphs):
            style, length = glyph_style(glyph, palette), len(list(run))
            inside = cursor - at
            if 0 <= inside < length and self.has_focus:
                line.add(glyph * inside, style).add(glyph, style + _REVERSE).add(glyph * (length - inside - 1), style)
            else:
                line.add(glyph * length, style)
            at += length


__all__ = ["LEGEND", "HeatBlock", "HeatGrid", "HeatGroup"]
