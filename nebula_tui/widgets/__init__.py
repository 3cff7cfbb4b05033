"""Widgets of our own, drawn on Textual's line API: table, log ring, charts, heat grid, meter, frame and bars.

Widgets hold no truth: a screen gives them rows, values or lines made by presenters, and listens to their messages. All
strings may be foreign; widgets clean them and never read markup. Setters compare first, so giving the same again paints
nothing. `stale` dims figures that are old.

FleetTable(columns, empty_text=, show_header=True)
    set_columns(columns, hidden=) · set_rows(list[Row] | LazyRows) · set_filter(text) · sort_by(key | None, descending=)
    move_to(row_id) · clear_marks() · fold_all(expanded=) · set_stale(bool)
    cursor_id · cursor_row · marks · shown_ids · shown_count · total_count · filter_text · sorted_by · view_note
    cells: presenters.cells `Cell(text, severity)`, `Cell.gauge(0..1)`, `Cell.strip(heat glyphs)`, `Cell(series=…)`
    messages RowHighlighted(row_id | None) · RowSelected(row_id) · MarksChanged(marks) · ViewChanged: `.table`
LogRing(capacity=100_000, tz=None, show_source=True)
    append(entries) · note_lost(count, at, reason) · set_search(text) · set_filter(LogFilter) · follow(bool) · clear()
    status -> LogStatus · following · cursor_entry · filter · search_text · lost · shown_entries()
    messages StatusChanged · LineSelected(entry): `.log_ring`; entries: presenters.loglines `make_entry`, `entries_of`
BrailleChart(maximum=, minimum_top=, severity=, caption=, scale=)
    set_values(values, maximum=, severity=, caption=, stale=) · top; scale= formats the upper edge, as `short_count`
MeterRow(label, label_width=10, value_width=8)
    set(fraction | None, value_text, severity, series=, stale=)
HeatGrid(legend=)
    set_groups([HeatGroup(label, (HeatBlock(node_id, glyphs), ...))]) · cursor -> (node_id, gpu index)
    messages CellHighlighted, CellSelected: `.block_id`, `.index`; glyphs: presenters.cells `heat(fraction, Mark)`
Panel(*children, title=, note=)
    set_title(text) · set_note(text, severity); doubles its frame while the focus is inside
HeaderBar
    set_state(HeaderState(...)) · set_tabs([Tab(key, label, short)], active_key); message TabClicked(key)
KeyBar
    set_keys([KeyHint(key, label, press, priority)]) · show_message(text, severity); message KeyClicked(press)
"""

from nebula_tui.widgets.bars import HeaderBar, HeaderState, KeyBar, KeyHint, Tab
from nebula_tui.widgets.charts import BrailleChart, MeterRow
from nebula_tui.widgets.fleet_table import FleetTable
from nebula_tui.widgets.heat_grid import HeatBlock, HeatGrid, HeatGroup
from nebula_tui.widgets.log_ring import LogRing, LogStatus
from nebula_tui.widgets.panel import Panel

__all__ = [
    "BrailleChart",
    "FleetTable",
    "HeaderBar",
    "HeaderState",
    "HeatBlock",
    "HeatGrid",
    "HeatGroup",
    "KeyBar",
    "KeyHint",
    "LogRing",
    "LogStatus",
    "MeterRow",
    "Panel",
    "Tab",
]
