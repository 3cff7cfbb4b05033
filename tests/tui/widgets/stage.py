"""A stage for widgets: an app with our themes, the screen as plain text, and the messages heard."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from textual.app import ComposeResult
from textual.filter import LineFilter
from textual.message import Message
from textual.pilot import Pilot
from textual.widget import Widget

from nebula_tui.themes import DEFAULT, colorless, register_themes
from tests.tui.settling import Counted, settled

M = TypeVar("M", bound=Message)


class Stage(Counted):
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

    def _count(self, message: Message) -> None:
        super()._count(message)
        self.heard.append(message)

    def messages(self, kind: type[M]) -> list[M]:
        """In the order heard; a message that bubbles is heard once."""
        seen: dict[int, M] = {id(m): m for m in self.heard if type(m) is kind}
        return list(seen.values())


class Acting:
    """A stage at work: the app, and a pilot that presses and clicks."""

    def __init__(self, app: Stage, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
            await self.settle()

    async def resize(self, width: int, height: int) -> None:
        await self.pilot.resize_terminal(width, height)
        # Textual tells the screen by a timer of its own.
        await self.until(lambda: self.app.screen._compositor.size == (width, height))

    async def settle(self) -> None:
        await settled(self.pilot)

    def lines(self) -> list[str]:
        return self.app.lines()

    def text(self) -> str:
        return "\n".join(self.lines())

    async def until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Waits for a change, never for a time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"did not come true in {seconds} s; on screen:\n{self.text()}")
            await asyncio.sleep(0.005)
        await self.settle()


@asynccontextmanager
async def on_stage(*widgets: Widget, size: tuple[int, int] = (80, 24), theme: str = DEFAULT) -> AsyncIterator[Acting]:
    app = Stage(*widgets, theme=theme)
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        yield Acting(app, pilot)
