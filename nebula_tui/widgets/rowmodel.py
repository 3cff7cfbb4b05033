"""The order of a table: rows given, filtered, sorted among their siblings, folded. Knows no Textual.

Ids are the identity of rows; the model keeps what the operator did to them (folds) while rows come and go.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from nebula_tui.presenters.cells import Cell, Column, LazyRows, Order, Row
from nebula_tui.presenters.rowfilter import RowFilter

_SortKey = tuple[int, float, tuple[tuple[int, int, str], ...]]


@lru_cache(maxsize=16_384)
def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which node-9 comes before node-10."""
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", text.casefold()) if p)


def _sort_key(value: Order) -> _SortKey:
    return (1, 0.0, natural(value)) if isinstance(value, str) else (0, value or 0.0, ())


@dataclass(slots=True)
class _Entry:
    id: str
    depth: int
    expandable: bool
    expanded: bool
    children: "list[_Entry]"


class RowModel:
    """`shown` is the list of ids on display, in order; `row(id)` makes or finds a row."""

    def __init__(self) -> None:
        self.columns: tuple[Column, ...] = ()
        self.sort_column: str | None = None
        self.descending = False
        self.filter = RowFilter("")
        self.shown: Sequence[str] = ()
        self.is_tree = False
        self._lazy = LazyRows((), lambda id_: Row(id_, ()))
        self._rows: dict[str, Row] = {}
        self._tree: list[_Entry] = []
        self._folds: dict[str, bool] = {}
        self._prefix: dict[str, str] = {}
        self._index: dict[str, int] | None = None
        self._place: dict[str, int] = {}

    @property
    def total(self) -> int:
        return len(self._lazy.ids)

    @property
    def ids(self) -> Sequence[str]:
        """All rows given, in the order given."""
        return self._lazy.ids

    def set_columns(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self._place = {column.key: i for i, column in enumerate(self.columns)}

    def set_rows(self, rows: Sequence[Row] | LazyRows) -> None:
        if isinstance(rows, LazyRows):
            self._rows, self._tree, self.is_tree, self._lazy = {}, [], False, rows
        else:
            self._rows = {row.id: row for row in rows}
            self.is_tree = any(row.depth or row.expandable for row in rows)
            self._tree = _forest(list(self._rows.values())) if self.is_tree else []
            self._lazy = LazyRows(tuple(self._rows), self._rows.__getitem__, self._cell_order, self._row_text)
        self.arrange()

    def row(self, id_: str) -> Row:
        row = self._rows.get(id_)
        if row is None:
            row = self._rows[id_] = self._lazy.make(id_)
        return row

    def index(self, id_: str) -> int | None:
        """Where a row is shown; None when it is not."""
        if self._index is None:
            self._index = {id_: i for i, id_ in enumerate(self.shown)}
        return self._index.get(id_)

    def prefix(self, id_: str) -> str:
        """The branches of the tree before a row's first cell."""
        return self._prefix.get(id_, "")

    def expanded(self, id_: str) -> bool | None:
        """None: the row cannot be folded."""
        row = self.row(id_)
        return self._folds.get(id_, row.expanded) if row.expandable else None

    def fold(self, id_: str, *, expanded: bool) -> None:
        self._folds[id_] = expanded
        self.arrange()

    def fold_all(self, *, expanded: bool) -> None:
        for row in self._rows.values():
            if row.expandable:
                self._folds[row.id] = expanded
        self.arrange()

    def arrange(self) -> None:
        """Works out `shown` again."""
        self._index = None
        self._prefix = {}
        if self.is_tree:
            out: list[str] = []
            self._walk(self._tree, "", out, keep=not self.filter)
            self.shown = out
            return
        ids = self._lazy.ids
        if self.filter:
            ids = [id_ for id_ in ids if self._matches(id_)]
        self.shown = self._sorted(list(ids)) if self.sort_column is not None else ids

    def _sorted(self, ids: list[str]) -> list[str]:
        key, order = self.sort_column or "", self._lazy.order
        keyed = [(value, id_) for id_ in ids for value in (order(id_, key),)]
        unknown = [id_ for value, id_ in keyed if value is None]
        known = [(_sort_key(value), id_) for value, id_ in keyed if value is not None]
        # Stable in both directions, so rows of equal value do not change places from tick to tick.
        known.sort(key=lambda item: item[0], reverse=self.descending)
        return [id_ for _, id_ in known] + unknown

    def _matches(self, id_: str) -> bool:
        return self.filter.matches(self._lazy.text(id_), lambda key: self._lazy.order(id_, key))

    def _walk(self, entries: list[_Entry], indent: str, out: list[str], *, keep: bool) -> bool:
        """Adds what of `entries` is shown; `keep` when an ancestor matched. True when anything was added."""
        by_id = {entry.id: entry for entry in entries}
        order = self._sorted(list(by_id)) if self.sort_column is not None else list(by_id)
        added: list[tuple[_Entry, list[str], bool]] = []
        for id_ in order:
            entry = by_id[id_]
            own = keep or self._matches(id_)
            below: list[str] = []
            inside = self._walk(entry.children, indent + ("  " if entry.depth == 0 else "│ "), below, keep=own)
            if own or inside:
                # A match inside a fold is shown: finding nothing because it is folded away would be a lie.
                unfolded = self._folds.get(id_, entry.expanded) or (inside and not own)
                added.append((entry, below if unfolded else [], unfolded))
        for place, (entry, below, unfolded) in enumerate(added):
            last = place == len(added) - 1
            branch = "" if entry.depth == 0 else ("└ " if last else "├ ")
            arrow = ("▾ " if unfolded else "▸ ") if entry.expandable else ("" if entry.depth else "  ")
            self._prefix[entry.id] = indent + branch + arrow
            out.append(entry.id)
            if last and entry.depth:
                for id_ in below:
                    self._prefix[id_] = self._prefix[id_].replace(indent + "│ ", indent + "  ", 1)
            out.extend(below)
        return bool(added)

    def _cell(self, id_: str, key: str) -> Cell | None:
        place, cells = self._place.get(key), self._rows[id_].cells
        return cells[place] if place is not None and place < len(cells) else None

    def _cell_order(self, id_: str, key: str) -> Order:
        cell = self._cell(id_, key)
        return None if cell is None else cell.sort_key

    def _row_text(self, id_: str) -> str:
        return " ".join(cell.text for cell in self._rows[id_].cells)


def _forest(rows: Sequence[Row]) -> list[_Entry]:
    """Rows in reading order, by depth, as a forest; a depth that skips a level hangs under the last row above it."""
    roots: list[_Entry] = []
    path: list[_Entry] = []
    for row in rows:
        entry = _Entry(row.id, row.depth, row.expandable, row.expanded, [])
        while path and path[-1].depth >= row.depth:
            path.pop()
        (path[-1].children if path else roots).append(entry)
        path.append(entry)
    return roots
