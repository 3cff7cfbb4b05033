"""Screen 2, nodes: which box or GPU is hot, stale or sick, and what runs on it."""

from typing import ClassVar

from textual.app import ComposeResult

from nebula_core.records.views import NodeView
from nebula_tui.messages import HintsChanged, Selection
from nebula_tui.presenters import nodes
from nebula_tui.presenters.cells import LazyRows, Severity
from nebula_tui.presenters.states import node_state
from nebula_tui.screens.parts import Lines
from nebula_tui.screens.view import Host, TableView
from nebula_tui.widgets import FleetTable, KeyHint, Panel


class NodesView(TableView):
    NAME: ClassVar[str] = "nodes"
    TABLE: ClassVar[str] = "nd-table"
    DEFAULT_CSS = """
    NodesView #nd-list { padding: 0; }
    NodesView #nd-detail { height: 11; }
    NodesView.-compact #nd-detail { height: 8; }
    NodesView.-whole #nd-list { display: none; }
    NodesView.-whole #nd-detail { height: 1fr; }
    """

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._faults_only = False

    def compose(self) -> ComposeResult:
        with Panel(id="nd-list", title="nodes"):
            yield FleetTable(nodes.COLUMNS, id="nd-table", empty_text="No node yet: nebula node add USER@HOST")
        with Panel(id="nd-detail"):
            yield Lines(id="nd-lines")

    def refresh_data(self) -> None:
        self.set_class(self.compact, "-compact")
        fleet, now = self.fleet, self.host.now()
        rows = nodes.rows(fleet, now)
        if self._faults_only:
            kept = tuple(name for name in rows.ids if _unwell(fleet.nodes[name]))
            rows = LazyRows(kept, rows.make, rows.order, rows.text)
        self.table.set_rows(rows)
        self._titles()
        self._detail()

    def _titles(self) -> None:
        states = [node_state(node) for node in self.fleet.nodes.values()]
        panel = self.query_one("#nd-list", Panel)
        panel.set_title(f"nodes {len(states):,}")
        lost = sum(severity is Severity.CRIT for _, severity in states)
        warned = sum(severity is Severity.WARN for _, severity in states)
        note = self.table.view_note
        if not note:
            parts = [f"{len(states) - lost - warned} ready"]
            parts += [f"● {warned}"] if warned else []
            parts += [f"▲ {lost} lost"] if lost else []
            note = " · ".join(parts)
        if self._faults_only:
            note = f"faults only · {note}"
        panel.set_note(note, Severity.CRIT if lost else Severity.NORMAL)

    def _detail(self) -> None:
        panel, lines = self.query_one("#nd-detail", Panel), self.query_one("#nd-lines", Lines)
        node = self.fleet.nodes.get(self.table.cursor_id or "")
        if node is None:
            panel.set_title("no node chosen")
            panel.set_note("")
            lines.set_lines([])
            return
        now = self.host.now()
        panel.set_title(nodes.title(node))
        panel.set_note("esc: back to all" if self.has_class("-whole") else "⏎ large   e events")
        stale = node.state == "lost" or not self.fleet.is_live(now)
        if self.has_class("-whole"):
            found = nodes.whole_lines(self.fleet, node, lines.size.width, now)
        else:
            found = nodes.panel_lines(self.fleet, node, lines.size.width, lines.size.height, now)
        lines.set_lines(found, stale=stale)

    @property
    def selection(self) -> Selection | None:
        return Selection("node", self.table.cursor_id) if self.table.cursor_id is not None else None

    def show_thing(self, selection: Selection) -> None:
        name = selection.node(self.fleet)
        if name is None:
            return
        if not self.table.move_to(name):
            self.table.set_filter("")
            self.table.move_to(name)
        self._detail()

    def on_fleet_table_row_highlighted(self) -> None:
        self._detail()
        self.post_message(HintsChanged())

    def on_fleet_table_row_selected(self) -> None:
        self.add_class("-whole")
        self.call_after_refresh(self.refresh_data)

    def on_fleet_table_view_changed(self) -> None:
        self._titles()

    def on_resize(self) -> None:
        self.call_after_refresh(self._detail)

    def back(self) -> bool:
        if self.has_class("-whole"):
            self.remove_class("-whole")
            self.table.focus()
            self.call_after_refresh(self._detail)
            return True
        if self.table.marks:
            self.table.clear_marks()
            return True
        return False

    def can_filter(self) -> bool:
        return True

    @property
    def filter_text(self) -> str:
        return self.table.filter_text

    def set_filter(self, text: str) -> None:
        self.table.set_filter(text)
        self._titles()

    def toggle_faults(self) -> bool:
        self._faults_only = not self._faults_only
        self.refresh_data()
        return True

    def hints(self) -> list[KeyHint]:
        node = self.fleet.nodes.get(self.table.cursor_id or "")
        closed = node is not None and (node.cordoned or node.draining)
        return [
            KeyHint("⏎", "GPUs", "enter", 0),
            *self.acting(
                KeyHint("d", "drain", "d", 0),
                KeyHint("U", "uncordon", "U", 0) if closed else KeyHint("c", "cordon", "c", 0),
            ),
            KeyHint("l", "logs", "l", 1),
            KeyHint("e", "events", "e", 2),
            KeyHint("/", "filter", "slash", 1),
            KeyHint("<", "sort", "less_than_sign", 3),
            KeyHint(">", "", "greater_than_sign", 3),
            KeyHint("I", "invert", "I", 5),
            KeyHint("z", "faults only", "z", 4),
            KeyHint("y", "copy", "y", 5),
            KeyHint("?", "help", "question_mark", 0),
        ]


def _unwell(node: NodeView) -> bool:
    faulty = any(gpu.sample is not None and gpu.sample.fault for gpu in node.gpus)
    return node_state(node)[1] is not Severity.OK or bool(node.problems) or faulty
