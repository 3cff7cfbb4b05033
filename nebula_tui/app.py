"""The TUI process: one app, one watch of the Control API, one base screen. `run(settings)` is its entry.

The app owns the fleet state and the doors; screens get them through `Host`. One worker follows the watch for as long as
the app lives and folds what comes into the fleet; screens look at the fleet when their time has come.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import App
from textual.filter import LineFilter
from textual.worker import Worker

from nebula_core.errors import NebulaError
from nebula_core.records.views import WatchDelta, WatchSnapshot
from nebula_tui.adapters.chat import Chat, ChatClient
from nebula_tui.adapters.control import (
    Alive,
    Connected,
    Control,
    ControlClient,
    Lost,
    NotAllowed,
    Unreachable,
    WatchMessage,
)
from nebula_tui.presenters import chrome
from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.fleet import FleetState
from nebula_tui.presenters.trouble import Trouble, troubles
from nebula_tui.screens.main import MainScreen
from nebula_tui.screens.palette import NebulaCommands
from nebula_tui.settings import TuiSettings
from nebula_tui.themes import choose_theme, colorless, register_themes

#: The watch brings the newest events only.
EVENTS_ASKED = 500
#: OSC 52 is cut by many terminals beyond this; more is refused, not cut.
CLIPBOARD_CHARACTERS = 74_000


class NebulaApp(App[None]):
    """`control`, `chat` and the clocks are given by tests; without them the real ones are used."""

    TITLE = "nebula"
    COMMANDS = {NebulaCommands}  # noqa: RUF012 - Textual's shape
    ENABLE_COMMAND_PALETTE = True
    CSS: ClassVar[str] = """
    Toast { max-width: 70; }
    """

    def __init__(
        self,
        settings: TuiSettings,
        *,
        control: Control | None = None,
        chat: Chat | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        utc_offset_seconds: float | None = None,
        tick_seconds: float = 1.0,
    ) -> None:
        super().__init__()
        self.settings = settings
        self._monotonic, self._wall = monotonic, wall
        if utc_offset_seconds is None:
            utc_offset_seconds = float(time.localtime(wall()).tm_gmtoff)
        self.fleet = FleetState(utc_offset_seconds=utc_offset_seconds)
        self.control: Control = control or ControlClient(
            settings.control_url, settings.api_key, ca_file=settings.ca_file
        )
        self._chat = chat
        self.role: str | None = None
        self._troubles: tuple[tuple[int, float], list[Trouble]] | None = None
        self.base = MainScreen(self, context=settings.context, url=settings.control_url, tick_seconds=tick_seconds)

    # -------------------------------------------------------------------------------------------------------- host

    def now(self) -> float:
        return self._monotonic()

    def wall(self) -> float:
        return self._wall()

    def may_act(self) -> bool:
        return chrome.may_act(self.role)

    def is_paused(self) -> bool:
        return self.base.paused

    def troubles(self) -> list[Trouble]:
        moment = (self.fleet.version, self.now())
        if self._troubles is None or self._troubles[0] != moment:
            self._troubles = (moment, troubles(self.fleet, moment[1]))
        return self._troubles[1]

    async def open_chat(self) -> Chat:
        if self._chat is None:
            base = self.settings.openai_base_url or await self.control.openai_base_url()
            if not base:
                raise Unreachable(
                    "nobody knows the address of the data plane", hint="set `public_url` of the control process"
                )
            self._chat = ChatClient(base, self.settings.api_key)
        return self._chat

    # -------------------------------------------------------------------------------------------------------- life

    def get_line_filters(self) -> Sequence[LineFilter]:
        """NO_COLOR means none: Textual's own filter would leave shades of grey."""
        filters = super().get_line_filters()
        return colorless(filters) if self.no_color else filters

    def on_mount(self) -> None:
        register_themes(self)
        self.theme = choose_theme(self.settings.theme, os.environ)
        self.push_screen(self.base)
        self.run_worker(self._follow(), group="feed", exclusive=True, name="watch")

    async def on_unmount(self) -> None:
        await self.control.aclose()
        if self._chat is not None:
            await self._chat.aclose()

    async def _follow(self) -> None:
        async for message in self.control.watch():
            self.take(message)
            if isinstance(message, WatchSnapshot):
                # Beside the watch: a slow answer to a question must not hold up what is seen.
                _: Worker[None] = self.run_worker(self._introduce, group="introduce", exclusive=True, name="introduce")

    async def _introduce(self) -> None:
        """Asks who we are (until that is known nothing may be changed), and for what happened before."""
        try:
            if self.role is None:
                me = await self.control.whoami()
                self.role = me.role
                self.base.set_role(me.role, me.name)
            self.fleet.add_events(await self.control.events(count=EVENTS_ASKED))
        except NebulaError as error:
            word = "role unknown, actions hidden" if self.role is None else "earlier events are missing"
            self.base.tell(f"{word}: {error}", Severity.WARN)

    def take(self, message: WatchMessage) -> None:
        """Folds one message of the watch in; a change of the link is shown at once, figures with the next tick."""
        now = self.now()
        match message:
            case Connected():
                self.fleet.connected(now)
            case Alive():
                self.fleet.alive(now)
            case Lost(error, retry):
                reason = error.message
                if isinstance(error, NotAllowed):
                    # Another key may be given to the same name meanwhile: ask again who we are.
                    self.role = None
                    self.base.set_role(None, None)
                self.fleet.lost(reason, retry, now)
                self._show_now()
            case WatchSnapshot():
                self.fleet.take_snapshot(message, now)
                self._show_now()
            case WatchDelta():
                self.fleet.take_delta(message, now)

    def _show_now(self) -> None:
        if self.base.is_attached and self.base.is_mounted:
            self.base.tick_chrome()
            self.base.refresh_view()

    def copy_to_clipboard(self, text: str) -> None:
        if len(text) > CLIPBOARD_CHARACTERS:
            self.base.tell(f"{len(text):,} characters are more than terminals take; save with ^S", Severity.WARN)
            return
        super().copy_to_clipboard(text)


def run(settings: TuiSettings) -> int:
    """Runs the TUI until the operator leaves; the exit code of the process."""
    app = NebulaApp(settings)
    app.run(mouse=settings.mouse)
    return app.return_code or 0
