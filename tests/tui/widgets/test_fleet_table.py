"""The table at work: keys, mouse, a cursor that belongs to its row, and no cell painted that did not change."""

from textual.geometry import Region

from nebula_tui.presenters.cells import Cell, Column, LazyRows, Row, Severity
from nebula_tui.widgets import FleetTable
from tests.tui.widgets.stage import on_stage

COLUMNS = (
    Column("node", "NODE", 10),
    Column("state", "STATE", 8, flash=True),
    Column("util", "UTIL", 14, "right", 1, 5),
    Column("note", "NOTE", 12, priority=3),
)


def row(number: int, util: float | None = 0.5, state: str = "ready", **more) -> Row:
    return Row(
        f"n{number}",
        (Cell(f"node-{number:03}"), Cell(state), Cell.gauge(util), Cell(f"note {number}", Severity.DIM)),
        **more,
    )


def table(rows: int = 30) -> FleetTable:
    made = FleetTable(COLUMNS)
    made.set_rows([row(i, i / 100) for i in range(rows)])
    return made


async def test_columns_are_aligned_and_figures_stand_right() -> None:
    made = table(3)
    async with on_stage(made, size=(60, 8)) as at:
        made.focus()
        await at.settle()
        assert [line.rstrip() for line in at.lines()[:4]] == [
            "   NODE          STATE                 UTIL    NOTE",
            " ▶ node-000      ready       ·········   0%    note 0",
            "   node-001      ready       ■········   1%    note 1",
            "   node-002      ready       ■········   2%    note 2",
        ]


async def test_columns_leave_when_the_room_goes() -> None:
    made = table(3)
    async with on_stage(made, size=(60, 8)) as at:
        await at.resize(40, 8)
        assert "NOTE" not in at.lines()[0]
        assert "UTIL" in at.lines()[0]
        await at.resize(24, 8)
        assert at.lines()[0].split() == ["NODE", "STATE"]


async def test_keys_move_the_cursor() -> None:
    made = table(30)
    async with on_stage(made, size=(60, 11)) as at:
        made.focus()
        for keys, cursor in (
            (["j", "down"], "n2"),
            (["k"], "n1"),
            (["G"], "n29"),
            (["ctrl+u"], "n24"),
            (["ctrl+d"], "n29"),
            (["pageup"], "n19"),
            (["g"], "n0"),
            (["pagedown"], "n10"),
            (["home", "up"], "n0"),
            (["end", "down"], "n29"),
        ):
            await at.press(*keys)
            assert made.cursor_id == cursor
            assert any("▶ " + f"node-{cursor[1:]:0>3}" in line for line in at.lines())


async def test_the_cursor_stays_on_its_row_when_the_order_changes() -> None:
    made = table(30)
    async with on_stage(made, size=(60, 11)) as at:
        made.focus()
        await at.press("j", "j")
        made.set_rows([row(i, 1 - i / 100) for i in reversed(range(30))])
        await at.settle()
        assert made.cursor_id == "n2"
        assert any("▶ node-002" in line for line in at.lines())
        made.sort_by("util", descending=True)
        await at.settle()
        assert made.cursor_id == "n2"
        assert [line[3:11] for line in at.lines()[1:4]] == ["node-000", "node-001", "node-002"]


async def test_when_the_row_goes_the_cursor_keeps_its_place() -> None:
    made = table(5)
    async with on_stage(made, size=(60, 11)) as at:
        made.focus()
        await at.press("j", "j")
        made.set_rows([row(i) for i in (0, 1, 3, 4)])
        assert made.cursor_id == "n3"
        made.set_rows([row(0)])
        assert made.cursor_id == "n0"
        made.set_rows([])
        assert made.cursor_id is None
        assert made.cursor_row is None
        await at.settle()
        assert "Nothing here yet." in at.text()
        highlighted = [m.row_id for m in at.app.messages(FleetTable.RowHighlighted)]
        assert highlighted[-1] is None


async def test_enter_and_a_double_click_open_the_row() -> None:
    made = table(5)
    async with on_stage(made, size=(60, 11)) as at:
        made.focus()
        await at.press("j", "enter")
        await at.pilot.click(made, offset=(8, 4), times=2)
        await at.settle()
        assert [m.row_id for m in at.app.messages(FleetTable.RowSelected)] == ["n1", "n3"]


async def test_marks() -> None:
    made = table(10)
    async with on_stage(made, size=(60, 14)) as at:
        made.focus()
        await at.press("space", "j", "j")
        assert made.marks == {"n0"}
        assert made.cursor_id == "n3"
        assert at.lines()[1].startswith(" ✓ node-000")
        await at.press("ctrl+@")
        assert made.marks == {"n0", "n1", "n2", "n3"}
        assert at.lines()[4].startswith("✓▶ node-003")
        made.set_filter("node-00[89]")
        await at.press("asterisk")
        assert made.marks == {"n0", "n1", "n2", "n3", "n8", "n9"}
        await at.press("asterisk")
        assert made.marks == {"n0", "n1", "n2", "n3"}
        await at.pilot.click(made, offset=(1, 1))
        assert "n8" in made.marks
        made.set_rows([row(0)])
        assert made.marks == {"n0"}
        made.clear_marks()
        await at.settle()
        assert at.app.messages(FleetTable.MarksChanged)[-1].marks == frozenset()


async def test_sorting_by_keys_and_by_a_click_on_a_title() -> None:
    made = table(10)
    async with on_stage(made, size=(60, 14)) as at:
        made.focus()
        await at.press("greater_than_sign", "greater_than_sign", "greater_than_sign")
        assert made.sorted_by == ("util", True)
        assert "UTIL▼" in at.lines()[0]
        assert at.lines()[1][3:11] == "node-009"
        await at.press("I")
        assert made.sorted_by == ("util", False)
        assert "UTIL▲" in at.lines()[0]
        await at.press("less_than_sign")
        assert made.sorted_by == ("state", False)
        await at.press("less_than_sign", "less_than_sign", "less_than_sign")
        assert made.sorted_by is None
        await at.pilot.click(made, offset=(4, 0))
        assert made.sorted_by == ("node", False)
        await at.pilot.click(made, offset=(4, 0))
        assert made.sorted_by == ("node", True)
        assert made.view_note == "sort NODE ▼"


async def test_a_filter_says_when_it_hides_everything() -> None:
    made = table(10)
    async with on_stage(made, size=(60, 14)) as at:
        made.set_filter("util>5 node=node-00*")
        await at.settle()
        assert made.shown_count == 0
        assert "None of 10 matches /util>5 node=node-00*" in at.text()
        made.set_filter("node-007")
        await at.settle()
        assert list(made.shown_ids) == ["n7"]
        assert made.view_note == "/node-007 · 1 of 10"
        made.set_filter("")
        assert made.shown_count == 10


async def test_the_wheel_moves_the_view_and_leaves_the_cursor() -> None:
    made = table(30)
    async with on_stage(made, size=(60, 11)) as at:
        made.focus()
        for _ in range(4):
            made._scroll(3)
        await at.settle()
        assert made.cursor_id == "n0"
        assert "node-012" in at.lines()[1]
        made.set_rows([row(i) for i in range(30)])
        await at.settle()
        assert "node-012" in at.lines()[1]
        await at.press("j")
        assert any("▶ node-001" in line for line in at.lines())


async def test_a_tree_folds() -> None:
    made = FleetTable(COLUMNS)
    made.set_rows([row(0, expandable=True), row(1, depth=1), row(2, depth=1), row(3, expandable=True, expanded=False)])
    async with on_stage(made, size=(60, 11)) as at:
        made.focus()
        await at.settle()
        assert [line[1:13].rstrip() for line in at.lines()[1:5]] == [
            "▶ ▾ node-000",
            "    ├ node-…",
            "    └ node-…",
            "  ▸ node-003",
        ]
        await at.press("j", "left")
        assert made.cursor_id == "n0"
        await at.press("left")
        assert list(made.shown_ids) == ["n0", "n3"]
        await at.press("right")
        assert list(made.shown_ids) == ["n0", "n1", "n2", "n3"]
        await at.pilot.click(made, offset=(3, 1))
        assert list(made.shown_ids) == ["n0", "n3"]
        made.fold_all(expanded=True)
        await at.settle()
        assert made.shown_count == 4


async def test_eight_thousand_rows_make_a_screenful_of_cells() -> None:
    made_rows: list[str] = []

    def make(id_: str) -> Row:
        made_rows.append(id_)
        return Row(id_, (Cell(id_),))

    ids = [f"gpu-{i:04}" for i in range(8000)]
    made = FleetTable([Column("id", "ID", 10)])
    made.set_rows(LazyRows(ids, make, lambda id_, _: id_, lambda id_: id_))
    async with on_stage(made, size=(60, 21)) as at:
        made.focus()
        made_rows.clear()
        made.set_rows(LazyRows(ids, make, lambda id_, _: id_, lambda id_: id_))
        assert len(made_rows) == 20
        await at.press("G")
        assert made.cursor_id == "gpu-7999"
        assert "gpu-7999" in at.lines()[20]
        made.set_filter("gpu-799[0-9]")
        assert made.shown_count == 10


class Watched(FleetTable):
    """Notes which regions it asks to repaint."""

    def __init__(self) -> None:
        super().__init__(COLUMNS)
        self.asked: list[Region] = []

    def refresh(
        self, *regions: Region, repaint: bool = True, layout: bool = False, recompose: bool = False
    ) -> "Watched":
        self.asked.extend(regions or [Region(0, 0, 999, 999)])
        super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)
        return self


async def test_only_cells_that_differ_are_painted() -> None:
    made = Watched()
    rows = [row(i, 0.5) for i in range(10)]
    made.set_rows(rows)
    async with on_stage(made, size=(60, 12)) as at:
        made.focus()
        await at.settle()
        made.asked.clear()
        made.set_rows([row(i, 0.5) for i in range(10)])
        assert made.asked == []
        made.set_rows([*rows[:3], row(3, 0.75), *rows[4:]])
        [only] = made.asked
        assert (only.y, only.height) == (4, 1)
        assert at.lines()[0][only.x : only.right].strip() == "UTIL"
        made.asked.clear()
        await at.press("j")
        assert {region.y for region in made.asked} == {1, 2}


async def test_a_state_that_changed_is_bold_for_one_tick() -> None:
    made = table(2)
    async with on_stage(made, size=(60, 6)) as at:

        def bold() -> bool:
            strip = at.app.screen._compositor.render_strips()[2]
            return any(s.text.startswith("▲down") and s.style is not None and bool(s.style.bold) for s in strip)

        made.set_rows([row(0), row(1, state="▲down")])
        await at.settle()
        assert bold()
        made.set_rows([row(0), row(1, state="▲down")])
        await at.settle()
        assert not bold()


async def test_stale_rows_and_a_stale_table_are_dim() -> None:
    made = FleetTable(COLUMNS)
    made.set_rows([row(0), row(1, stale=True)])
    async with on_stage(made, size=(60, 6)) as at:

        def ink(y: int) -> object:
            strip = at.app.screen._compositor.render_strips()[y]
            return next(s.style.color for s in strip if s.style is not None and "node" in s.text)

        await at.settle()
        fresh, stale = ink(1), ink(2)
        assert fresh != stale
        made.set_stale(True)
        await at.settle()
        assert ink(1) == stale


async def test_the_scroll_mark_tells_where_one_is() -> None:
    made = table(100)
    async with on_stage(made, size=(60, 11)) as at:
        made.focus()
        await at.settle()
        assert [line[-1] for line in at.lines()[1:11]] == ["┃", *"│││││││││"]
        await at.press("G")
        assert [line[-1] for line in at.lines()[1:11]] == [*"│││││││││", "┃"]


async def test_a_table_set_before_it_is_shown_and_one_shown_before_it_is_set() -> None:
    before, after = table(2), FleetTable(COLUMNS, empty_text="No node has joined.")
    async with on_stage(before, after, size=(60, 12)) as at:
        assert "node-001" in at.text()
        assert "No node has joined." in at.text()
        after.set_rows([row(7)])
        await at.settle()
        assert "node-007" in at.text()


async def test_move_to() -> None:
    made = table(30)
    async with on_stage(made, size=(60, 8)) as at:
        assert made.move_to("n20")
        await at.settle()
        assert "node-020" in at.text()
        assert not made.move_to("n99")
        assert made.cursor_id == "n20"
