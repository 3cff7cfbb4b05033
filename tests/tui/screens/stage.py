"""The app on a stage: a fake control, a fake data plane, a clock that stands still until a test moves it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from textual.pilot import Pilot

from nebula_core.records.views import WatchDelta, WatchSnapshot
from nebula_tui.app import NebulaApp
from nebula_tui.screens.view import View
from nebula_tui.settings import TuiSettings
from tests.support.fleet import WALL, FakeChat, FakeControl, big_fleet, small_fleet, wavered
from tests.tui.settling import Counted, settled

LARGE, SMALL = (120, 40), (80, 24)
SIZES = (LARGE, SMALL)
SECONDS_OF_HISTORY = 90
V = TypeVar("V", bound=View)


class StillClock:
    """Monotonic and wall time, moved together by hand."""

    def __init__(self) -> None:
        self.monotonic, self.wall = 1000.0, WALL

    def go(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds


class StagedApp(Counted, NebulaApp):
    """The app, and word of when it has nothing left to do."""


@lru_cache(maxsize=1)
def big() -> WatchSnapshot:
    return big_fleet()


@lru_cache(maxsize=1)
def small() -> WatchSnapshot:
    return small_fleet()


@lru_cache(maxsize=4)
def _deltas(snapshot: str) -> tuple[WatchDelta, ...]:
    base = big() if snapshot == "big" else small()
    return tuple(wavered(base, tick) for tick in range(SECONDS_OF_HISTORY))


@dataclass
class Playing:
    """The app at work."""

    app: NebulaApp
    pilot: Pilot[None]
    control: FakeControl
    chat: FakeChat
    clock: StillClock

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
            await self.settle()

    async def spell(self, text: str) -> None:
        """Letter by letter, as a person would."""
        names = {
            "-": "minus",
            "=": "equals_sign",
            ">": "greater_than_sign",
            " ": "space",
            "/": "slash",
            ".": "full_stop",
        }
        await self.press(*(names.get(letter, letter) for letter in text))

    def lines(self) -> list[str]:
        return [strip.text for strip in self.app.screen._compositor.render_strips()]

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

    async def sees(self, *words: str) -> None:
        """Waits until all words stand on the screen."""
        await self.until(lambda: all(word in self.text() for word in words))

    def view(self, kind: type[V]) -> V:
        return self.app.base.query_one(kind)

    async def tick(self, seconds: float = 1.0) -> None:
        self.clock.go(seconds)
        self.app.base.tick()
        await self.settle()

    async def settle(self) -> None:
        await settled(self.pilot)


async def live(played: Playing, history: str | None) -> None:
    """The watch is open and, where asked for, a minute and a half has gone by."""
    await played.until(lambda: played.app.base._ready and played.app.role is not None)
    for delta in _deltas(history) if history else ():
        played.clock.go(1.0)
        played.app.fleet.take_delta(delta, played.clock.monotonic - 0.4)
        played.app.fleet.sample(played.clock.monotonic)
    played.app.base.tick_chrome()
    played.app.base.refresh_view()
    await played.settle()


def make(
    snapshot: WatchSnapshot | None = None,
    *,
    role: str = "admin",
    context: str = "prod-sh",
    pieces: Sequence[str] | None = None,
) -> tuple[NebulaApp, FakeControl, FakeChat, StillClock]:
    clock = StillClock()
    control = FakeControl(snapshot or big(), role=role)
    chat = (
        FakeChat(tick=lambda: clock.go(0.05))
        if pieces is None
        else FakeChat(pieces=pieces, tick=lambda: clock.go(0.05))
    )
    app = StagedApp(
        TuiSettings("http://127.0.0.1:8082", "nbl_x_y", context=context),
        control=control,
        chat=chat,
        monotonic=lambda: clock.monotonic,
        wall=lambda: clock.wall,
        utc_offset_seconds=0,
        tick_seconds=0,
    )
    return app, control, chat, clock


@asynccontextmanager
async def on_stage(
    snapshot: WatchSnapshot | None = None,
    *,
    size: tuple[int, int] = LARGE,
    role: str = "admin",
    pieces: Sequence[str] | None = None,
) -> AsyncIterator[Playing]:
    app, control, chat, clock = make(snapshot, role=role, pieces=pieces)
    async with app.run_test(size=size) as pilot:
        played = Playing(app, pilot, control, chat, clock)
        await live(played, None)
        yield played


def scene(
    *steps: str | Callable[[Playing], Awaitable[None]],
    fleet: str = "big",
    role: str = "admin",
    pieces: Sequence[str] | None = None,
    before: Callable[[FakeControl], None] | None = None,
) -> tuple[NebulaApp, Callable[[Pilot[None]], Awaitable[None]]]:
    """An app and what happens before its picture is taken."""
    snapshot = big() if fleet == "big" else small()
    app, control, chat, clock = make(
        snapshot, role=role, context="prod-sh" if fleet == "big" else "local", pieces=pieces
    )
    if before is not None:
        before(control)

    async def play(pilot: Pilot[None]) -> None:
        played = Playing(app, pilot, control, chat, clock)
        await live(played, fleet)
        for step in steps:
            if isinstance(step, str):
                await played.press(step)
            else:
                await step(played)
        app.base.tick_chrome()
        if app.screen is app.base:
            app.base.refresh_view()
        await played.settle()

    return app, play
