"""The dialog that asks before anything is done: shows the server's plan, live, and applies it.

The plan is asked again, a moment after the last key, whenever the number changes; an older answer is thrown away. Where
the plan says that much would go (the last ready replica, or more than one), the name must be typed. What was asked of
the server is always what the plan on the screen was computed for: ⏎ does nothing while a newer plan is on its way.
"""

import asyncio
from functools import partial
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.worker import Worker

from nebula_core.errors import NebulaError
from nebula_core.records.views import PlanView
from nebula_tui.messages import Told
from nebula_tui.presenters import plan as plans
from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.plan import Action
from nebula_tui.presenters.text import BLANK, TextLine, labelled
from nebula_tui.screens.parts import Lines
from nebula_tui.screens.view import Host
from nebula_tui.widgets import Panel

DEBOUNCE_SECONDS = 0.12
MOST_REPLICAS = 10_000


class PlanDialog(ModalScreen[PlanView | None]):
    """Ends with the plan that was applied, or None."""

    DEFAULT_CSS = """
    PlanDialog { align: left bottom; background: $background 25%; }
    PlanDialog Panel {
        width: 60; max-width: 100%; height: auto; min-height: 14; max-height: 100%;
        background: $surface; margin-bottom: 1;
    }
    PlanDialog Lines { height: auto; min-height: 4; }
    PlanDialog.-compact Panel { min-height: 8; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "leave", show=False),
        Binding("enter", "apply", "apply", show=False),
        Binding("left", "adjust(-1)", "fewer", show=False),
        Binding("right", "adjust(1)", "more", show=False),
        Binding("ctrl+o", "command", "as a command", show=False),
    ]

    def __init__(self, host: Host, action: Action) -> None:
        super().__init__()
        self.host = host
        self.fleet = host.fleet
        self.action = action
        self.plan: PlanView | None = None
        self.error: NebulaError | None = None
        self.typed = ""
        self.applying = False
        self._command_shown = False
        if action.verb == "scale" and action.replicas is None:
            known = self.fleet.deployments.get(action.name)
            self.action = Action("scale", "deployment", action.name, known.replicas_wanted if known else 1)

    def compose(self) -> ComposeResult:
        with Panel(id="plan"):
            yield Lines(id="plan-lines")

    def on_mount(self) -> None:
        self.set_class(self.app.size.height < 34, "-compact")
        # Nothing inside takes the focus, but the dialog as a whole has it.
        self.query_one("#plan", Panel).add_class("-focused")
        self._ask(0.0)

    # --------------------------------------------------------------------------------------------------- the server

    def _ask(self, after: float) -> None:
        self.plan = None
        self.error = None
        self.typed = ""
        self._show()
        # Not the coroutine itself: of two keys in one turn, the first one's worker ends before it has begun.
        _: Worker[None] = self.run_worker(partial(self._plan, after), group="plan", exclusive=True, exit_on_error=False)

    async def _plan(self, after: float) -> None:
        if after:
            await asyncio.sleep(after)
        try:
            self.plan = await self._call(self.action, dry_run=True)
        except NebulaError as error:
            self.error = error
        self._show()

    async def _call(self, action: Action, *, dry_run: bool) -> PlanView:
        control = self.host.control
        match action.verb:
            case "scale":
                return await control.scale(action.name, action.replicas or 0, dry_run=dry_run)
            case "drain":
                return await control.drain(action.kind, action.name, dry_run=dry_run)
            case "restart":
                return await control.restart(action.kind, action.name, dry_run=dry_run)
            case "cancel":
                return await control.cancel(action.name, dry_run=dry_run)
            case "cordon":
                return await control.cordon(action.name, dry_run=dry_run)
            case "uncordon":
                return await control.uncordon(action.name, dry_run=dry_run)
            case _:
                raise NebulaError(f"no such action: {action.verb}", hint="see ? for the keys")

    # --------------------------------------------------------------------------------------------------------- keys

    @property
    def needs_name(self) -> bool:
        return self.plan is not None and plans.asks_name(self.plan, self.action)

    def action_adjust(self, by: int) -> None:
        if self.action.verb != "scale" or self.applying:
            return
        wanted = max(0, min((self.action.replicas or 0) + by, MOST_REPLICAS))
        if wanted != self.action.replicas:
            self.action = Action("scale", "deployment", self.action.name, wanted)
            self._ask(DEBOUNCE_SECONDS)

    def action_apply(self) -> None:
        if self.plan is None or self.applying:
            return
        if self.needs_name and self.typed != self.action.name:
            self._show()
            return
        if not self.host.fleet.is_live(self.host.now()):
            self.error = NebulaError("not connected: nothing was changed", hint="wait until the link is back")
            self._show()
            return
        self.applying = True
        self._show()
        self.run_worker(self._apply(), group="apply", exclusive=True, exit_on_error=False)

    async def _apply(self) -> None:
        try:
            done = await self._call(self.action, dry_run=False)
        except NebulaError as error:
            self.error = error
            self.applying = False
            self._show()
            return
        self.dismiss(done)

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_command(self) -> None:
        self._command_shown = True
        self.app.copy_to_clipboard(self.action.command)
        self._show()

    def on_key(self, event: events.Key) -> None:
        """Letters spell the name where it is asked for; else they are keys."""
        if self.needs_name and not self.applying:
            if event.key == "backspace":
                self.typed = self.typed[:-1]
            elif event.is_printable and event.character is not None and len(self.typed) < 80:
                self.typed += event.character
            else:
                return
            event.stop()
            self._show()
        elif event.character == "o":
            event.stop()
            self.action_command()
        elif event.character in ("+", "-"):
            event.stop()
            self.action_adjust(1 if event.character == "+" else -1)
        elif event.character == "q":
            event.stop()
            self.action_leave()

    # -------------------------------------------------------------------------------------------------------- shown

    def _show(self) -> None:
        if not self.is_mounted:
            return
        panel = self.query_one("#plan", Panel)
        panel.set_title(f"{self.action.title} · plan (dry run)")
        revision = f"revision {self.plan.plan.revision}" if self.plan is not None and self.plan.plan.revision else ""
        panel.set_note(revision)
        self.query_one("#plan-lines", Lines).set_height(self._lines())

    def _lines(self) -> list[TextLine]:
        lines: list[TextLine] = []
        if self.action.verb == "scale":
            known = self.fleet.deployments.get(self.action.name)
            before = str(known.replicas_wanted) if known is not None else "–"
            lines.append(
                labelled(
                    "replicas",
                    (f"  {before}  →  ", Severity.NORMAL),
                    (f"[ {self.action.replicas} ]", Severity.ACCENT),
                    ("     ← → adjust", Severity.DIM),
                    width=8,
                )
            )
            lines.append(BLANK)
        if self.error is not None:
            lines.append(labelled("refused", (f"▲ {self.error.message}", Severity.CRIT), width=8))
            if self.error.hint:
                lines.append(labelled("next", (self.error.hint, Severity.NORMAL), width=8))
        elif self.plan is None:
            lines.append(labelled("plan", ("asking the server …", Severity.DIM), width=8))
        else:
            lines.extend(plans.plan_lines(self.fleet, self.plan))
        lines.append(BLANK)
        if self._command_shown:
            lines.append(labelled("shell", (self.action.command, Severity.ACCENT), width=8))
        lines.append(self._prompt_line())
        return lines

    def _prompt_line(self) -> TextLine:
        if self.applying:
            return ((("applying …", Severity.INFO)),)
        if self.plan is None:
            return (("esc", Severity.ACCENT), (" cancel", Severity.DIM))
        if self.needs_name:
            right = self.typed == self.action.name
            return (
                ("type ", Severity.NORMAL),
                (self.action.name, Severity.WARN),
                ("  ", Severity.NORMAL),
                (f"{self.typed}▏", Severity.OK if right else Severity.NORMAL),
                ("  then ", Severity.DIM),
                ("⏎", Severity.ACCENT if right else Severity.DIM),
                ("   esc", Severity.ACCENT),
                (" cancel", Severity.DIM),
                ("   ^O", Severity.ACCENT),
                (" command", Severity.DIM),
            )
        return (
            ("⏎", Severity.ACCENT),
            (" apply   ", Severity.NORMAL),
            ("esc", Severity.ACCENT),
            (" cancel   ", Severity.DIM),
            ("o", Severity.ACCENT),
            (" as a command", Severity.DIM),
        )


def told_of(action: Action, done: PlanView) -> Told:
    """What the operator reads when it was done."""
    return Told(f"{action.title}: {done.summary or 'done'}", "ok")
