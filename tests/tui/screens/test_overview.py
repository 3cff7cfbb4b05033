"""Screen 1: what it shows at both sizes, and where its keys lead."""

from collections.abc import Callable

import pytest

from nebula_core.records.event import Event
from nebula_core.records.views import WatchDelta, WatchSnapshot
from nebula_tui.screens.overview import OverviewView
from nebula_tui.widgets import FleetTable
from tests.support.fleet import WALL, cluster, small_fleet
from tests.tui.screens.stage import LARGE, SIZES, SMALL, Playing, on_stage, scene

Compare = Callable[..., bool]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fleet", ["big", "small"])
def test_look(snap_compare: Compare, fleet: str, size: tuple[int, int]) -> None:
    app, play = scene(fleet=fleet)
    assert snap_compare(app, terminal_size=size, run_before=play)


@pytest.mark.parametrize("size", [(200, 60), (60, 15), (40, 10)])
def test_other_sizes(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene(fleet="big")
    assert snap_compare(app, terminal_size=size, run_before=play)


async def test_an_empty_cluster_says_what_to_do() -> None:
    async with on_stage(WatchSnapshot(cluster=cluster(leader=None, proxies=()))) as played:
        await played.sees("No deployment yet", "No event yet", "no leader", "none reports")


async def test_enter_on_a_trouble_opens_the_thing() -> None:
    async with on_stage() as played:
        table = played.view(OverviewView).query_one("#ov-trouble-table", FleetTable)
        table.focus()
        row = next(row for row in table.shown_ids if "node-019" in row)
        table.move_to(row)
        await played.press("enter")
        await played.sees("[2 Nodes]")
        assert played.app.base.view.selection is not None
        assert played.app.base.view.selection.name == "node-019"


async def test_simulated_is_said_at_the_top_of_every_screen() -> None:
    async with on_stage(small_fleet(), size=SMALL) as played:
        for digit in "12345678":
            await played.app.base.action_show(
                {
                    "1": "overview",
                    "2": "nodes",
                    "3": "models",
                    "4": "engine",
                    "5": "requests",
                    "6": "logs",
                    "7": "chat",
                    "8": "events",
                }[digit]
            )
            await played.settle()
            assert "SIMULATED" in played.lines()[0]


async def test_figures_age_and_charts_show_the_hole_while_the_link_is_down() -> None:
    async with on_stage(size=LARGE) as played:
        await played.tick()
        before = played.app.fleet.series.read("out")
        assert before[-1] is not None
        await _silence(played, 5.0)
        assert played.app.fleet.series.read("out")[-1] is None


async def _silence(played: Playing, seconds: float) -> None:
    await played.tick(seconds)


async def test_new_events_and_troubles_are_seen_at_once() -> None:
    async with on_stage(small_fleet()) as played:
        many = tuple(
            Event(id=f"8{place}-0", at=WALL + place, kind="test", object="node/x", message=f"event {place}", actor="a")
            for place in range(30)
        )
        played.app.fleet.take_delta(WatchDelta(events=many), played.clock.monotonic)
        await played.tick(0.5)
        await played.sees("event 29")
