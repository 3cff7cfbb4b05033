"""Screen 2: nodes and GPUs, filtering, sorting, the large view, cordon and drain."""

from collections.abc import Callable

import pytest

from nebula_core.records.views import WatchDelta
from nebula_tui.screens.nodes import NodesView
from nebula_tui.screens.plan_dialog import PlanDialog
from tests.support.fleet import small_fleet
from tests.tui.screens.stage import SIZES, Playing, on_stage, scene

Compare = Callable[..., bool]


async def planned(played: Playing) -> None:
    await played.until(lambda: isinstance(played.app.screen, PlanDialog) and played.app.screen.plan is not None)


@pytest.mark.parametrize("size", SIZES)
def test_look(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("2", "down", "down")
    assert snap_compare(app, terminal_size=size, run_before=play)


@pytest.mark.parametrize("size", SIZES)
def test_the_small_cluster(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("2", fleet="small")
    assert snap_compare(app, terminal_size=size, run_before=play)


@pytest.mark.parametrize("size", SIZES)
def test_one_node_large(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("2", "enter")
    assert snap_compare(app, terminal_size=size, run_before=play)


@pytest.mark.parametrize("size", SIZES)
def test_drain_dialog(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("2", "down", "down", "down", "down", "down", "d", planned)
    assert snap_compare(app, terminal_size=size, run_before=play)


async def test_drain_in_three_keys_shows_the_plan_first() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("2", "d")
        await planned(played)
        assert played.control.calls == [("drain", "node/sim-a", None, True)]
        await played.sees("demo/r1", "5 open requests affected")
        await played.press("enter")
        await played.until(lambda: ("drain", "node/sim-a", None, False) in played.control.calls)
        await played.sees("drain sim-a: moves 1 off sim-a")


async def test_cordon_and_uncordon() -> None:
    async with on_stage() as played:
        await played.press("2", "c")
        await planned(played)
        await played.press("enter")
        await played.until(lambda: ("cordon", "node-000", None, False) in played.control.calls)
        played.view(NodesView).table.move_to("node-028")
        # The answer stands where the keys are for a moment.
        await played.tick(7.0)
        played.app.fleet.alive(played.clock.monotonic)
        await played.sees("U uncordon")
        await played.press("U")
        await planned(played)
        assert played.control.calls[-1] == ("uncordon", "node-028", None, True)


async def test_the_keys_follow_what_becomes_of_a_node() -> None:
    async with on_stage() as played:
        await played.press("2")
        await played.sees("c cordon")
        node = played.app.fleet.nodes[played.view(NodesView).table.cursor_id or ""]
        closed = WatchDelta(nodes=(node.model_copy(update={"cordoned": True}),))
        played.app.fleet.take_delta(closed, played.clock.monotonic)
        await played.tick()
        await played.sees("U uncordon")


async def test_filter_by_a_column_and_clear_it_with_escape() -> None:
    async with on_stage() as played:
        await played.press("2", "slash")
        await played.spell("state=▲lost".replace("▲", ""))
        assert "/state=lost" in played.text()
        await played.press("escape")
        assert played.view(NodesView).filter_text == ""
        await played.press("slash")
        await played.spell("node-01")
        await played.press("enter")
        assert played.view(NodesView).table.shown_count == 10
        await played.press("escape")
        assert played.view(NodesView).table.shown_count == 60


async def test_faults_only() -> None:
    async with on_stage() as played:
        await played.press("2", "z")
        shown = set(played.view(NodesView).table.shown_ids)
        assert {"node-007", "node-019", "node-023", "node-028", "node-031"} <= shown
        assert "node-000" not in shown
        await played.sees("faults only")


async def test_the_large_view_and_back() -> None:
    async with on_stage() as played:
        await played.press("2", "enter")
        await played.sees("esc: back to all", "gpu7")
        await played.press("escape")
        await played.sees("nodes 60")
        await played.press("escape")
        await played.sees("[1 Overview]")
