"""A table that carries a fleet: thousands of rows, and a tick repaints only the cells that differ.

Theory. `RowModel` decides the order; `columns.lay_out` the columns; this widget keeps, for each line on the screen, the
`_Shown` it last drew. Every change - new rows, a key, a sort, a scroll - ends in `_repaint`, which works out what the
lines should be, compares, and asks Textual to refresh the regions that differ. So there is one way to paint, and the
terminal sees few bytes. Rows are made only for lines on the screen (`LazyRows`).

The cursor belongs to a row id, not to a line: it follows its row when the order changes, and when the row goes it stays
at its place.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip

from nebula_tui.presenters.cells import Cell, Column, LazyRows, Row
from nebula_tui.presenters.rowfilter import parse_filter
from nebula_tui.widgets.celldraw import draw_cell, same_look
from nebula_tui.widgets.columns import Slot, lay_out
from nebula_tui.widgets.painted import Line, Painted, Palette, fit, text_width
from nebula_tui.widgets.rowmodel import RowModel

_GUTTER: Final = 3
_NO_CELL: Final = Cell()
_WHEEL_LINES: Final = 3
# Two changed columns closer than this are repainted as one: moving the terminal's cursor costs about as many bytes.
_MERGE_GAP: Final = 6


@dataclass(frozen=True, slots=True)
class _Shown:
    """All that decides how one line looks."""

    row: Row
    prefix: str
    cursor: bool
    marked: bool
    flash: frozenset[int] = frozenset()


class FleetTable(Painted, can_focus=True):
    """API: `set_columns`, `set_rows`, `set_filter`, `sort_by`, `move_to`, `marks`, `cursor_row`; messages below."""

    DEFAULT_CSS = """
    FleetTable { height: 1fr; width: 1fr; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "move(1)", "down", show=False, id="table.down"),
        Binding("k,up", "move(-1)", "up", show=False, id="table.up"),
        Binding("g,home", "top", "first row", show=False, id="table.top"),
        Binding("G,end", "bottom", "last row", show=False, id="table.bottom"),
        Binding("ctrl+d", "page(0.5)", "half a page down", show=False, id="table.half_down"),
        Binding("ctrl+u", "page(-0.5)", "half a page up", show=False, id="table.half_up"),
        Binding("pagedown,ctrl+f", "page(1.0)", "page down", show=False, id="table.page_down"),
        Binding("pageup,ctrl+b", "page(-1.0)", "page up", show=False, id="table.page_up"),
        Binding("enter", "select", "open", show=False, id="table.open"),
        Binding("right", "fold(True)", "unfold", show=False, id="table.unfold"),
        Binding("left", "fold(False)", "fold", show=False, id="table.fold"),
        Binding("space", "mark", "mark", show=False, id="table.mark"),
        Binding("ctrl+@", "mark_range", "mark to here", show=False, id="table.mark_range"),
        Binding("asterisk", "mark_shown", "mark all shown", show=False, id="table.mark_shown"),
        Binding("less_than_sign", "sort_move(-1)", "sort column left", show=False, id="table.sort_left"),
        Binding("greater_than_sign", "sort_move(1)", "sort column right", show=False, id="table.sort_right"),
        Binding("I", "sort_invert", "invert order", show=False, id="table.sort_invert"),
    ]

    class TableMessage(Message):
        """What all messages of a table carry."""

        def __init__(self, table: "FleetTable") -> None:
            super().__init__()
            self.table = table

        @property
        def control(self) -> "FleetTable":
            return self.table

        def can_replace(self, message: Message) -> bool:
            return type(message) is type(self) and isinstance(message, FleetTable.TableMessage)

    class RowHighlighted(TableMessage):
        """The cursor is on another row, or on none."""

        def __init__(self, table: "FleetTable", row_id: str | None) -> None:
            super().__init__(table)
            self.row_id = row_id

    class RowSelected(TableMessage):
        """Enter, or a second click."""

        def __init__(self, table: "FleetTable", row_id: str) -> None:
            super().__init__(table)
            self.row_id = row_id

        def can_replace(self, message: Message) -> bool:  # noqa: ARG002 - each one counts
            return False

    class MarksChanged(TableMessage):
        """Rows marked for an action on many."""

        def __init__(self, table: "FleetTable", marks: frozenset[str]) -> None:
            super().__init__(table)
            self.marks = marks

    class ViewChanged(TableMessage):
        """Another order, filter, or number of rows shown: what a panel's title tells."""

    def __init__(
        self,
        columns: Sequence[Column] = (),
        *,
        empty_text: str = "Nothing here yet.",
        show_header: bool = True,
        name: str | None = None,
        id: str | None = None,  # noqa: A002 - Textual's name
        classes: str | None = None,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self.empty_text = empty_text
        # Lines above the first row: a short list whose columns speak for themselves does without titles.
        self._head = 1 if show_header else 0
        self.marks: frozenset[str] = frozenset()
        self._model = RowModel()
        self._model.set_columns(columns)
        self._hidden: frozenset[str] = frozenset()
        self._slots: tuple[Slot, ...] = ()
        self._cursor: str | None = None
        self._cursor_at = 0
        self._anchor: str | None = None
        self._top = 0
        self._lines: list[_Shown | None] = []
        self._stale = False
        self._empty_shown = False
        self._thumb: tuple[int, int] | None = None

    # ------------------------------------------------------------------------------------------------------------ data

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._model.columns

    @property
    def shown_ids(self) -> Sequence[str]:
        return self._model.shown

    @property
    def shown_count(self) -> int:
        return len(self._model.shown)

    @property
    def total_count(self) -> int:
        return self._model.total

    @property
    def cursor_id(self) -> str | None:
        return self._cursor

    @property
    def cursor_row(self) -> Row | None:
        return None if self._cursor is None else self._model.row(self._cursor)

    @property
    def filter_text(self) -> str:
        return self._model.filter.source

    @property
    def sorted_by(self) -> tuple[str, bool] | None:
        """Column key and whether it descends; None in the order given."""
        return None if self._model.sort_column is None else (self._model.sort_column, self._model.descending)

    @property
    def view_note(self) -> str:
        """`/dc=sh-2 · sort UTIL% ▼ · 41 of 125`: for the right end of a panel's title."""
        notes = [f"/{self.filter_text}"] if self.filter_text else []
        arrow = "▼" if self._model.descending else "▲"
        notes += [f"sort {column.title} {arrow}" for column in self.columns if column.key == self._model.sort_column]
        if self.marks:
            notes.append(f"{len(self.marks)} ✓")
        if self.filter_text:
            notes.append(f"{self.shown_count:,} of {self.total_count:,}")
        return " · ".join(notes)

    def set_columns(self, columns: Sequence[Column], *, hidden: Collection[str] = ()) -> None:
        self._model.set_columns(columns)
        self._hidden = frozenset(hidden)
        self._relayout()

    def set_rows(self, rows: Sequence[Row] | LazyRows) -> None:
        """All rows, again: the table finds what differs. `LazyRows` for more than a few hundred."""
        before = (self.shown_count, self.total_count)
        self._model.set_rows(rows)
        gone = self.marks - set(self._model.ids) if self.marks else frozenset()
        if gone:
            self._set_marks(self.marks - gone)
        self._arranged(ticked=True)
        if before != (self.shown_count, self.total_count):
            self.post_message(self.ViewChanged(self))

    def set_stale(self, stale: bool) -> None:
        """Dims everything: the data are old, though still the last known."""
        if stale != self._stale:
            self._stale = stale
            self.refresh()

    def set_filter(self, text: str) -> None:
        """See `presenters.rowfilter` for the grammar; "" shows all."""
        self._model.filter = parse_filter(text, [column.key for column in self.columns])
        self._model.arrange()
        self._arranged(from_top=True)
        self.post_message(self.ViewChanged(self))

    def sort_by(self, key: str | None, *, descending: bool = False) -> None:
        """None: the order given."""
        self._model.sort_column, self._model.descending = key, descending
        self._model.arrange()
        self._arranged(from_top=True)
        self.refresh(Region(0, 0, self.size.width, 1))
        self.post_message(self.ViewChanged(self))

    def fold_all(self, *, expanded: bool) -> None:
        self._model.fold_all(expanded=expanded)
        self._arranged()

    def move_to(self, row_id: str) -> bool:
        """Puts the cursor on a row; False when it is not shown."""
        at = self._model.index(row_id)
        if at is None:
            return False
        self._go(at)
        return True

    def clear_marks(self) -> None:
        self._set_marks(frozenset())

    # ----------------------------------------------------------------------------------------------------------- moves

    @property
    def _page(self) -> int:
        return max(1, self.size.height - self._head)

    def _arranged(self, *, ticked: bool = False, from_top: bool = False) -> None:
        """After the order changed: the cursor finds its row again, or keeps its place.

        `from_top`: who asks for another order wants to see its first rows, if the cursor's row can be among them.
        """
        in_sight = self._top <= self._cursor_at < self._top + self._page
        count = self.shown_count
        at = None if self._cursor is None else self._model.index(self._cursor)
        if at is None:
            at = min(self._cursor_at, count - 1) if count else 0
            self._set_cursor(self._model.shown[at] if count else None)
        self._cursor_at = at
        self._top = 0 if from_top else max(0, min(self._top, count - self._page))
        if in_sight or from_top:
            self._bring_into_sight()
        self._repaint(ticked=ticked)

    def _set_cursor(self, row_id: str | None) -> None:
        if row_id != self._cursor:
            self._cursor = row_id
            self.post_message(self.RowHighlighted(self, row_id))

    def _bring_into_sight(self) -> None:
        self._top = max(self._cursor_at - self._page + 1, min(self._top, self._cursor_at))

    def _go(self, at: int) -> None:
        if not self.shown_count:
            return
        self._cursor_at = max(0, min(at, self.shown_count - 1))
        self._set_cursor(self._model.shown[self._cursor_at])
        self._bring_into_sight()
        self._repaint()

    def action_move(self, by: int) -> None:
        self._go(self._cursor_at + by)

    def action_page(self, pages: float) -> None:
        self._go(self._cursor_at + int(self._page * pages))

    def action_top(self) -> None:
        self._go(0)

    def action_bottom(self) -> None:
        self._go(self.shown_count - 1)

    def action_select(self) -> None:
        if self._cursor is not None:
            self.post_message(self.RowSelected(self, self._cursor))

    def action_fold(self, expanded: bool) -> None:
        if self._cursor is None or not self._model.is_tree:
            return
        if self._model.expanded(self._cursor) not in (None, expanded):
            self._model.fold(self._cursor, expanded=expanded)
            self._arranged()
        elif not expanded:
            self._go_to_parent()

    def _go_to_parent(self) -> None:
        depth = self._model.row(self._model.shown[self._cursor_at]).depth
        for at in range(self._cursor_at - 1, -1, -1):
            if self._model.row(self._model.shown[at]).depth < depth:
                self._go(at)
                return

    def action_mark(self) -> None:
        if self._cursor is not None:
            self._anchor = self._cursor
            self._set_marks(self.marks ^ {self._cursor})
            self._go(self._cursor_at + 1)

    def action_mark_range(self) -> None:
        """From the last marked row to the cursor."""
        start = None if self._anchor is None else self._model.index(self._anchor)
        if self._cursor is None:
            return
        low, high = sorted((self._cursor_at if start is None else start, self._cursor_at))
        self._set_marks(self.marks | set(self._model.shown[low : high + 1]))

    def action_mark_shown(self) -> None:
        """Marks all rows the filter shows, or none when all are."""
        shown = frozenset(self._model.shown)
        self._set_marks(self.marks - shown if shown <= self.marks else self.marks | shown)

    def _set_marks(self, marks: Iterable[str]) -> None:
        new = frozenset(marks)
        if new != self.marks:
            self.marks = new
            self._repaint()
            self.post_message(self.MarksChanged(self, new))
            self.post_message(self.ViewChanged(self))

    def action_sort_move(self, by: int) -> None:
        """The sort column one to the left or right; left of the first is the order given."""
        keys = [None, *(slot.column.key for slot in self._slots if slot.column.sortable)]
        at = keys.index(self._model.sort_column) if self._model.sort_column in keys else 0
        key = keys[max(0, min(at + by, len(keys) - 1))]
        if key != self._model.sort_column:
            self.sort_by(key, descending=self._first_direction(key))

    def _first_direction(self, key: str | None) -> bool:
        """Figures start with the largest, names with the first."""
        return any(column.align == "right" for column in self.columns if column.key == key)

    def action_sort_invert(self) -> None:
        if self._model.sort_column is not None:
            self.sort_by(self._model.sort_column, descending=not self._model.descending)

    # ----------------------------------------------------------------------------------------------------------- mouse

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._scroll(_WHEEL_LINES)
        event.stop()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._scroll(-_WHEEL_LINES)
        event.stop()

    def _scroll(self, lines: int) -> None:
        """The view moves, the cursor stays on its row, in sight or not."""
        self._top = max(0, min(self._top + lines, self.shown_count - self._page))
        self._repaint()

    def on_click(self, event: events.Click) -> None:
        where = event.get_content_offset(self)
        if where is None:
            return
        if self._head and where.y == 0:
            for slot in self._slots:
                if slot.x <= where.x < slot.x + slot.width + 1 and slot.column.sortable:
                    key = slot.column.key
                    same = key == self._model.sort_column
                    self.sort_by(key, descending=not self._model.descending if same else self._first_direction(key))
            return
        at = self._top + where.y - self._head
        if at >= self.shown_count:
            return
        again = at == self._cursor_at and event.chain > 1
        self._go(at)
        row_id = self._model.shown[at]
        folds = self._model.expanded(row_id)
        if where.x < _GUTTER:
            self._set_marks(self.marks ^ {row_id})
        elif folds is not None and where.x - _GUTTER < text_width(self._model.prefix(row_id)):
            self.action_fold(not folds)
        elif again:
            self.action_select()

    # ----------------------------------------------------------------------------------------------------------- paint

    def on_resize(self) -> None:
        self._relayout()

    def on_focus(self) -> None:
        self._refresh_cursor_line()

    def on_blur(self) -> None:
        self._refresh_cursor_line()

    def _refresh_cursor_line(self) -> None:
        self.refresh(Region(0, self._cursor_at - self._top + self._head, self.size.width, 1))

    def _relayout(self) -> None:
        width = self.size.width
        # One cell at the right is the place of the scroll mark.
        self._slots = lay_out(self.columns, max(0, width - _GUTTER - 1), start=_GUTTER, hidden=self._hidden)
        self._lines = []
        self._arranged()
        self.refresh()

    def _repaint(self, *, ticked: bool = False) -> None:
        """Refreshes the regions of the screen that should look different now."""
        page, width = self._page, self.size.width
        shown = self._model.shown
        new: list[_Shown | None] = []
        regions: list[Region] = []
        for y in range(page):
            at = self._top + y
            old = self._lines[y] if y < len(self._lines) else None
            line = None
            if at < len(shown):
                id_ = shown[at]
                row = self._model.row(id_)
                same_row = old is not None and old.row.id == id_
                flash = old.flash if same_row and old is not None and not ticked else frozenset[int]()
                if ticked and same_row and old is not None:
                    flash = self._flashing(old.row, row)
                line = _Shown(row, self._model.prefix(id_), id_ == self._cursor, id_ in self.marks, flash)
            new.append(line)
            if line != old:
                regions.extend(self._difference(y + self._head, width, old, line))
        self._lines = new
        thumb = self._thumb_span()
        if thumb != self._thumb:
            self._thumb = thumb
            regions.append(Region(width - 1, self._head, 1, page))
        if (not shown) != self._empty_shown:
            self._empty_shown = not shown
            self.refresh()
        elif regions:
            self.refresh(*regions)

    def _flashing(self, old: Row, new: Row) -> frozenset[int]:
        return frozenset(
            slot.index
            for slot in self._slots
            if slot.column.flash and _cell(old, slot.index).text != _cell(new, slot.index).text
        )

    def _difference(self, y: int, width: int, old: _Shown | None, new: _Shown | None) -> list[Region]:
        whole = [Region(0, y, width, 1)]
        if old is None or new is None or old.row.id != new.row.id or old.row.stale != new.row.stale:
            return whole
        if old.cursor != new.cursor or old.prefix != new.prefix:
            return whole
        spans = [(0, _GUTTER)] if old.marked != new.marked else []
        for slot in self._slots:
            changed = not same_look(_cell(old.row, slot.index), _cell(new.row, slot.index), slot.width)
            if changed or (slot.index in old.flash) != (slot.index in new.flash):
                if spans and slot.x - spans[-1][1] < _MERGE_GAP:
                    spans[-1] = (spans[-1][0], slot.x + slot.width)
                else:
                    spans.append((slot.x, slot.x + slot.width))
        return [Region(x, y, end - x, 1) for x, end in spans]

    def _thumb_span(self) -> tuple[int, int] | None:
        """First and last line of the scroll mark; None when everything is in sight."""
        count, page = self.shown_count, self._page
        if count <= page:
            return None
        size = max(1, page * page // count)
        first = round(self._top / (count - page) * (page - size))
        return first, first + size - 1

    def render_line(self, y: int) -> Strip:
        width, palette = self.size.width, self.palette
        line = Line()
        if y == 0 and self._head:
            self._draw_header(line, palette)
            return self.ground(line.strip(width))
        if self._empty_shown:
            self._draw_empty(y, width, line, palette)
            return self.ground(line.strip(width))
        place = y - self._head
        shown = self._lines[place] if place < len(self._lines) else None
        if shown is not None:
            self._draw_row(line, shown, palette)
        if self._thumb is not None:
            line.pad_to(width - 1, palette.normal)
            inside = self._thumb[0] <= place <= self._thumb[1]
            line.add("┃" if inside else "│", palette.accent if inside and self.has_focus else palette.border)
        strip = line.strip(width)
        if shown is not None and shown.cursor:
            strip = strip.apply_style(palette.cursor if self.has_focus else palette.cursor_blurred)
        return self.ground(strip)

    def _draw_header(self, line: Line, palette: Palette) -> None:
        for slot in self._slots:
            line.pad_to(slot.x, palette.header)
            column = slot.column
            right = column.align == "right"
            if column.key == self._model.sort_column:
                arrow = "▼" if self._model.descending else "▲"
                title = fit(column.title, min(text_width(column.title), slot.width - 1))
                line.add(fit(title + arrow, slot.width, right=right), palette.title)
            else:
                line.add(fit(column.title, slot.width, right=right), palette.header)

    def _draw_empty(self, y: int, width: int, line: Line, palette: Palette) -> None:
        if y == max(1, self._page // 3):
            text = self.empty_text
            if self.filter_text and self.total_count:
                text = f"None of {self.total_count:,} matches /{self.filter_text}"
            text = fit(text, min(text_width(text), max(0, width - 2)))
            line.pad_to((width - text_width(text)) // 2, palette.dim).add(text, palette.dim)

    def _draw_row(self, line: Line, shown: _Shown, palette: Palette) -> None:
        row = shown.row
        dimmed = palette.dim if row.stale or self._stale else None
        mark = "✓" if shown.marked else " "
        if shown.cursor:
            line.add(mark if shown.marked else " ", palette.accent).add("▶ ", palette.accent)
        else:
            line.add(f" {mark} ", palette.accent if shown.marked else palette.normal)
        for place, slot in enumerate(self._slots):
            line.pad_to(slot.x, palette.normal)
            cell, width = _cell(row, slot.index), slot.width
            if place == 0 and shown.prefix:
                branch = fit(shown.prefix, min(text_width(shown.prefix), width))
                line.add(branch, palette.dim)
                width -= text_width(branch)
            draw_cell(line, cell, width, slot.column, palette, dimmed=dimmed, flash=slot.index in shown.flash)


def _cell(row: Row, index: int) -> Cell:
    return row.cells[index] if index < len(row.cells) else _NO_CELL


__all__ = ["FleetTable"]
