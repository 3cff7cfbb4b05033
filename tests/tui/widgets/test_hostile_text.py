"""Foreign text in every widget: nothing a terminal obeys is painted, nothing is read as markup, nothing crashes."""

import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from textual.widget import Widget

from nebula_tui.presenters.cells import Cell, Column, LazyRows, Row, Severity
from nebula_tui.presenters.loglines import LogEntry, LogFilter, gap_entry, make_entry
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
    LogRing,
    MeterRow,
    Panel,
    Tab,
)
from tests.tui.widgets.stage import on_stage

PAYLOADS = (
    "\x1b]52;c;ZXZpbA==\x07",
    "\x1b]52;c;never ends",
    "\x1b]0;title\x1b\\",
    "\x1b[2J\x1b[H",
    "\x1b[31mred\x1b[0m",
    "\x1b[6n",
    "\x1b[?1049l",
    "\x1bPq#0;2;0;0;0\x1b\\",
    "\x1b_apc\x1b\\",
    "\x9b31mC1\x9b0m",
    "\x9d52;c;eA==\x9c",
    "\x90dcs\x9c",
    "a\rb\x08c\x07d\x00e\x7ff\x85g",
    "two\nlines\ttab",
    "[@click=app.boom('x')]click[/]",
    "[/foo]",
    "a[/]b",
    "[link=javascript:alert(1)]x",
    "[bold red on blue",
    "\\[escaped]",
    "{boom}",
    "%s%n",
    "user\u202etxt.exe\u2066",
    "z\u200bero\ufeff\u200d",
    "line\u2028sep\u2029",
    "\udc9b\ud800",
    "模型🤖👩‍👩‍👧é\u0301\u0301",
    "❤️",
    "x" * 5000,
    "界" * 3000,
    "",
    " ",
)


def widgets() -> dict[str, Widget]:
    return {
        "header": HeaderBar(),
        "table": FleetTable([Column("a", "A", 10), Column("b", "B", 14, "right", 1), Column("c", "C", 9, flex=True)]),
        "log": LogRing(),
        "heat": HeatGrid(),
        "chart": BrailleChart(),
        "meter": MeterRow("label"),
        "panel": Panel(title="panel"),
        "keys": KeyBar(),
    }


def feed(stage: dict[str, Widget], text: str) -> None:
    """Puts `text` into every place of every widget that takes text."""
    table, log, heat = stage["table"], stage["log"], stage["heat"]
    assert isinstance(table, FleetTable)
    assert isinstance(log, LogRing)
    assert isinstance(heat, HeatGrid)
    table.empty_text = text
    table.set_columns(
        [Column(text or "k", text, 10, flash=True), Column("b", text, 14, "right", 1), Column("c", "C", 9)]
    )
    rows = [
        Row(
            f"{text}{i}",
            (Cell(text), Cell.gauge(0.5, text=text), Cell.of((text, Severity.CRIT), ("x", Severity.OK))),
            depth=i % 2,
        )
        for i in range(4)
    ]
    table.set_rows(rows)
    table.sort_by("b")
    table.set_filter(text)
    table.set_filter("")
    table.set_rows(
        LazyRows([row.id for row in rows], lambda id_: Row(id_, (Cell(id_),)), lambda id_, _: id_, lambda id_: id_)
    )
    log.empty_text = text
    log.append([make_entry(0.0, text, text), LogEntry(1.0, text, text), gap_entry(2.0, 3, text)])
    log.set_search(text)
    log.set_filter(LogFilter(include=(text,)))
    log.drain()
    log.wrap = not log.wrap
    heat.empty_text = text
    heat.set_groups([HeatGroup(text, (HeatBlock(text, text[:40]),))])
    header, keys, panel, meter, chart = (stage[k] for k in ("header", "keys", "panel", "meter", "chart"))
    assert isinstance(header, HeaderBar)
    assert isinstance(keys, KeyBar)
    assert isinstance(panel, Panel)
    assert isinstance(meter, MeterRow)
    assert isinstance(chart, BrailleChart)
    header.set_state(HeaderState(text, link_word=text, role=text, badges=((text, Severity.WARN),), clock=text))
    header.set_tabs([Tab("1", text, text)], "1")
    keys.set_keys([KeyHint(text, text, "a")])
    keys.show_message(text if len(text) % 2 else "", Severity.WARN)
    panel.set_title(text)
    panel.set_note(text, Severity.CRIT)
    meter.set(0.5, text, Severity.WARN)
    chart.set_values([1.0, None, 2.0], caption=text)


def unsafe(text: str) -> list[str]:
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\u202e\u2066\u200b\ufeff"]


async def check(texts: list[str], size: tuple[int, int]) -> None:
    stage = widgets()
    async with on_stage(*stage.values(), size=size) as at:
        for text in texts:
            feed(stage, text)
            await at.settle()
            for strip in at.app.screen._compositor.render_strips():
                assert strip.cell_length == size[0]
                for segment in strip:
                    assert unsafe(segment.text) == [], repr(segment.text)
                    assert segment.control is None
                    # Markup would show as a style with an action or a link behind it.
                    assert segment.style is None or segment.style.link is None
                    assert segment.style is None or not any(k.startswith("@") for k in segment.style.meta)


@pytest.mark.parametrize("size", [(100, 40), (30, 30)])
async def test_the_corpus_of_payloads_in_every_widget(size: tuple[int, int]) -> None:
    await check(list(PAYLOADS), size)


async def test_markup_in_text_is_shown_as_it_is() -> None:
    table, panel = FleetTable([Column("a", "A", 40)]), Panel(title="[/foo] [b]x[/b]")
    table.set_rows([Row("1", (Cell("[@click=app.boom('x')]name[/]"),))])
    async with on_stage(table, panel, size=(60, 10)) as at:
        assert "[@click=app.boom('x')]name[/]" in at.text()
        assert "[/foo] [b]x[/b]" in at.text()
        await at.pilot.click(table, offset=(8, 1))
        await at.settle()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(
        st.text(st.characters(codec=None, exclude_categories=()), max_size=60)
        | st.lists(st.sampled_from(PAYLOADS), max_size=4).map("".join),
        min_size=1,
        max_size=8,
    )
)
async def test_any_text_in_every_widget(texts: list[str]) -> None:
    await check(texts, (60, 40))
