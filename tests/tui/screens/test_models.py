"""Screen 3: the tree, and the dialog that scales: the server's plan, adjusted, named, applied."""

import asyncio
from collections.abc import Callable

import pytest

from nebula_core.errors import Conflict
from nebula_tui.screens.models import ModelsView
from nebula_tui.screens.plan_dialog import PlanDialog
from tests.support.fleet import small_fleet
from tests.tui.screens.stage import LARGE, SIZES, Playing, on_stage, scene

Compare = Callable[..., bool]


async def planned(played: Playing) -> None:
    await played.until(lambda: isinstance(played.app.screen, PlanDialog) and played.app.screen.plan is not None)


async def spelled(played: Playing) -> None:
    await played.spell("de")


@pytest.mark.parametrize("size", SIZES)
def test_look(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("3", "down", "down", "down", "down", "down")
    assert snap_compare(app, terminal_size=size, run_before=play)


def test_a_model_chosen(snap_compare: Compare) -> None:
    app, play = scene("3", "down", "down", "down")
    assert snap_compare(app, terminal_size=LARGE, run_before=play)


@pytest.mark.parametrize("size", SIZES)
def test_scale_dialog(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("3", "s", planned, "right", planned, fleet="small")
    assert snap_compare(app, terminal_size=size, run_before=play)


def test_scale_dialog_of_a_model_that_has_to_come_first(snap_compare: Compare) -> None:
    app, play = scene("3", "down", "down", "down", "s", planned, "right", planned)
    assert snap_compare(app, terminal_size=LARGE, run_before=play)


@pytest.mark.parametrize("size", SIZES)
def test_scale_to_nothing_asks_for_the_name(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("3", "s", planned, "left", planned, "left", planned, spelled, fleet="small")
    assert snap_compare(app, terminal_size=size, run_before=play)


async def test_scale_two_to_three_in_three_keys() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("s", "right")
        await planned(played)
        await played.sees("[ 3 ]", "demo/r3", "sim-b · gpu 1", "ready in about 1.4s")
        assert ("scale", "demo", 3, True) in played.control.calls
        await played.press("enter")
        await played.until(lambda: ("scale", "demo", 3, False) in played.control.calls)
        await played.until(lambda: not isinstance(played.app.screen, PlanDialog))
        await played.sees("scale demo:")


async def test_a_burst_of_keys_asks_once_and_the_last_number_wins() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("3", "s")
        await planned(played)
        dialog = played.app.screen
        assert isinstance(dialog, PlanDialog)
        for _ in range(4):
            dialog.action_adjust(1)  # in one turn: no pause of the machine stands between them
        await planned(played)
        assert [call[2] for call in played.control.calls if call[0] == "scale"] == [2, 6]


async def test_nothing_is_applied_before_the_plan_is_there() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("3", "s")
        await planned(played)
        played.control.gate = asyncio.Event()
        await played.press("right", "enter")
        played.control.gate.set()
        await planned(played)
        assert all(call[3] for call in played.control.calls if call[0] == "scale")


async def test_the_last_ready_replica_goes_only_by_its_name() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("3", "s", "left", "left")
        await planned(played)
        await played.sees("type demo", "no answer then")
        await played.press("enter")
        await played.spell("demi")
        await played.press("enter")
        assert all(call[3] for call in played.control.calls if call[0] == "scale")
        await played.press("backspace")
        await played.spell("o")
        await played.press("enter")
        await played.until(lambda: ("scale", "demo", 0, False) in played.control.calls)


async def test_a_refusal_shows_its_next_step() -> None:
    async with on_stage(small_fleet()) as played:
        played.control.error = Conflict("somebody changed demo meanwhile", hint="look at it again")
        await played.press("3", "s")
        await played.sees("somebody changed demo meanwhile", "look at it again")
        await played.press("escape")
        assert not isinstance(played.app.screen, PlanDialog)


async def test_o_gives_the_command() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("3", "s", "right")
        await planned(played)
        await played.press("o")
        await played.sees("nebula scale demo 3")
        assert played.app.clipboard == "nebula scale demo 3"


async def test_a_replica_is_drained_and_restarted_from_its_row() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("3", "down", "d")
        await planned(played)
        assert played.control.calls[-1] == ("drain", "replica/demo-r1", None, True)
        await played.press("escape", "r")
        await planned(played)
        assert played.control.calls[-1] == ("restart", "replica/demo-r1", None, True)


async def test_folding_and_drilling() -> None:
    async with on_stage() as played:
        await played.press("3")
        table = played.view(ModelsView).table
        before = table.shown_count
        await played.press("enter")
        assert table.shown_count == before - 2
        await played.press("enter", "down", "enter")
        await played.sees("[4 Engine]", "bge-m3 › r1")


async def test_faults_only_shows_the_odd_ones_with_their_model() -> None:
    async with on_stage() as played:
        await played.press("3", "z")
        shown = set(played.view(ModelsView).table.shown_ids)
        assert {"deployment/glm-4.6", "replica/glm-4.6-r3", "replica/deepseek-v3.2-r2"} <= shown
        assert "replica/glm-4.6-r1" not in shown
