"""A stage for widgets: an app with our themes, the screen as plain text, and the messages heard."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from textual.app import App, ComposeResult
from textual.filter import LineFilter
from textual.message import Message
from textual.pilot import Pilot
from textual.widget import Widget

from nebula_tui.themes import DEFAULT, colorless, register_themes

M = TypeVar("M", bound=Message)


class Stage(App[None]):
    """Shows widgets one below the other."""

    def __init__(self, *widgets: Widget, theme: str = DEFAULT) -> None:
        super().__init__()
        self.heard: list[Message] = []
        self._widgets = widgets
        self._first_theme = theme

    def compose(self) -> ComposeResult:
        yield from self._widgets

    def on_mount(self) -> None:
        register_themes(self)
        self.theme = self._first_theme

    def get_line_filters(self) -> Sequence[LineFilter]:
        filters = super().get_line_filters()
        return colorless(filters) if self.no_color else filters

    def lines(self) -> list[str]:
        """The screen as it would be printed."""
        return [strip.text for strip in self.screen._compositor.render_strips()]

    def messages(self, kind: type[M]) -> list[M]:
        """In the order heard; a message that bubbles is heard once."""
        seen: dict[int, M] = {id(m): m for m in self.heard if type(m) is kind}
        return list(seen.values())


class Acting:
    """A stage at work: the app, and a pilot that presses and clicks."""

    def __init__(self, app: Stage, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def settle(self) -> None:
        await self.pilot.pause()

    def lines(self) -> list[str]:
        return self.app.lines()

    def text(self) -> str:
        return "\n".join(self.lines())

    async def until(self, condition: Callable[[], object], seconds: float = 5.0) -> None:
        """Waits for a change, never for a time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"did not come true in {seconds} s; on screen:\n{self.text()}")
            await asyncio.sleep(0.005)
        await self.pilot.pause()


@asynccontextmanager
async def on_stage(*widgets: Widget, size: tuple[int, int] = (80, 24), theme: str = DEFAULT) -> AsyncIterator[Acting]:
    app = Stage(*widgets, theme=theme)
    async with app.run_test(size=size, message_hook=app.heard.append) as pilot:
        await pilot.pause()
        yield Acting(app, pilot)
