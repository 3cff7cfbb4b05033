"""Screen 5, requests: who waits, and for what. Single requests live, the oldest first; then what ended lately.

What is open is asked of the server once a second while the screen is in sight, and only then do the proxies say it.
"""

from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from nebula_core.errors import NebulaError
from nebula_core.records.views import RequestsPage, RequestView
from nebula_tui.messages import HintsChanged, Jump, Open, Selection
from nebula_tui.presenters import engine, requests
from nebula_tui.presenters.cells import Column, Severity, age
from nebula_tui.presenters.text import TextLine, plain
from nebula_tui.screens.parts import Lines
from nebula_tui.screens.view import Host, TableView
from nebula_tui.widgets import FleetTable, KeyHint, Panel

#: What `b` walks through.
GROUPS: Final = ("request", "model", "key", "replica", "proxy")
_COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "request": requests.COLUMNS,
    "model": requests.GROUP_COLUMNS,
    "key": requests.GROUP_COLUMNS,
    "replica": engine.INFLIGHT_COLUMNS,
    "proxy": engine.PROXY_COLUMNS,
}
_EMPTY: Final = {
    "request": "Nothing is open, and nothing was recorded yet.",
    "model": "Nothing is open.",
    "key": "Nothing is open.",
    "replica": "No replica yet.",
    "proxy": "No proxy reports: no request is routed.",
}
#: Older than this the list is dimmed.
STALE_SECONDS: Final = 3.0


class RequestsView(TableView):
    NAME: ClassVar[str] = "requests"
    TABLE: ClassVar[str] = "rq-table"
    DEFAULT_CSS = """
    RequestsView #rq-head { height: 1; }
    RequestsView #rq-note { height: 1; }
    RequestsView #rq-list { padding: 0; }
    RequestsView #rq-detail { height: 8; }
    RequestsView.-compact #rq-detail { height: 6; }
    RequestsView.-grouped #rq-detail { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b", "group(1)", "by", show=False, id="requests.by"),
        Binding("B", "group(-1)", "by, backwards", show=False, id="requests.by_back"),
    ]

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._page: RequestsPage | None = None
        self._seen_at = float("-inf")
        self._error: NebulaError | None = None
        self._group = "request"
        self._views: dict[str, RequestView] = {}
        self._faults_only = False
        self._wanted: str | None = None

    def compose(self) -> ComposeResult:
        yield Lines(id="rq-head")
        with Panel(id="rq-list", title="requests · live"):
            yield FleetTable(requests.COLUMNS, id="rq-table", empty_text=_EMPTY["request"])
        with Panel(id="rq-detail", title="request"):
            yield Lines(id="rq-lines")
        yield Lines(id="rq-note")

    # --------------------------------------------------------------------------------------------------------- data

    def refresh_data(self) -> None:
        self.set_class(self.compact, "-compact")
        if not any(worker.group == "look" and worker.is_running for worker in self.workers):
            self.run_worker(self._look(), group="look", exit_on_error=False)
        self._show()

    async def _look(self) -> None:
        try:
            self._page = await self.host.control.requests()
            self._seen_at, self._error = self.host.now(), None
        except NebulaError as error:
            self._error = error
        if self.is_attached and not self.host.is_paused():
            self._show()

    def _show(self) -> None:
        now, page = self.host.now(), self._page
        stale = now - self._seen_at > STALE_SECONDS
        self.query_one("#rq-head", Lines).set_lines([requests.page_line(self.fleet, page)], stale=stale)
        items = page.items if page is not None else ()
        match self._group:
            case "request":
                shown = [one for one in items if requests.is_faulty(one)] if self._faults_only else items
                pairs = requests.request_rows(shown, stale=stale)
                self._views = {row.id: view for row, view in pairs}
                self.table.set_rows([row for row, _ in pairs])
                if self._wanted is not None and self.table.move_to(self._wanted):
                    self._wanted = None
            case "replica":
                self.table.set_rows(engine.inflight_rows(self.fleet, now))
            case "proxy":
                self.table.set_rows(engine.proxy_rows(self.fleet, now))
            case by:
                self.table.set_rows(requests.group_rows(items, by, stale=stale))
        self.query_one("#rq-note", Lines).set_lines([self._note()])
        self._detail()

    def _note(self) -> TextLine:
        if self._error is not None:
            return plain(f" ▲ {self._error.message}", Severity.CRIT)
        if self._page is None:
            return plain(" asking the proxies …", Severity.DIM)
        found = requests.shown_note(self._page)
        return found if found is not None else plain("")

    def _detail(self) -> None:
        by = "" if self._group == "request" else f" by {self._group}"
        panel = self.query_one("#rq-list", Panel)
        old = self.host.now() - self._seen_at
        stale = old > STALE_SECONDS and self._page is not None
        word = f"{age(old)} old" if stale else "faults only" if self._faults_only and not by else "live"
        panel.set_title(f"requests{by} · {word}")
        panel.set_note(self.table.view_note)
        detail = self.query_one("#rq-detail", Panel)
        view = self._chosen
        if view is None:
            detail.set_title("request")
            detail.set_note("")
            self.query_one("#rq-lines", Lines).set_lines([])
            return
        detail.set_title("request")
        detail.set_note("⏎ why  x cancel" if self.host.may_act() and view.state != "ended" else "⏎ why")
        lines = self.query_one("#rq-lines", Lines)
        lines.set_lines(requests.detail_lines(view, max(20, lines.size.width)), stale=stale)

    @property
    def _chosen(self) -> RequestView | None:
        return self._views.get(self.table.cursor_id or "") if self._group == "request" else None

    # --------------------------------------------------------------------------------------------------------- keys

    @property
    def request(self) -> str | None:
        view = self._chosen
        return None if view is None else view.id

    @property
    def selection(self) -> Selection | None:
        """The replica it is on, for the keys that jump there."""
        name = self.table.cursor_id
        if name is None:
            return None
        match self._group:
            case "request":
                view = self._chosen
                if view is None or view.replica is None:
                    return None if view is None or view.model is None else Selection("deployment", view.model)
                return Selection("replica", view.replica)
            case "replica":
                return Selection("replica", name)
            case "model":
                return Selection("deployment", name)
            case _:
                return None

    def copy_text(self) -> str | None:
        return self.request or self.table.cursor_id

    def show_thing(self, selection: Selection) -> None:
        """About one replica or model: only its requests."""
        if selection.kind == "request":
            self._set_group("request")
            self._wanted = selection.name
        elif selection.kind == "replica":
            self._set_group("request")
            found = selection.replicas(self.fleet)
            if found:
                self.set_filter(f"model={found[0].model} replica=r{found[0].id.rpartition('-r')[2]}")
        elif selection.kind == "deployment":
            self._set_group("request")
            self.set_filter(f"model={selection.name}")
        self.refresh_data()

    def on_fleet_table_row_selected(self, event: FleetTable.RowSelected) -> None:
        match self._group:
            case "request":
                view = self._chosen
                if view is not None:
                    self.post_message(Open(Selection("request", view.id)))
            case "replica":
                self.post_message(Jump("engine", Selection("replica", event.row_id)))
            case "model" | "key":
                group = self._group
                self._set_group("request")
                self.set_filter(f"{group}={event.row_id}")
            case _:
                return

    def on_fleet_table_row_highlighted(self) -> None:
        if self.is_attached and self.query("#rq-lines"):
            self._detail()

    def on_fleet_table_view_changed(self) -> None:
        self._detail()

    def action_group(self, by: int) -> None:
        self._set_group(GROUPS[(GROUPS.index(self._group) + by) % len(GROUPS)])

    def _set_group(self, group: str) -> None:
        if group == self._group:
            return
        self._group = group
        self.set_class(group != "request", "-grouped")
        table = self.table
        table.set_filter("")
        table.sort_by(None)
        table.set_rows([])
        table.set_columns(_COLUMNS[group])
        table.empty_text = _EMPTY[group]
        self._show()
        self.post_message(HintsChanged())

    def toggle_faults(self) -> bool:
        if self._group != "request":
            self._set_group("request")
        self._faults_only = not self._faults_only
        self._show()
        return True

    def back(self) -> bool:
        if self._group == "request" or self.table.filter_text:
            return False
        self._set_group("request")
        return True

    def can_filter(self) -> bool:
        return True

    @property
    def filter_text(self) -> str:
        return self.table.filter_text

    def set_filter(self, text: str) -> None:
        self.table.set_filter(text)
        self._detail()

    def hints(self) -> list[KeyHint]:
        following = GROUPS[(GROUPS.index(self._group) + 1) % len(GROUPS)]
        enter = {"request": "why", "replica": "engine", "model": "its requests", "key": "its requests"}.get(self._group)
        return [
            *([KeyHint("⏎", enter, "enter", 0)] if enter is not None else []),
            *(self.acting(KeyHint("x", "cancel", "x", 0)) if self._group == "request" else []),
            KeyHint("b", f"by {following}", "b", 0),
            KeyHint("/", "filter", "slash", 1),
            KeyHint("<", "", "less_than_sign", 2),
            KeyHint(">", "sort", "greater_than_sign", 2),
            KeyHint("z", "faults", "z", 2),
            KeyHint("l", "logs", "l", 1),
            KeyHint("y", "copy id", "y", 3),
            KeyHint("?", "help", "question_mark", 0),
        ]
