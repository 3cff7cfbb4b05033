"""Screen 1, overview: is anything wrong, and what needs me."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from nebula_tui.messages import HintsChanged, Jump, Open, Selection, selection_of
from nebula_tui.presenters import events as events_of
from nebula_tui.presenters import models, overview, trouble
from nebula_tui.presenters.cells import Row, Severity, milliseconds
from nebula_tui.presenters.overview import MeterLine
from nebula_tui.screens.parts import Lines
from nebula_tui.screens.view import View
from nebula_tui.widgets import (
    BrailleChart,
    FleetTable,
    HeatBlock,
    HeatGrid,
    HeatGroup,
    KeyHint,
    MeterRow,
    Panel,
)


class OverviewView(View):
    NAME: ClassVar[str] = "overview"
    DEFAULT_CSS = """
    OverviewView #ov-top { height: 11; }
    OverviewView #ov-strip { height: 1; display: none; padding: 0 1; }
    OverviewView #ov-fleet { width: 38fr; }
    OverviewView #ov-tokens { width: 42fr; }
    OverviewView #ov-latency { width: 40fr; }
    OverviewView #ov-ttft { width: 40fr; display: none; }
    OverviewView #ov-middle { height: 1fr; }
    OverviewView #ov-heat { width: 64fr; }
    OverviewView #ov-gpus { width: 64fr; display: none; padding: 0; }
    OverviewView.-listed #ov-heat { display: none; }
    OverviewView.-listed #ov-gpus { display: block; }
    OverviewView #ov-models { width: 56fr; padding: 0; }
    OverviewView.-listed #ov-gpus { width: 60fr; }
    OverviewView.-listed #ov-models { width: 60fr; }
    OverviewView #ov-bottom { height: 10; }
    OverviewView #ov-trouble { width: 70fr; padding: 0; }
    OverviewView #ov-events { width: 50fr; padding: 0; }
    OverviewView #ov-traffic { height: 2; }
    OverviewView #ov-refused { height: 1; }
    OverviewView.-compact #ov-strip { display: block; }
    OverviewView.-compact #ov-top { height: 6; }
    OverviewView.-compact #ov-fleet { display: none; }
    OverviewView.-compact #ov-latency { display: none; }
    OverviewView.-compact #ov-ttft { display: block; }
    OverviewView.-compact #ov-traffic { display: none; }
    OverviewView.-compact #ov-heat { display: none; }
    OverviewView.-compact #ov-gpus { display: none; }
    OverviewView.-compact #ov-events { display: none; }
    OverviewView.-compact #ov-bottom { height: 6; }
    OverviewView.-tiny #ov-top { display: none; }
    OverviewView.-tiny #ov-bottom { height: 4; }
    """

    def compose(self) -> ComposeResult:
        yield Lines(id="ov-strip")
        with Horizontal(id="ov-top"):
            yield Panel(id="ov-fleet", title="fleet")
            with Panel(id="ov-tokens", title="tokens/s"):
                yield BrailleChart(id="ov-out", minimum_top=1.0)
                yield Lines(id="ov-traffic")
            with Panel(id="ov-latency", title="latency"):
                yield Vertical(id="ov-latencies")
                yield Lines(id="ov-refused")
            with Panel(id="ov-ttft", title="TTFT p95"):
                yield BrailleChart(id="ov-ttft-chart", minimum_top=0.1)
        with Horizontal(id="ov-middle"):
            with Panel(id="ov-heat", title="gpu heat, 1 cell = 1 GPU", note="metric util"):
                yield HeatGrid(id="ov-grid", legend="· idle ░▒▓█ 25-100%  ▲ fault  ~ stale  ‖ drain  ⊘ cordon")
            with Panel(id="ov-gpus", title="gpus"):
                yield FleetTable(overview.GPU_COLUMNS, id="ov-gpu-table", empty_text="No GPU has reported yet.")
            with Panel(id="ov-models", title="models"):
                yield FleetTable(
                    models.BRIEF_COLUMNS, id="ov-model-table", empty_text="No deployment yet: nebula apply -f FILE"
                )
        with Horizontal(id="ov-bottom"):
            with Panel(id="ov-trouble", title="needs attention"):
                yield FleetTable(
                    trouble.COLUMNS, id="ov-trouble-table", empty_text="Nothing needs attention.", show_header=False
                )
            with Panel(id="ov-events", title="live events"):
                yield FleetTable(
                    events_of.BRIEF_COLUMNS, id="ov-event-table", empty_text="No event yet.", show_header=False
                )

    def first_focus(self) -> Widget | None:
        return self.query_one("#ov-model-table", FleetTable)

    def refresh_data(self) -> None:
        fleet, now = self.fleet, self.host.now()
        self.set_class(self.compact, "-compact")
        self.set_class(self.app.size.height < 20, "-tiny")
        sums = overview.totals(fleet)
        stale = not fleet.is_live(now)
        listed = 0 < sums.gpus <= overview.LISTED_GPUS or (sums.gpus == 0 and sums.nodes <= overview.LISTED_GPUS)
        self.set_class(listed, "-listed")
        self.query_one("#ov-strip", Lines).set_lines([overview.strip_line(fleet, sums)], stale=stale)
        self.query_one("#ov-fleet", Panel).set_title(f"fleet · {overview.fleet_title(sums)}")
        self._meters(
            self.query_one("#ov-fleet", Panel), overview.fleet_meters(sums, fleet.series.read("power", 40)), stale=stale
        )
        self.query_one("#ov-tokens", Panel).set_note(overview.out_note(fleet))
        self.query_one("#ov-out", BrailleChart).set_values(fleet.series.read("out"), stale=stale)
        self.query_one("#ov-traffic", Lines).set_lines(overview.traffic_lines(fleet), stale=stale)
        self._latency(stale=stale)
        if listed:
            self.query_one("#ov-gpu-table", FleetTable).set_rows(overview.gpu_rows(fleet, now))
            self.query_one("#ov-gpus", Panel).set_title(f"gpus {sums.gpus}")
        else:
            self.query_one("#ov-grid", HeatGrid).set_groups(
                [
                    HeatGroup(label, tuple(HeatBlock(node.id, node.glyphs) for node in nodes))
                    for label, nodes in overview.heat_groups(fleet)
                ]
            )
        table = self.query_one("#ov-model-table", FleetTable)
        table.set_rows(models.brief_rows(fleet, now, room=max(6, table.size.height - 1)))
        self.query_one("#ov-models", Panel).set_note(f"{sums.replicas_ready}/{sums.replicas_wanted} replicas")
        found = self.host.troubles()
        self._newest_on_top("#ov-trouble-table", trouble.rows(found))
        crit, warn = trouble.counts(found)
        severity = Severity.CRIT if crit else Severity.WARN if warn else Severity.NORMAL
        self.query_one("#ov-trouble", Panel).set_note(str(len(found)) if found else "", severity)
        self._newest_on_top("#ov-event-table", events_of.brief_rows(fleet, 40))

    def _newest_on_top(self, selector: str, rows: list[Row]) -> None:
        """A list whose head is what matters: its cursor stays on the first row unless somebody reads there."""
        table = self.query_one(selector, FleetTable)
        table.set_rows(rows)
        if not table.has_focus and rows:
            table.move_to(rows[0].id)

    def _latency(self, *, stale: bool) -> None:
        fleet = self.fleet
        lines = overview.latency_meters(fleet)
        self._meters(self.query_one("#ov-latencies", Vertical), lines, stale=stale)
        several = len(fleet.deployments) > 1
        self.query_one("#ov-latency", Panel).set_note("worst model" if several else "")
        self.query_one("#ov-refused", Lines).set_lines([overview.refusals(fleet)], stale=stale)
        values = fleet.series.read("ttft95")
        latest = milliseconds(values[-1] if values else None)
        self.query_one("#ov-ttft", Panel).set_note(f"{latest} worst model" if several else latest)
        self.query_one("#ov-ttft-chart", BrailleChart).set_values(values, stale=stale)

    def _meters(self, parent: Widget, lines: list[MeterLine], *, stale: bool) -> None:
        """One row per line; rows are made when first needed."""
        for line in lines:
            found = parent.query(f"#ov-meter-{line.key}")
            row = found.first(MeterRow) if found else None
            if row is None:
                row = MeterRow(line.label, label_width=10, value_width=9, id=f"ov-meter-{line.key}")
                parent.mount(row)
            row.set(line.fraction, line.value, line.severity, series=line.series, stale=stale)

    # ------------------------------------------------------------------------------------------------------- keys

    def _focused_table(self) -> FleetTable | None:
        focused = self.screen.focused
        return focused if isinstance(focused, FleetTable) else None

    @property
    def selection(self) -> Selection | None:
        focused = self.screen.focused
        if isinstance(focused, HeatGrid):
            return Selection("node", focused.cursor[0]) if focused.cursor is not None else None
        table = self._focused_table() or self.query_one("#ov-model-table", FleetTable)
        return self._selected_in(table, table.cursor_id)

    def _selected_in(self, table: FleetTable, row_id: str | None) -> Selection | None:
        if row_id is None:
            return None
        kind, _, name = row_id.partition("/")
        match table.id:
            case "ov-gpu-table":
                node = self.fleet.nodes.get(kind)
                own = next((gpu.replica for gpu in node.gpus if str(gpu.index) == name), None) if node else None
                return Selection("replica", own) if own else Selection("node", kind)
            case "ov-trouble-table":
                return selection_of(kind, name.partition("/")[0])
            case "ov-event-table":
                event = events_of.find(self.fleet, row_id)
                target = events_of.target(event) if event is not None else None
                return selection_of(*target) if target is not None else None
            case _:
                return selection_of(kind, name)

    def on_fleet_table_row_selected(self, event: FleetTable.RowSelected) -> None:
        event.stop()
        if event.table.id == "ov-event-table":
            self.post_message(Jump("events"))
            return
        selected = self._selected_in(event.table, event.row_id)
        if selected is not None:
            self.post_message(Open(selected))

    def on_heat_grid_cell_selected(self, event: HeatGrid.CellSelected) -> None:
        event.stop()
        self.post_message(Open(Selection("node", event.block_id)))

    def on_fleet_table_row_highlighted(self) -> None:
        self.post_message(HintsChanged())

    def on_descendant_focus(self) -> None:
        self.post_message(HintsChanged())

    def hints(self) -> list[KeyHint]:
        return [
            KeyHint("⏎", "open", "enter", 0),
            KeyHint("tab", "panel", "tab", 2),
            KeyHint(":", "command", "colon", 1),
            KeyHint("^P", "palette", "ctrl+p", 3),
            KeyHint("p", "pause", "p", 4),
            *self.acting(KeyHint("s", "scale", "s", 1), KeyHint("d", "drain", "d", 2)),
            KeyHint("l", "logs", "l", 1),
            KeyHint("t", "chat", "t", 1),
            KeyHint("?", "help", "question_mark", 0),
            KeyHint("q", "quit", "q", 3),
        ]

    def show_thing(self, selection: Selection) -> None:
        table = self.query_one("#ov-model-table", FleetTable)
        table.move_to(f"{selection.kind}/{selection.name}")
