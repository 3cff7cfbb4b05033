"""The dialog that chooses whom to talk to: a model through the proxy, or up to three of its replicas."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from nebula_tui.presenters import models
from nebula_tui.presenters.cells import Column, Severity
from nebula_tui.presenters.text import plain
from nebula_tui.screens.parts import Lines
from nebula_tui.screens.view import Host
from nebula_tui.widgets import FleetTable, Panel

Choice = tuple[str, tuple[str, ...]]

_COLUMNS = (
    Column("name", "MODEL / REPLICA", 30, min_width=16, flex=True),
    *(column for column in models.BRIEF_COLUMNS if column.key in ("state", "kv", "out", "wait")),
)


class PickDialog(ModalScreen[Choice | None]):
    DEFAULT_CSS = """
    PickDialog { align: center middle; background: $background 40%; }
    PickDialog Panel { width: 76; height: 18; max-width: 100%; max-height: 100%; padding: 0; background: $surface; }
    PickDialog Lines { height: 1; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "leave", "leave", show=False)]

    def __init__(self, host: Host, most: int, now: tuple[str | None, tuple[str, ...]]) -> None:
        super().__init__()
        self.host, self._most, self._now = host, most, now

    def compose(self) -> ComposeResult:
        with Panel(title="talk to", note="⏎ choose   space mark replicas"):
            yield FleetTable(_COLUMNS, empty_text="No model yet.")
            yield Lines()

    def on_mount(self) -> None:
        table = self.query_one(FleetTable)
        rows = models.brief_rows(self.host.fleet, self.host.now(), room=200)
        keep = (0, 1, 2, 3, 6)
        table.set_rows([models.with_cells(row, keep) for row in rows])
        self.query_one(Lines).set_lines(
            [plain(f" a model: through the proxy · up to {self._most} replicas: side by side", Severity.DIM)]
        )
        model, targets = self._now
        if targets:
            table.move_to(models.replica_row_id(targets[0]))
        elif model:
            table.move_to(models.deployment_row_id(model))
        table.focus()

    def on_fleet_table_row_selected(self, event: FleetTable.RowSelected) -> None:
        replicas = self.host.fleet.replicas
        marked = [row.partition("/")[2] for row in event.table.shown_ids if row in event.table.marks]
        marked = [name for name in marked if name in replicas]
        kind, _, name = event.row_id.partition("/")
        if marked:
            model = replicas[marked[0]].model
            self.dismiss((model, tuple(one for one in marked if replicas[one].model == model)[: self._most]))
        elif kind == "replica" and name in replicas:
            self.dismiss((replicas[name].model, (name,)))
        else:
            self.dismiss((name, ()))

    def action_leave(self) -> None:
        self.dismiss(None)
