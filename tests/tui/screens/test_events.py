"""Screen 8: the feed, its filter, and jumping to what an event is about."""

from collections.abc import Callable

import pytest

from nebula_core.records.event import Event
from nebula_core.records.views import WatchDelta
from nebula_tui.screens.events import EventsView
from tests.support.fleet import WALL
from tests.tui.screens.stage import SIZES, on_stage, scene

Compare = Callable[..., bool]


def event(number: int, **more: str) -> Event:
    return Event.model_validate(
        {
            "id": f"9{number}-0",
            "at": WALL + number,
            "kind": "scale",
            "object": "deployment/qwen3-32b",
            "message": f"event {number}",
            "actor": "li",
            **more,
        }
    )


@pytest.mark.parametrize("size", SIZES)
def test_look(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("8", "down", "down", "down")
    assert snap_compare(app, terminal_size=size, run_before=play)


async def test_new_events_come_on_top_and_the_cursor_follows_until_one_reads() -> None:
    async with on_stage() as played:
        await played.press("8")
        table = played.view(EventsView).table
        await played.until(lambda: table.shown_count == 12)
        played.app.fleet.take_delta(WatchDelta(events=(event(1),)), played.clock.monotonic)
        await played.tick()
        assert table.cursor_id == "91-0"
        await played.press("down")
        reading = table.cursor_id
        played.app.fleet.take_delta(WatchDelta(events=(event(2),)), played.clock.monotonic)
        await played.tick()
        assert table.cursor_id == reading
        await played.press("f", "f")
        assert table.cursor_id == "92-0"


async def test_enter_opens_what_it_is_about() -> None:
    async with on_stage() as played:
        await played.press("8", "down", "enter")
        await played.sees("[3 Models]")
        assert played.app.base.view.selection is not None
        assert played.app.base.view.selection.name == "glm-4.6"


async def test_e_shows_the_events_of_a_thing_and_of_its_replicas() -> None:
    async with on_stage() as played:
        await played.press("3", "down", "down", "down", "e")
        shown = played.view(EventsView).table.shown_ids
        objects = {one.object for one in played.app.fleet.events if one.id in shown}
        assert objects == {"replica/deepseek-v3.2-r2", "deployment/deepseek-v3.2"}


async def test_warnings_only_and_copy() -> None:
    async with on_stage() as played:
        await played.press("8", "z")
        await played.sees("warnings only")
        assert "ready" not in played.text().split("\n")[5]
        await played.press("y")
        assert '"kind":"denied"' in played.app.clipboard
