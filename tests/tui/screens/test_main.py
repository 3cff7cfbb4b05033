"""What holds on every screen: the link and its banner, roles, the command line, the palette, help, history, pause."""

from collections.abc import Callable

import pytest
from textual.command import CommandList, CommandPalette

from nebula_core.records.views import WatchDelta
from nebula_tui.adapters.control import Connected, Lost, NotAllowed, Unreachable
from nebula_tui.screens.help import HelpScreen
from nebula_tui.screens.models import ModelsView
from nebula_tui.screens.nodes import NodesView
from nebula_tui.screens.plan_dialog import PlanDialog
from tests.support.fleet import cluster, small_fleet
from tests.tui.screens.stage import LARGE, SIZES, SMALL, Playing, on_stage, scene

Compare = Callable[..., bool]
GONE = Unreachable("http://127.0.0.1:8082 refuses the connection", hint="is the control process running?")


async def lose(played: Playing) -> None:
    played.clock.go(6.0)
    played.app.take(Lost(GONE, 1.0))
    played.clock.go(0.4)


@pytest.mark.parametrize("size", SIZES)
def test_not_connected(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("3", lose)
    assert snap_compare(app, terminal_size=size, run_before=play)


@pytest.mark.parametrize("size", SIZES)
def test_help(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("2", "question_mark")
    assert snap_compare(app, terminal_size=size, run_before=play)


def test_command_line(snap_compare: Compare) -> None:
    async def typed(played: Playing) -> None:
        await played.press("colon")
        await played.spell("scale qwen3-32b=9")

    app, play = scene(typed)
    assert snap_compare(app, terminal_size=SMALL, run_before=play)


def test_viewer(snap_compare: Compare) -> None:
    app, play = scene("3", role="viewer")
    assert snap_compare(app, terminal_size=LARGE, run_before=play)


async def test_the_banner_comes_at_once_actions_lock_and_all_comes_back_by_itself() -> None:
    async with on_stage(small_fleet()) as played:
        played.control.drop(GONE)
        await played.sees("NOT CONNECTED", "actions locked", "refuses the connection")
        await played.press("3", "s")
        assert not isinstance(played.app.screen, PlanDialog)
        await played.sees("actions are locked while not connected")
        played.control.feed.put_nowait(Connected())
        played.control.feed.put_nowait(played.control.snapshot)
        await played.until(lambda: "NOT CONNECTED" not in played.text())
        await played.press("s")
        assert isinstance(played.app.screen, PlanDialog)


async def test_silence_is_told_and_rows_age() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("2")
        await played.tick(2.0)
        assert "QUIET" not in played.text()
        await played.tick(10.0)
        await played.sees("QUIET 12s", "NO WORD", "~12s")


async def test_the_store_is_away() -> None:
    async with on_stage(small_fleet()) as played:
        down = cluster(store_reachable=False, snapshot_age_seconds=12.0, simulated=True)
        played.app.fleet.take_delta(WatchDelta(cluster=down), played.clock.monotonic)
        await played.tick(0.0)
        await played.sees("STORE DOWN", "STORE NOT REACHABLE", "replicas go on serving")


async def test_a_viewer_sees_no_actions_and_has_no_keys_for_them() -> None:
    async with on_stage(small_fleet(), role="viewer") as played:
        await played.press("3")
        await played.sees("RO viewer@ops")
        assert "scale" not in played.lines()[-1]
        await played.press("s", "r", "d", "c")
        assert not isinstance(played.app.screen, PlanDialog)
        assert not [call for call in played.control.calls if call[0] != "logs"]
        await played.press("colon")
        await played.spell("scale demo=3")
        await played.press("enter")
        await played.sees("needs the role operator")
        assert not isinstance(played.app.screen, PlanDialog)


async def test_a_revoked_key_takes_the_actions_away() -> None:
    async with on_stage(small_fleet()) as played:
        played.control.drop(NotAllowed("the API key is revoked", hint="check the key of this context"))
        await played.sees("the API key is revoked")
        assert not played.app.may_act()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nodes", "[2 Nodes]"),
        ("models /qwen", "/qwen"),
        ("logs demo-r1", "[6 Logs]"),
        ("events", "[8 Events]"),
        ("scale demo=3", "[ 3 ]"),
        ("drain sim-a", "drain sim-a · plan"),
        ("drian sim-a", "did you mean 'drain'"),
        ("drain sim-x", "did you mean"),
        ("nodes nowhere", "no node, model or replica"),
    ],
)
async def test_commands(line: str, expected: str) -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("colon")
        await played.spell(line)
        await played.press("enter")
        await played.sees(expected)


async def test_tab_completes_names() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("colon")
        await played.spell("drain si")
        await played.press("tab")
        await played.sees("drain sim-")
        await played.spell("b")
        await played.press("enter")
        await played.sees("drain sim-b · plan")


async def test_the_palette_finds_things_and_does_them() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("ctrl+p")
        assert isinstance(played.app.screen, CommandPalette)
        await played.spell("logs of demo-r2")
        # Until it is the only one: what an earlier letter found may still be listed, with another entry on top.
        found = played.app.screen.query_one(CommandList)
        await played.until(lambda: found.option_count == 1 and "Logs of demo-r2" in played.text())
        await played.press("enter")
        await played.sees("[6 Logs]")
        await played.until(lambda: ("logs", "demo-r2", 500, True) in played.control.calls)


async def test_digits_history_and_help() -> None:
    async with on_stage() as played:
        await played.press("2", "3", "8")
        await played.sees("[8 Events]")
        await played.press("left_square_bracket")
        await played.sees("[3 Models]")
        await played.press("right_square_bracket")
        await played.sees("[8 Events]")
        await played.press("minus")
        await played.sees("[3 Models]")
        await played.press("question_mark")
        assert isinstance(played.app.screen, HelpScreen)
        await played.press("escape")
        await played.press("escape")
        await played.sees("[8 Events]")


async def test_pause_holds_the_view_and_says_for_how_long() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("2", "p")
        held = played.view(NodesView).table.cursor_row
        played.app.fleet.take_delta(
            WatchDelta(nodes=(small_fleet().nodes[0].model_copy(update={"state": "lost"}),)), played.clock.monotonic
        )
        await played.tick(3.0)
        await played.sees("PAUSED 3s")
        assert played.view(NodesView).table.cursor_row == held
        await played.press("p")
        await played.sees("▲lost")


async def test_n_and_m_jump_to_node_and_model() -> None:
    async with on_stage() as played:
        await played.press("5", "b", "b", "b", "down", "down", "n")
        await played.sees("[2 Nodes]")
        assert played.view(NodesView).table.cursor_id == "node-014"
        await played.press("5", "m")
        await played.sees("[3 Models]")
        assert played.view(ModelsView).table.cursor_id == "deployment/deepseek-v3.2"


async def test_a_click_on_a_tab_and_on_a_key() -> None:
    async with on_stage() as played:
        tabs = played.lines()[1]
        await played.pilot.click("HeaderBar", offset=(tabs.index("3 Models") + 1, 1))
        await played.sees("[3 Models]")
        keys = played.lines()[-1]
        await played.pilot.click("KeyBar", offset=(keys.index("help"), 0))
        await played.until(lambda: isinstance(played.app.screen, HelpScreen))


async def test_leaving_closes_the_doors() -> None:
    async with on_stage() as played:
        await played.press("q")
        control = played.control
    assert control.closed


async def test_themes_by_command() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("colon")
        await played.spell("theme cb-safe")
        await played.press("enter")
        await played.until(lambda: played.app.theme == "cb-safe")
        await played.press("colon")
        await played.spell("theme nothing")
        await played.press("enter")
        await played.sees("no theme 'nothing'")


async def test_no_color_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with on_stage(small_fleet()) as played:
        await played.sees("demo")
        strips = played.app.screen._compositor.render_strips()
        filtered = [
            strip.apply_filter(each, played.app.screen.background_colors[1])
            for strip in strips
            for each in played.app.get_line_filters()
        ]
        colors = {
            segment.style.color for strip in filtered for segment in strip if segment.style and segment.style.color
        }
        assert all(color.is_default for color in colors)
