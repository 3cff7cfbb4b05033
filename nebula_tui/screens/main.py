"""The one base screen: two lines above, the eight views, one line of keys below; and every key that works everywhere.

Views are made when they are first shown and kept; only the one in sight is refreshed, once a second. Modal dialogs stand
above this screen. Keys act on what the cursor of the view is on (`Selection`), so they mean the same on every screen.
"""

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widgets import ContentSwitcher

from nebula_core.records.views import PlanView
from nebula_core.security.text import clean_text
from nebula_tui.messages import ActOn, Ask, HintsChanged, Jump, Open, Selection, Told
from nebula_tui.presenters import chrome, command, trouble
from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.plan import Action
from nebula_tui.presenters.text import plain
from nebula_tui.screens.chat import ChatView
from nebula_tui.screens.engine import EngineView
from nebula_tui.screens.events import EventsView
from nebula_tui.screens.help import HelpScreen
from nebula_tui.screens.logs import LogsView
from nebula_tui.screens.models import ModelsView
from nebula_tui.screens.nodes import NodesView
from nebula_tui.screens.overview import OverviewView
from nebula_tui.screens.parts import Banner, CommandLine, Lines
from nebula_tui.screens.plan_dialog import PlanDialog, told_of
from nebula_tui.screens.requests import RequestsView
from nebula_tui.screens.view import Host, View
from nebula_tui.screens.why import WhyScreen
from nebula_tui.widgets import HeaderBar, HeaderState, KeyBar, Tab

_VIEWS: dict[str, Callable[[Host], View]] = {
    "overview": OverviewView,
    "nodes": NodesView,
    "models": ModelsView,
    "engine": EngineView,
    "requests": RequestsView,
    "logs": LogsView,
    "chat": ChatView,
    "events": EventsView,
}
_TABS = tuple(Tab(digit, label, short) for digit, _, label, short in chrome.SCREENS)
_DIGIT = {name: digit for digit, name, _, _ in chrome.SCREENS}
#: How long a word stays in the place of the keys.
MESSAGE_SECONDS = 6.0


class MainScreen(Screen[None]):
    DEFAULT_CSS = """
    MainScreen { background: $background; }
    MainScreen ContentSwitcher { height: 1fr; width: 1fr; }
    MainScreen #command-row { height: auto; background: $surface; }
    MainScreen #command-mode { width: 2; height: 1; display: none; }
    MainScreen #command-row.-shown #command-mode { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(digit, f"show('{name}')", label, show=False, id=f"screen.{name}")
            for digit, name, label, _ in chrome.SCREENS
        ),
        Binding("colon", "command", "command", show=False, id="app.command"),
        Binding("slash", "filter", "filter", show=False, id="app.filter"),
        Binding("escape", "back", "back", show=False, id="app.back"),
        Binding("question_mark", "help", "help", show=False, id="app.help"),
        Binding("left_square_bracket", "history(-1)", "earlier screen", show=False, id="app.earlier"),
        Binding("right_square_bracket", "history(1)", "later screen", show=False, id="app.later"),
        Binding("minus", "last", "last screen", show=False, id="app.last"),
        Binding("p", "pause", "pause", show=False, id="app.pause"),
        Binding("y", "copy", "copy", show=False, id="app.copy"),
        Binding("z", "faults", "faults only", show=False, id="app.faults"),
        Binding("f5", "refresh", "refresh", show=False, id="app.refresh"),
        Binding("q", "quit", "quit", show=False, id="app.quit"),
        Binding("l", "jump('logs')", "logs", show=False, id="jump.logs"),
        Binding("t", "jump('chat')", "chat", show=False, id="jump.chat"),
        Binding("e", "jump('events')", "events", show=False, id="jump.events"),
        Binding("n", "jump('nodes')", "its node", show=False, id="jump.node"),
        Binding("m", "jump('models')", "its model", show=False, id="jump.model"),
        Binding("R", "jump('requests')", "its requests", show=False, id="jump.requests"),
        # Letters are text while a question is written; F2 works there as well.
        Binding("W,f2", "why", "why this request", show=False, id="jump.why"),
        Binding("x", "act('cancel')", "cancel the request", show=False, id="act.cancel"),
        Binding("s", "act('scale')", "scale", show=False, id="act.scale"),
        Binding("d", "act('drain')", "drain", show=False, id="act.drain"),
        Binding("c", "act('cordon')", "cordon", show=False, id="act.cordon"),
        Binding("U", "act('uncordon')", "uncordon", show=False, id="act.uncordon"),
        Binding("r", "act('restart')", "restart", show=False, id="act.restart"),
    ]

    def __init__(self, host: Host, *, context: str, url: str, tick_seconds: float = 1.0) -> None:
        super().__init__()
        self.host = host
        self.fleet = host.fleet
        self._context_name, self._url = context, url
        self._tick_seconds = tick_seconds
        self.paused = False
        self._paused_at = 0.0
        self._shown = "overview"
        self._ready = False
        self._visited = ["overview"]
        self._at = 0
        self.role: str | None = None
        self.who: str | None = None
        self._message_until = 0.0

    def compose(self) -> ComposeResult:
        yield HeaderBar()
        yield Banner(id="banner")
        with ContentSwitcher(initial="overview"):
            yield OverviewView(self.host)
        with Horizontal(id="command-row"):
            yield Lines(id="command-mode")
            yield CommandLine(id="command")
        yield KeyBar()

    def on_mount(self) -> None:
        if self._tick_seconds:
            self.set_interval(self._tick_seconds, self.tick)
        self.tick_chrome()
        self.call_after_refresh(self._arrive)

    # --------------------------------------------------------------------------------------------------------- data

    @property
    def view(self) -> View:
        return self.query_one(f"#{self._shown}", View)

    def tick(self) -> None:
        """Once a second: a frame of history, the lines around, and the view in sight."""
        self.fleet.sample(self.host.now())
        for view in self.query(View):
            view.each_second()
        self.tick_chrome()
        self.refresh_view()

    def refresh_view(self) -> None:
        if self._ready and not self.paused and self.is_attached:
            self.view.refresh_data()
            self._hints()  # what can be done with a thing follows its state

    def tick_chrome(self) -> None:
        if not self.is_attached:
            return
        now = self.host.now()
        face = chrome.link_face(self.fleet, now, self._url)
        crit, warn = trouble.counts(self.host.troubles())
        badges: list[tuple[str, Severity]] = []
        if self.fleet.simulated:
            badges.append(("SIMULATED", Severity.INFO))
        if self.paused:
            badges.append((f"‖ PAUSED {now - self._paused_at:.0f}s", Severity.WARN))
        self.query_one(HeaderBar).set_state(
            HeaderState(
                context=self._context_name,
                link=face.severity,
                link_word=face.word,
                data_age=face.data_age,
                role=chrome.role_word(self.role, self.who),
                badges=tuple(badges),
                crit=crit,
                warn=warn,
                clock=chrome.clock(self.host.wall(), self.fleet),
            )
        )
        self.query_one(Banner).set_text(face.banner)
        if self._message_until and now >= self._message_until:
            self._message_until = 0.0
            self.query_one(KeyBar).show_message("")

    def set_role(self, role: str | None, who: str | None) -> None:
        self.role, self.who = role, who
        self.tick_chrome()
        self._hints()

    # -------------------------------------------------------------------------------------------------------- views

    async def show(self, name: str, *, remember: bool = True) -> View:
        """Brings a view into sight, made when it is needed for the first time."""
        switcher = self.query_one(ContentSwitcher)
        if not switcher.query(f"#{name}"):
            # Not add_content: it would wait for a paint between mounting and showing.
            made = _VIEWS[name](self.host)
            made.display = False
            await switcher.mount(made)
        if remember and (self._visited[self._at] != name):
            self._visited = [*self._visited[: self._at + 1], name][-50:]
            self._at = len(self._visited) - 1
        switcher.current = self._shown = name
        self._arrive()
        return self.view

    def _arrive(self) -> None:
        self._ready = True
        view = self.view
        self.query_one(HeaderBar).set_tabs(_TABS, _DIGIT[view.NAME])
        view.refresh_data()
        focus = view.first_focus()
        if focus is not None:
            focus.focus()
        self._hints()

    def _hints(self) -> None:
        if self._ready and self.is_attached:
            self.query_one(KeyBar).set_keys(self.view.hints())

    def on_resize(self) -> None:
        self.call_after_refresh(self.refresh_view)

    def on_hints_changed(self, _: HintsChanged) -> None:
        self._hints()

    def on_descendant_focus(self) -> None:
        self.call_after_refresh(self._hints)

    async def on_open(self, event: Open) -> None:
        await self.open(event.selection)

    async def open(self, selection: Selection) -> None:
        """Shows a thing on the screen it belongs to."""
        match selection.kind:
            case "node":
                view = await self.show("nodes")
            case "deployment" | "replica":
                view = await self.show("models")
            case "cluster":
                view = await self.show("events")
                return
            case "request":
                self.why(selection.name)
                return
            case _:
                return
        view.show_thing(selection)

    async def on_jump(self, event: Jump) -> None:
        view = await self.show(event.screen)
        if event.selection is not None:
            view.show_thing(event.selection)
            self._hints()

    def on_told(self, event: Told) -> None:
        self.tell(event.text, Severity(event.severity))

    def tell(self, text: str, severity: Severity = Severity.INFO) -> None:
        """A short word where the keys are; what went wrong also stands above for longer."""
        self.query_one(KeyBar).show_message(text, severity)
        self._message_until = self.host.now() + MESSAGE_SECONDS
        if severity is Severity.CRIT:
            self.notify(clean_text(text), severity="error", markup=False, timeout=MESSAGE_SECONDS)

    def on_header_bar_tab_clicked(self, event: HeaderBar.TabClicked) -> None:
        self.run_worker(self.action_show(chrome.SCREENS[int(event.key) - 1][1]), group="show")

    def on_key_bar_key_clicked(self, event: KeyBar.KeyClicked) -> None:
        # From the app's own turn: a key sent from here would stop bubbling here, before the bindings are looked up.
        self.app.call_later(self.app.simulate_key, event.press)

    # --------------------------------------------------------------------------------------------- keys: where to be

    async def action_show(self, name: str) -> None:
        await self.show(name)

    async def action_history(self, by: int) -> None:
        at = self._at + by
        if 0 <= at < len(self._visited):
            self._at = at
            await self.show(self._visited[at], remember=False)

    async def action_last(self) -> None:
        if len(self._visited) > 1:
            other = self._visited[self._at - 1] if self._at else self._visited[1]
            await self.show(other)

    def action_back(self) -> None:
        line = self.query_one(CommandLine)
        if line.has_class("-shown"):
            self._close_line()
        elif self.view.back():
            self._hints()
        elif self.view.filter_text:
            self.view.set_filter("")
        elif self._at:
            self.run_worker(self.action_history(-1), group="show")

    def action_help(self) -> None:
        label = next(label for _, name, label, _ in chrome.SCREENS if name == self.view.NAME)
        self.app.push_screen(HelpScreen(label, self.view.hints(), may_act=self.host.may_act()))

    def action_pause(self) -> None:
        self.paused = not self.paused
        self._paused_at = self.host.now()
        self.tick_chrome()
        self.refresh_view()

    def action_refresh(self) -> None:
        self.tick_chrome()
        self.view.refresh_data()

    def action_faults(self) -> None:
        if not self.view.toggle_faults():
            self.tell("this screen has no list of faults; 1 shows what needs attention")

    def action_copy(self) -> None:
        text = self.view.copy_text()
        if text:
            self.app.copy_to_clipboard(text)
            self.tell(f"copied {len(text):,} characters" if len(text) > 40 else f"copied {text}")

    def action_quit(self) -> None:
        self.app.exit()

    # --------------------------------------------------------------------------------------------- keys: what to do

    async def action_jump(self, screen: str) -> None:
        selected = self.view.selection
        if selected is None:
            await self.show(screen)
            return
        if screen == "nodes":
            name = selected.node(self.fleet)
            if name is not None:
                await self.open(Selection("node", name))
        elif screen == "models":
            name = selected.deployment(self.fleet)
            if name is not None:
                await self.open(Selection("deployment", name))
        elif screen in ("logs", "chat") and not selected.replicas(self.fleet):
            self.tell(f"{selected.name} has no replica: no {screen}", Severity.WARN)
        else:
            view = await self.show(screen)
            view.show_thing(selected)
            self._hints()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - Textual's shape
        """A viewer has no keys that change anything."""
        return not (action == "act" and not self.host.may_act())

    def action_why(self) -> None:
        name = self.view.request
        if name is None:
            self.tell("no request here: choose one on 5, ask something on 7, or a line of a log that names one")
        else:
            self.why(name)

    def why(self, request: str) -> None:
        """Opens the pane that explains a request."""

        async def closed(result: Action | str | None) -> None:
            if isinstance(result, Action):
                self.act(result)
            elif result is not None:
                view = await self.show("logs")
                view.show_thing(Selection("replica", result))
                self._hints()

        self.app.push_screen(WhyScreen(self.host, request, ticking=bool(self._tick_seconds)), closed)

    def action_act(self, verb: str) -> None:
        if verb == "cancel":
            name = self.view.request
            action = None if name is None else Action("cancel", "request", name)
        else:
            selected = self.view.selection
            action = self._action(verb, selected) if selected is not None else None
        if action is None:
            self.tell(f"nothing to {verb} here: choose a {_WHAT[verb]}", Severity.WARN)
        else:
            self.act(action)

    def _action(self, verb: str, selected: Selection) -> Action | None:
        fleet = self.fleet
        match verb:
            case "scale":
                name = selected.deployment(fleet)
                return Action("scale", "deployment", name) if name else None
            case "drain" if selected.kind == "replica":
                return Action("drain", "replica", selected.name)
            case "drain" | "cordon" | "uncordon":
                name = selected.node(fleet)
                return Action(verb, "node", name) if name else None
            case "restart" if selected.kind in ("replica", "deployment"):
                return Action("restart", selected.kind, selected.name)
            case _:
                return None

    def on_act_on(self, event: ActOn) -> None:
        self.act(event.action)

    def act(self, action: Action) -> None:
        """Asks the server for its plan, shows it, and lets the operator decide."""
        if not self.host.may_act():
            self.tell(
                f"{action.verb} needs the role operator; this key is {self.role or 'not known yet'}", Severity.CRIT
            )
            return
        if not self.fleet.is_live(self.host.now()):
            self.tell("actions are locked while not connected: what is shown is old", Severity.WARN)
            return
        dialog = PlanDialog(self.host, action)

        def done(result: PlanView | None) -> None:
            if result is not None:
                self.on_told(told_of(dialog.action, result))

        self.app.push_screen(dialog, done)

    # ----------------------------------------------------------------------------------------------- the command line

    def _ask_line(self, mode: str, text: str = "") -> None:
        self.query_one("#command-row").add_class("-shown")
        self.query_one("#command-mode", Lines).set_lines([plain(f" {mode}", Severity.ACCENT)])
        self.query_one(CommandLine).ask(mode, text)

    def action_command(self) -> None:
        self._ask_line(":")

    def action_filter(self) -> None:
        if self.view.can_filter():
            self._ask_line("/", self.view.filter_text)
        else:
            self.tell("nothing to filter here; tables on 2, 3, 5, 6 and 8 are")

    def on_ask(self, event: Ask) -> None:
        self._ask_line(event.mode)

    def _close_line(self) -> None:
        self.query_one(CommandLine).close()
        self.query_one("#command-row").remove_class("-shown")
        focus = self.view.first_focus()
        if focus is not None:
            focus.focus()
        self._hints()

    def on_command_line_left(self, event: CommandLine.Left) -> None:
        if event.mode == "/":
            self.view.set_filter("")
        self._close_line()

    def on_command_line_typed(self, event: CommandLine.Typed) -> None:
        if event.mode == "/":
            self.view.set_filter(event.text)

    def on_command_line_entered(self, event: CommandLine.Entered) -> None:
        self._close_line()
        if event.mode == ":":
            self.run_command(event.text)
        elif event.mode in ("&", "-") and isinstance(self.view, LogsView):
            self.view.narrow(event.mode, event.text)

    def on_command_line_completion_asked(self, event: CommandLine.CompletionAsked) -> None:
        line = self.query_one(CommandLine)
        if line.mode == ":":
            found = command.complete(
                event.text, nodes=self.fleet.nodes, deployments=self.fleet.deployments, replicas=self.fleet.replicas
            )
            if found is not None:
                line.value = found
                line.cursor_position = len(found)

    def run_command(self, text: str) -> None:
        self.run_worker(self._run(text), group="command", exit_on_error=True)

    async def _run(self, text: str) -> None:
        if not text.strip():
            return
        fleet = self.fleet
        meant = command.parse(text, nodes=fleet.nodes, deployments=fleet.deployments, replicas=fleet.replicas)
        match meant:
            case command.Show():
                await self._show_command(meant)
            case command.Act():
                self.act(meant.action)
            case command.Why():
                self.why(meant.request)
            case command.SetTheme():
                if meant.name in self.app.available_themes:
                    self.app.theme = meant.name
                else:
                    known = ", ".join(
                        sorted(name for name in self.app.available_themes if "nebula" in name or name == "cb-safe")
                    )
                    self.tell(f"no theme {meant.name!r}; known: {known}, and others in ^P", Severity.WARN)
            case command.Help():
                self.action_help()
            case command.Quit():
                self.app.exit()
            case command.Unknown():
                self.tell(meant.message, Severity.WARN)

    async def _show_command(self, meant: command.Show) -> None:
        fleet = self.fleet
        selected: Selection | None = None
        if meant.name is not None:
            if meant.name in fleet.nodes:
                selected = Selection("node", meant.name)
            elif meant.name in fleet.deployments:
                selected = Selection("deployment", meant.name)
            elif meant.name in fleet.replicas:
                selected = Selection("replica", meant.name)
            else:
                self.tell(f"no node, model or replica {meant.name!r}", Severity.WARN)
                return
        view = await self.show(meant.screen)
        if selected is not None:
            view.show_thing(selected)
        if meant.filter is not None and view.can_filter():
            view.set_filter(meant.filter)
        self._hints()


_WHAT = {
    "cancel": "request on 5",
    "scale": "model",
    "drain": "node or replica",
    "cordon": "node",
    "uncordon": "node",
    "restart": "model or replica",
}
