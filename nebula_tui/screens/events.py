"""Screen 8, events: what happened, who did it, did it work."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult

from nebula_core.records.event import Event
from nebula_tui.messages import Open, Selection, selection_of
from nebula_tui.presenters import events
from nebula_tui.presenters.text import plural
from nebula_tui.screens.parts import Lines
from nebula_tui.screens.view import Host, TableView
from nebula_tui.widgets import FleetTable, KeyHint, Panel


class EventsView(TableView):
    NAME: ClassVar[str] = "events"
    TABLE: ClassVar[str] = "ev-table"
    DEFAULT_CSS = """
    EventsView #ev-list { padding: 0; }
    EventsView #ev-detail { height: 7; }
    """

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._following = True
        self._faults_only = False
        self._shown: Sequence[Event] = ()
        self._seen = -1

    def compose(self) -> ComposeResult:
        with Panel(id="ev-list", title="events"):
            yield FleetTable(events.COLUMNS, id="ev-table", empty_text="No event yet.")
        with Panel(id="ev-detail", title="event"):
            yield Lines(id="ev-lines")

    def refresh_data(self) -> None:
        fleet = self.fleet
        if self._seen != fleet.events_version:
            self._seen = fleet.events_version
            newest = self.table.cursor_id is None or self.table.cursor_id == next(iter(self.table.shown_ids), None)
            told = [event for event in fleet.events if event.severity != "info" or not self._faults_only]
            self.table.set_rows(events.rows(fleet, told))
            if self._following and newest and self.table.shown_ids:
                # Following: the cursor stays on the newest, unless the operator has gone down to read.
                self.table.move_to(self.table.shown_ids[0])
        self.table.set_stale(not fleet.is_live(self.host.now()))
        self._titles()
        self._detail()

    def _titles(self) -> None:
        note = self.table.view_note or plural(len(self.fleet.events), "event")
        parts = [
            note,
            "newest first" if self.table.sorted_by is None else "",
            "following" if self._following else "‖ held, f follows",
        ]
        if self._faults_only:
            parts.insert(0, "warnings only")
        self.query_one("#ev-list", Panel).set_note(" · ".join(part for part in parts if part))

    def _detail(self) -> None:
        event = events.find(self.fleet, self.table.cursor_id) if self.table.cursor_id is not None else None
        panel, lines = self.query_one("#ev-detail", Panel), self.query_one("#ev-lines", Lines)
        if event is None:
            panel.set_title("event")
            lines.set_lines([])
            return
        panel.set_title(f"{event.kind} · {event.object}")
        panel.set_note("⏎ open what it is about")
        lines.set_lines(events.detail_lines(event, self.fleet.utc_offset_seconds))

    @property
    def selection(self) -> Selection | None:
        event = events.find(self.fleet, self.table.cursor_id) if self.table.cursor_id is not None else None
        target = events.target(event) if event is not None else None
        return selection_of(*target) if target is not None else None

    def show_thing(self, selection: Selection) -> None:
        """Events of one thing, and of what hangs on it."""
        names = [selection.name]
        if selection.kind in ("node", "deployment"):
            names += [replica.id for replica in selection.replicas(self.fleet)]
        elif (deployment := selection.deployment(self.fleet)) is not None:
            names.append(deployment)
        self.set_filter("|".join(_literal(name) for name in names[:20]))

    def on_fleet_table_row_highlighted(self) -> None:
        self._detail()

    def on_fleet_table_row_selected(self) -> None:
        selected = self.selection
        if selected is not None:
            self.post_message(Open(selected))

    def on_fleet_table_view_changed(self) -> None:
        self._titles()

    def key_f(self) -> None:
        self._following = not self._following
        if self._following and self.table.shown_ids:
            self.table.move_to(self.table.shown_ids[0])
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
        self._seen = -1
        self.refresh_data()
        return True

    def copy_text(self) -> str | None:
        event = events.find(self.fleet, self.table.cursor_id) if self.table.cursor_id is not None else None
        return event.to_json() if event is not None else None

    def hints(self) -> list[KeyHint]:
        return [
            KeyHint("⏎", "open", "enter", 0),
            KeyHint("/", "filter", "slash", 0),
            KeyHint("f", "follow", "f", 1),
            KeyHint("z", "warnings only", "z", 2),
            KeyHint("l", "logs", "l", 2),
            KeyHint("y", "copy json", "y", 3),
            KeyHint("g", "newest", "g", 3),
            KeyHint("G", "oldest", "G", 4),
            KeyHint("?", "help", "question_mark", 0),
        ]


def _literal(name: str) -> str:
    """A name as a filter term: its dots are dots."""
    return name.replace(".", r"\.")
