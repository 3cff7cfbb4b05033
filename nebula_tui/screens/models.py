"""Screen 3, models and replicas: enough replicas, and which one is odd."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal

from nebula_tui.messages import HintsChanged, Jump, Selection, selection_of
from nebula_tui.presenters import models
from nebula_tui.presenters.cells import Severity, percent, short_count
from nebula_tui.presenters.states import short_replica
from nebula_tui.presenters.text import plural
from nebula_tui.screens.parts import Lines
from nebula_tui.screens.view import Host, TableView
from nebula_tui.widgets import BrailleChart, FleetTable, KeyHint, Panel


class ModelsView(TableView):
    NAME: ClassVar[str] = "models"
    TABLE: ClassVar[str] = "md-table"
    DEFAULT_CSS = """
    ModelsView #md-list { padding: 0; }
    ModelsView #md-bottom { height: 14; }
    ModelsView.-compact #md-bottom { height: 6; }
    ModelsView.-compact #md-charts { display: none; }
    ModelsView #md-kv { height: 1fr; }
    ModelsView #md-out { height: 1fr; margin-top: 1; }
    """

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._faults_only = False

    def compose(self) -> ComposeResult:
        with Panel(id="md-list", title="models › replicas"):
            yield FleetTable(models.COLUMNS, id="md-table", empty_text="No deployment yet: nebula apply -f FILE")
        with Horizontal(id="md-bottom"):
            with Panel(id="md-detail"):
                yield Lines(id="md-lines")
            with Panel(id="md-charts"):
                yield BrailleChart(id="md-kv", maximum=1.0, caption="KV cache, fullest replica")
                yield BrailleChart(id="md-out", minimum_top=1.0, caption="tokens/s")

    def refresh_data(self) -> None:
        self.set_class(self.compact, "-compact")
        fleet = self.fleet
        rows = models.rows(fleet, self.host.now(), wall=self.host.wall())
        if self._faults_only:
            rows = models.only_faults(fleet, rows)
        self.table.set_rows(rows)
        self._titles()
        self._detail()

    def _titles(self) -> None:
        fleet = self.fleet
        note = (
            self.table.view_note
            or f"{plural(len(fleet.deployments), 'model')} · {plural(len(fleet.replicas), 'replica')}"
        )
        self.query_one("#md-list", Panel).set_note(f"faults only · {note}" if self._faults_only else note)

    def _detail(self) -> None:
        fleet, now = self.fleet, self.host.now()
        panel, lines, charts = (
            self.query_one("#md-detail", Panel),
            self.query_one("#md-lines", Lines),
            self.query_one("#md-charts", Panel),
        )
        selected = self.selection
        stale = not fleet.is_live(now)
        replica = fleet.replicas.get(selected.name) if selected is not None and selected.kind == "replica" else None
        deployment = fleet.deployments.get(selected.name) if selected is not None else None
        if replica is not None:
            panel.set_title(f"{short_replica(replica.id)} · {replica.node}")
            panel.set_note("⏎ engine")
            lines.set_lines(models.replica_lines(fleet, replica, now), stale=stale)
            name = f"replica/{replica.id}"
        elif deployment is not None:
            panel.set_title(deployment.name)
            panel.set_note(
                "simulated" if deployment.simulated else "s scale   r restart",
                Severity.INFO if deployment.simulated else Severity.NORMAL,
            )
            lines.set_lines(models.deployment_lines(fleet, deployment), stale=stale)
            name = f"deployment/{deployment.name}"
        else:
            panel.set_title("nothing chosen")
            panel.set_note("")
            lines.set_lines([])
            name = ""
        kv, out = fleet.series.read(f"{name}/kv"), fleet.series.read(f"{name}/out")
        charts.set_title(f"{name.partition('/')[2]} · 10 min" if name else "10 min")
        charts.set_note(f"KV {percent(kv[-1] if kv else None)}% · {short_count(out[-1] if out else None)} tok/s")
        self.query_one("#md-kv", BrailleChart).set_values(kv, stale=stale)
        self.query_one("#md-out", BrailleChart).set_values(out, stale=stale)

    @property
    def selection(self) -> Selection | None:
        row = self.table.cursor_id
        if row is None:
            return None
        kind, _, name = row.partition("/")
        return selection_of(kind, name)

    def show_thing(self, selection: Selection) -> None:
        row = f"{selection.kind}/{selection.name}"
        if selection.kind == "replica" and not self.table.move_to(row):
            self.table.set_filter("")
            self.table.fold_all(expanded=True)
        if not self.table.move_to(row):
            self.table.set_filter("")
            self.table.move_to(row)
        self._detail()

    def on_fleet_table_row_highlighted(self) -> None:
        self._detail()
        self.post_message(HintsChanged())

    def on_fleet_table_row_selected(self, event: FleetTable.RowSelected) -> None:
        selected = self.selection
        if selected is not None and selected.kind == "replica":
            self.post_message(Jump("engine", selected))
        else:
            shown = list(event.table.shown_ids)
            below = shown[shown.index(event.row_id) + 1 :][:1] if event.row_id in shown else []
            event.table.action_fold(not (below and below[0].startswith("replica/")))

    def on_fleet_table_view_changed(self) -> None:
        self._titles()

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
        replica = self.selection is not None and self.selection.kind == "replica"
        return [
            KeyHint("⏎", "engine" if replica else "fold", "enter", 0),
            *self.acting(
                KeyHint("s", "scale", "s", 0),
                *([KeyHint("d", "drain", "d", 1)] if replica else []),
                KeyHint("r", "restart", "r", 2),
            ),
            KeyHint("l", "logs", "l", 0),
            KeyHint("t", "chat", "t", 0),
            KeyHint("e", "events", "e", 2),
            KeyHint("n", "its node", "n", 3),
            KeyHint("/", "filter", "slash", 1),
            KeyHint("z", "faults only", "z", 4),
            KeyHint("y", "copy", "y", 5),
            KeyHint("?", "help", "question_mark", 0),
        ]
