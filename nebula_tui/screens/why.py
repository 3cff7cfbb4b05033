"""The pane that says why a request went where it went: opened from the list of requests, the chat and a line of a log.

An open request is asked for again every second, so its times grow; one that has ended stays as it is.
"""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from nebula_core.errors import NebulaError
from nebula_core.records.decision import DecisionRecord
from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.plan import Action
from nebula_tui.presenters.text import BLANK, TextLine, plain
from nebula_tui.presenters.why import why_lines
from nebula_tui.screens.parts import Lines
from nebula_tui.screens.view import Host
from nebula_tui.widgets import Panel

AGAIN_SECONDS = 1.0
#: A record is written a moment after its request has ended: asked for so often before it counts as missing.
TRIES = 3


class WhyScreen(ModalScreen[Action | str | None]):
    """Ends with an action to plan, with the replica whose engine shall be shown, or with None."""

    DEFAULT_CSS = """
    WhyScreen { align: center middle; background: $background 25%; }
    WhyScreen Panel { width: 100%; height: 100%; background: $surface; }
    WhyScreen VerticalScroll {
        background: $surface; scrollbar-size-vertical: 1; scrollbar-background: $surface;
        scrollbar-color: $foreground 25%;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,W,f2", "leave", "leave", show=False, id="why.leave"),
        Binding("x", "cancel", "cancel", show=False, id="why.cancel"),
        Binding("y", "copy", "copy", show=False, id="why.copy"),
        Binding("l", "logs", "logs", show=False, id="why.logs"),
        Binding("j", "scroll(1)", "down", show=False, id="why.down"),
        Binding("k", "scroll(-1)", "up", show=False, id="why.up"),
    ]

    def __init__(self, host: Host, request: str, *, ticking: bool = True) -> None:
        super().__init__()
        self.host = host
        self.request = request
        self.record: DecisionRecord | None = None
        self.error: NebulaError | None = None
        self._ticking = ticking
        self._tries = 0

    def compose(self) -> ComposeResult:
        with Panel(id="why", title=f"why {self.request}"), VerticalScroll(id="why-scroll"):
            yield Lines(id="why-lines")

    def on_mount(self) -> None:
        self.query_one("#why", Panel).add_class("-focused")
        self.query_one("#why-scroll").focus()
        self._show()
        self._ask()
        if self._ticking:
            self.set_interval(AGAIN_SECONDS, self.tick)

    def on_resize(self) -> None:
        self.call_after_refresh(self._show)

    def tick(self) -> None:
        """Once a second: again, while it may still change."""
        missing = self.record is None and self._tries < TRIES
        if missing or (self.record is not None and self.record.status is None):
            self._ask()

    def _ask(self) -> None:
        if not any(worker.group == "why" and worker.is_running for worker in self.workers):
            self.run_worker(self._look(), group="why", exit_on_error=False)

    async def _look(self) -> None:
        self._tries += 1
        try:
            self.record, self.error = await self.host.control.request(self.request), None
        except NebulaError as error:
            self.error = error
        self._show()

    def _show(self) -> None:
        if not self.is_mounted:
            return
        lines = self.query_one("#why-lines", Lines)
        # The scroll bar takes a cell.
        keys = "j k scroll  l logs  y copy  esc close"
        if self.host.may_act() and self.record is not None and self.record.status is None:
            keys = f"x cancel  {keys}"
        self.query_one("#why", Panel).set_note(keys if self.size.width >= 100 else keys.removeprefix("j k scroll  "))
        width = max(40, self.query_one("#why-scroll").size.width - 1)
        lines.set_height(self._lines(width))

    def _lines(self, width: int) -> list[TextLine]:
        said: list[TextLine] = []
        if self.error is not None:
            said.append(plain(f"▲ {self.error.message}", Severity.CRIT))
            if self.error.hint:
                said.append(plain(f"  {self.error.hint}", Severity.DIM))
            said.append(BLANK)
        if self.record is not None:
            return [*said, *why_lines(self.record, width, self.host.fleet.utc_offset_seconds)]
        return said or [plain("asking the proxies …", Severity.DIM)]

    # --------------------------------------------------------------------------------------------------------- keys

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_cancel(self) -> None:
        if self.host.may_act() and (self.record is None or self.record.status is None):
            self.dismiss(Action("cancel", "request", self.request))

    def action_logs(self) -> None:
        if self.record is not None and self.record.replica is not None:
            self.dismiss(self.record.replica)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.request)

    def action_scroll(self, by: int) -> None:
        self.query_one("#why-scroll").scroll_relative(y=by, animate=False)
