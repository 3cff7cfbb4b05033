"""Charts, meters, heat, frame and bars: what they show in the room they have, and what a click on them says."""

import pytest

from nebula_tui.presenters.cells import Severity
from nebula_tui.widgets import (
    BrailleChart,
    FleetTable,
    HeaderBar,
    HeaderState,
    HeatBlock,
    HeatGrid,
    HeatGroup,
    KeyBar,
    KeyHint,
    MeterRow,
    Panel,
    Tab,
)
from nebula_tui.widgets.panel import shorten_note
from tests.tui.widgets.stage import on_stage

TABS = [Tab(str(i), name, name[:4]) for i, name in enumerate(["Overview", "Nodes", "Models", "Engine"], 1)]


async def test_a_chart_scales_to_its_peak_and_keeps_its_caption() -> None:
    chart = BrailleChart(caption="out 8/s")
    async with on_stage(chart, size=(4, 3)) as at:
        chart.set_values([8, 8, 4, 4])
        await at.settle()
        assert at.lines() == ["  ⣿ ", "  ⣿⣿", "out…"]
        assert chart.top == 8
        chart.set_values([8, 8, 4, 4, None, None, 16, 16], caption="now")
        await at.settle()
        assert at.lines() == ["   ⣿", "⣿⣤┄⣿", "now "]
        assert chart.top == 16


async def test_a_scale_goes_up_at_once_and_down_only_when_far_off() -> None:
    chart = BrailleChart()
    async with on_stage(chart, size=(4, 3)):
        chart.set_values([100])
        chart.set_values([70])
        assert chart.top == 100
        chart.set_values([50])
        assert chart.top == 50
        chart.set_values([1], maximum=10)
        assert chart.top == 10


async def test_a_meter_row() -> None:
    row = MeterRow("GPU util", value_width=6)
    async with on_stage(row, size=(30, 3)) as at:
        assert at.lines()[0] == "GPU util  ··············     –"
        row.set(0.71, "71%")
        await at.settle()
        assert at.lines()[0] == "GPU util  ■■■■■■■■■■····   71%"
        row.set(0.96, "96%", Severity.CRIT)
        await at.settle()
        assert at.lines()[0] == "GPU util  ■■■■■■■■■■■■■· 96% ▲"
        row.set(None, "41ms", series=[1, None, 4])
        await at.settle()
        assert at.lines()[0] == "GPU util            ▂ █   41ms"


GROUPS = [
    HeatGroup("r01", (HeatBlock("n1", "·░▒▓"), HeatBlock("n2", "▲▲~‖"), HeatBlock("n3", "████"))),
    HeatGroup("r02", (HeatBlock("n4", "····"),)),
]


async def test_heat_groups_wrap_and_the_cursor_walks_gpus() -> None:
    grid = HeatGrid()
    grid.set_groups(GROUPS)
    async with on_stage(grid, size=(14, 6)) as at:
        grid.focus()
        await at.settle()
        assert [line.rstrip() for line in at.lines()] == [
            "r01 ·░▒▓ ▲▲~‖",
            "    ████",
            "r02 ····",
            "",
            "",
            "· idle ░▒▓█ …",
        ]
        assert grid.cursor == ("n1", 0)
        await at.press("l", "l", "j")
        assert grid.cursor == ("n3", 2)
        await at.press("j", "j", "G")
        assert grid.cursor == ("n4", 3)
        await at.press("k", "k", "enter")
        assert grid.cursor == ("n1", 3)
        await at.pilot.click(grid, offset=(10, 0), times=2)
        await at.settle()
        selected = at.app.messages(HeatGrid.CellSelected)
        assert [(m.block_id, m.index) for m in selected] == [("n1", 3), ("n2", 1)]


async def test_heat_keeps_its_cursor_across_updates_and_finds_another_when_the_node_goes() -> None:
    grid = HeatGrid()
    async with on_stage(grid, size=(30, 6)) as at:
        assert grid.cursor is None
        assert "No GPU has reported" in at.text()
        grid.set_groups(GROUPS)
        grid.focus()
        await at.press("G")
        grid.set_groups([GROUPS[1], GROUPS[0]])
        assert grid.cursor == ("n4", 3)
        grid.set_groups([GROUPS[0]])
        assert grid.cursor == ("n1", 0)
        grid.set_groups([])
        assert grid.cursor is None


async def test_more_heat_than_room_scrolls_and_says_so() -> None:
    grid = HeatGrid()
    grid.set_groups([HeatGroup(f"r{i:02}", (HeatBlock(f"n{i}", "····"),)) for i in range(20)])
    async with on_stage(grid, size=(40, 5)) as at:
        grid.focus()
        await at.settle()
        assert "↓ 16 more lines" in at.lines()[-1]
        await at.press("G")
        assert at.lines()[3].startswith("r19")
        assert "more lines" not in at.lines()[-1]


async def test_a_panel_has_a_title_and_a_note_and_doubles_with_the_focus() -> None:
    table = FleetTable()
    panel, other = Panel(table, title="nodes 125", note="41 shown"), FleetTable()
    async with on_stage(panel, other, size=(40, 10)) as at:
        other.focus()
        await at.settle()
        assert at.lines()[0].startswith("╭─┤ nodes 125 ├──")
        assert at.lines()[0].endswith("──┤ 41 shown ├─╮")
        table.focus()
        await at.settle()
        assert at.lines()[0].startswith("╔═╡ nodes 125 ╞══")
        assert at.lines()[0].endswith("══╡ 41 shown ╞═╗")
        assert at.lines()[1].startswith("║")
        assert at.lines()[4].startswith("╚")
        panel.set_title("nodes 126")
        panel.set_note("")
        await at.settle()
        assert at.lines()[0] == "╔═╡ nodes 126 ╞════════════════════════╗"
        other.focus()
        await at.settle()
        assert at.lines()[0].startswith("╭─┤ nodes 126 ├─")


@pytest.mark.parametrize("width", [4, 5, 8, 12, 20, 30])
async def test_a_narrow_panel_keeps_its_corners(width: int) -> None:
    async with on_stage(Panel(title="a long title", note="a note · more"), size=(width, 4)) as at:
        assert len(at.lines()[0]) == width
        assert (at.lines()[0][0], at.lines()[0][-1]) == ("╭", "╮")


def test_notes_are_shortened_at_their_parts() -> None:
    assert shorten_note("/dc=sh-2 · sort UTIL ▼ · 41 shown", 30) == "/dc=sh-2 · sort UTIL ▼"
    assert shorten_note("out 21.9k ▲4%", 12) == "out 21.9k…"
    assert shorten_note("in 9.1k", 6) == ""
    assert shorten_note("/averylongfilter", 9) == ""
    assert shorten_note("", 0) == ""


STATE = HeaderState(
    "prod-sh",
    Severity.OK,
    "LIVE",
    1.0,
    "RW admin@ops",
    production=True,
    badges=(("SIMULATED", Severity.WARN),),
    crit=2,
    warn=7,
    clock="14:22:07",
)


LONG, SHORT = "  1 Overview [2 Nodes] 3 Models  4 Engine", "  1Over [2Node] 3Mode  4Engi"


@pytest.mark.parametrize(
    ("width", "left", "right", "second"),
    [
        (100, " ◆ nebula ▏⚑ prod-sh ▏● LIVE 1.0s ▏RW admin@ops ▏SIMULATED", "▲2 crit ●7 warn ▏14:22:07 ", LONG),
        (80, " ◆ nebula ▏⚑ prod-sh ▏● LIVE 1.0s ▏RW admin@ops ▏SIMULATED", "▲2 ●7 ▏14:22:07 ", LONG),
        (70, " ◆ ⚑ prod-sh ▏● LIVE 1.0s ▏RW admin@ops ▏SIMULATED", "▲2 ●7 ▏14:22:07 ", LONG),
        (40, " ◆ ⚑ prod-sh ▏● LIVE 1.0s", "14:22:07 ", SHORT),
        (20, " ◆ ⚑ prod-sh ▏● LI…", "", "  1 [2Node] 3  4"),
    ],
)
async def test_the_header_shortens_itself(width: int, left: str, right: str, second: str) -> None:
    header = HeaderBar()
    header.set_state(STATE)
    header.set_tabs(TABS, "2")
    async with on_stage(header, size=(width, 5)) as at:
        shown = at.lines()[0]
        assert shown == left + right.rjust(width - len(left))
        assert at.lines()[1].rstrip() == second
        await at.pilot.click(header, offset=(second.index("3") + 1, 1))
        await at.settle()
        assert [m.key for m in at.app.messages(HeaderBar.TabClicked)] == ["3"]


async def test_a_header_says_that_the_link_is_lost_in_words() -> None:
    header = HeaderBar()
    header.set_state(HeaderState("lab", Severity.CRIT, "OFFLINE", 48.0))
    async with on_stage(header, size=(80, 3)) as at:
        assert "▲ OFFLINE 48s" in at.lines()[0]


HINTS = [
    KeyHint("⏎", "drill", "enter", 0),
    KeyHint("/", "filter", "slash", 0),
    KeyHint("p", "pause", "p", 2),
    KeyHint("?", "help", "question_mark", 0),
]


async def test_keys_leave_by_priority_and_can_be_clicked() -> None:
    bar = KeyBar()
    bar.set_keys(HINTS)
    async with on_stage(bar, size=(40, 3)) as at:
        assert at.lines()[2].rstrip() == " ⏎ drill  / filter  p pause  ? help"
        await at.pilot.click(bar, offset=(11, 0))
        await at.settle()
        assert [m.press for m in at.app.messages(KeyBar.KeyClicked)] == ["slash"]
        await at.resize(34, 3)
        assert at.lines()[2].rstrip() == " ⏎ drill / filter p pause ? help"
        await at.resize(26, 3)
        assert at.lines()[2].rstrip() == " ⏎ drill / filter ? help"
        bar.show_message("copied node-034", Severity.INFO)
        await at.settle()
        assert at.lines()[2].rstrip() == " ○ copied node-034"
        bar.show_message("")
        await at.settle()
        assert "drill" in at.lines()[2]
