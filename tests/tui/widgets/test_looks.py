"""Goldens: each widget as an operator sees it, in each theme. Look at a changed picture before accepting it."""

import math
from collections.abc import Callable
from datetime import UTC

import pytest
from textual.app import App
from textual.containers import Grid
from textual.pilot import Pilot
from textual.widget import Widget

from nebula_tui.presenters.cells import UNKNOWN, Cell, Column, Row, Severity, age, count, heat
from nebula_tui.presenters.glyphs import Mark
from nebula_tui.presenters.loglines import make_entry
from nebula_tui.themes import NO_COLOR_THEME, THEMES
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
from tests.tui.settling import settled
from tests.tui.widgets.stage import Stage

Compare = Callable[..., bool]
EVERY_THEME = [*(theme.name for theme in THEMES), "ansi-dark"]


def wave(at: float) -> float:
    """0..1, the same in every run."""
    return 0.5 + 0.35 * math.sin(at / 5) + 0.15 * math.sin(at * 1.7)


NODE_COLUMNS = (
    Column("node", "NODE", 9),
    Column("state", "STATE", 8),
    Column("gpus", "GPUS (8)", 8, priority=2),
    Column("util", "UTIL%", 14, "right", 0, 5),
    Column("vram", "VRAM%", 14, "right", 1, 5),
    Column("kv", "KV%", 4, "right", 3),
    Column("temp", "TEMP°C", 6, "right", 4),
    Column("power", "W", 4, "right", 5),
    Column("run", "RUN/WAIT", 8, "right", 4),
    Column("tok", "tok/s", 6, "right", 3),
    Column("age", "AGE", 5, "right", 2),
    Column("trend", "TREND", 10, priority=6, flex=True),
)

STATES = {
    3: ("‖drain", Severity.INFO),
    5: ("~stale", Severity.WARN),
    7: ("▲down", Severity.CRIT),
    9: ("⊘cordon", Severity.WARN),
    12: ("↻load", Severity.INFO),
}


def node(i: int) -> Row:
    state, severity = STATES.get(i, ("ready", Severity.NORMAL))
    down = i == 7
    util = None if down else max(0.02, 0.98 - i * 0.028)
    hot = util is not None and util > 0.95
    loads = [min(1.0, (util or 0) * (0.7 + 0.4 * wave(i + g * 3))) for g in range(8)]
    marks = {3: Mark.DOWN} if i == 4 else dict.fromkeys(range(8), Mark.DOWN) if down else {}
    glyphs = "".join(heat(load, marks.get(g)) for g, load in enumerate(loads))
    return Row(
        f"node-{i:03}",
        (
            Cell(f"node-{i * 17 % 125:03}"),
            Cell(state, severity),
            Cell.strip(glyphs),
            Cell.gauge(util, Severity.WARN if hot else Severity.NORMAL),
            Cell.gauge(None if down else 0.93 - i * 0.01),
            Cell(UNKNOWN if util is None else count(util * 92)),
            Cell(UNKNOWN if util is None else count(44 + util * 31)),
            Cell(UNKNOWN if util is None else count(120 + util * 570)),
            Cell(f"{UNKNOWN}/{UNKNOWN}" if util is None else f"{util * 48:.0f}/{max(0, 9 - 3 * i)}"),
            Cell(UNKNOWN if util is None else count(util * 3030)),
            Cell("48s" if down else "7.2s" if i == 5 else age(0.4), Severity.CRIT if down else Severity.DIM),
            Cell(series=tuple(None if down and t > 8 else wave(i * 3 + t) for t in range(14))),
        ),
        stale=i == 5,
    )


def nodes() -> Widget:
    table = FleetTable(NODE_COLUMNS, id="first")
    table.set_rows([node(i) for i in range(40)])
    table.sort_by("util", descending=True)
    return Panel(table, title="nodes 125", note="/dc=sh-2 util>60 · sort UTIL ▼ · 41 shown")


def models() -> Widget:
    columns = (
        Column("name", "MODEL / REPLICA", 24),
        Column("engine", "ENGINE", 7, priority=3),
        Column("state", "STATE", 10),
        Column("kv", "KV%", 14, "right", 0, 5),
        Column("run", "RUN", 4, "right", 1),
        Column("wait", "WAIT", 4, "right", 1),
        Column("tok", "tok/s", 6, "right", 0),
        Column("ttft", "TTFT p95 ms", 11, "right", 1),
    )

    def line(id_: str, name: str, state: Cell, kv: float | None, wait: int, **more) -> Row:
        engine = "" if more.get("depth") else "vllm"
        figures = [UNKNOWN] * 3 if kv is None else [count(kv * 50), count(wait), count(kv * 950)]
        slow = wait > 5
        ttft = UNKNOWN if kv is None else count(1890 if slow else 380)
        return Row(
            id_,
            (
                Cell(name, bold=not more.get("depth")),
                Cell(engine, Severity.DIM),
                state,
                Cell.gauge(kv, Severity.CRIT if kv is not None and kv > 0.95 else Severity.NORMAL),
                *(Cell(text) for text in figures),
                Cell(ttft, Severity.WARN if slow else Severity.NORMAL),
            ),
            **more,
        )

    ready = Cell("ready")
    table = FleetTable(columns, id="first")
    table.set_rows(
        [
            line("a", "llama-3.3-70b", Cell("3/3 ready"), 0.71, 1, expandable=True),
            line("a1", "r1 node-034·0-3", ready, 0.71, 0, depth=1),
            line("a2", "r2 node-034·4-7", ready, 0.66, 0, depth=1),
            line("a3", "r3 node-051·0-3", Cell("‖drain", Severity.INFO), 0.22, 0, depth=1),
            line("b", "qwen3-32b", Cell("8/8 ready"), 0.55, 1, expandable=True, expanded=False),
            line("b1", "r1", ready, 0.5, 0, depth=1),
            line("c", "deepseek-v3.2", Cell("3/4 ready", Severity.WARN), 0.96, 15, expandable=True),
            line("c1", "r1 node-101·0-7", ready, 0.88, 2, depth=1),
            line("c2", "r2 node-102·0-7", Cell("▲ hot", Severity.CRIT), 0.96, 9, depth=1),
            line("c4", "r4 node-104·0-7", Cell("↻ load 71%", Severity.INFO), None, 0, depth=1),
        ]
    )
    table.marks = frozenset({"a1"})
    return Panel(table, title="models › replicas (tree)", note="6 models · 26 replicas")


def logs() -> Widget:
    log = LogRing(tz=UTC, id="first")
    texts = (
        "INFO  route c-9fb1 tenant=batch model=deepseek-v3.2 → r4 (kv 86%) spill from r2 (kv 96%>95%)",
        "INFO  POST /v1/chat/completions 200 in=812 out=1208 ttft=0.31s",
        "ERROR upstream r2 first-byte 5.02s > slo 5s; hedged to r4",
        "DEBUG scheduler: chunked prefill 8192/23110",
        "WARN  NVRM Xid 79 pci 0000:c1:00: GPU has fallen off the bus",
        "INFO  Running 48, Waiting 9, KV 96.1%, prefix hit 18.2%, gen 3310.2 tok/s",
        "WARN  preempted seq c-9fa8 (recompute): kv blocks exhausted",
        "Traceback (most recent call last):",
    )
    sources = ("px-1", "ag101", "ds/r2", "ds/r4")
    for i in range(24):
        if i == 15:
            log.note_lost(1120, 1_790_346_124.0, "sampled out by server (rate cap 5k/s on ds/r2)")
        log.append([make_entry(1_790_346_120.0 + i * 0.317, sources[i * 7 % 4], texts[i * 5 % 8])])
    log.set_search("preempt|Xid")
    return Panel(log, title="logs · 8 sources", note="hit 3 of 6 · ring 24/100k · 1,120 lost · ● FOLLOW")


def fleet_heat() -> Widget:
    grid = HeatGrid(id="first")
    marks = {(3, 3): Mark.DOWN, (7, 6): Mark.STALE, (9, 2): Mark.DRAINING, (11, 1): Mark.LOADING, (4, 8): Mark.CORDONED}
    grid.set_groups(
        [
            HeatGroup(
                f"r{g + 1:02}",
                tuple(
                    HeatBlock(
                        f"n{g}-{b}",
                        "".join(
                            heat(max(0.0, wave(g * 7 + b * 2 + i * 1.3) - 0.1), marks.get((g, b))) for i in range(8)
                        ),
                    )
                    for b in range(10)
                ),
            )
            for g in range(13)
        ]
    )
    return Panel(grid, title="gpu heat, 1 cell = 1 GPU", note="group rack ▾ · metric util ▾")


def charts() -> Widget:
    grid = Grid(classes="four")

    def chart(title: str, note: str, severity: Severity | None = None, *, gap: bool = False) -> Panel:
        drawn = BrailleChart(caption="in 184k/s  cached 61%", severity=severity, scale=count)
        drawn.set_values([None if gap and 60 < i < 80 else wave(i / 3) * 20 for i in range(160)], severity=severity)
        return Panel(drawn, title=title, note=note)

    rows = []
    for label, fraction, value, severity in (
        ("ready", 0.94, "118", Severity.NORMAL),
        ("draining", 0.024, "3", Severity.INFO),
        ("down", 0.016, "2", Severity.CRIT),
        ("GPU util", 0.71, "71%", Severity.NORMAL),
        ("VRAM", 0.93, "93%", Severity.WARN),
        ("power", None, UNKNOWN, Severity.NORMAL),
    ):
        row = MeterRow(label)
        row.set(fraction, value, severity)
        rows.append(row)
    latency = MeterRow("TTFT p99")
    latency.set(None, "1890ms", Severity.CRIT, series=[wave(i) for i in range(40)])
    stale = MeterRow("old")
    stale.set(0.5, "50%", stale=True)
    meters = Panel(*rows, latency, stale, title="fleet", note="125 nodes · 1,000 GPUs")
    grid.compose_add_child(meters)
    grid.compose_add_child(chart("tokens/s", "out 21.9k ▲4%"))
    grid.compose_add_child(chart("KV cache", "96% ▲", Severity.CRIT))
    grid.compose_add_child(chart("link lost for a while", "in 9.1k", gap=True))
    return grid


def empty() -> Widget:
    grid = Grid(classes="four")
    for panel in (
        Panel(
            FleetTable(NODE_COLUMNS, empty_text="No node has joined. On a GPU machine: nebula-agent run"),
            title="nodes 0",
        ),
        Panel(LogRing(empty_text="No line yet from chat-1."), title="logs"),
        Panel(HeatGrid(), title="gpu heat"),
        Panel(BrailleChart(), title="tokens/s", note=UNKNOWN),
    ):
        grid.compose_add_child(panel)
    return grid


class Looks(Stage):
    CSS = """
    Grid.four { grid-size: 2 2; }
    """

    def __init__(self, body: Widget, theme: str) -> None:
        header, keys = HeaderBar(), KeyBar()
        header.set_state(
            HeaderState(
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
        )
        names = ["Overview", "Nodes", "Models", "Engine", "Requests", "Logs", "Chat", "Events"]
        shorts = ["Over", "Nodes", "Models", "Eng", "Req", "Logs", "Chat", "Evt"]
        header.set_tabs([Tab(str(i), n, s) for i, (n, s) in enumerate(zip(names, shorts, strict=True), 1)], "2")
        hints = (
            "⏎ drill",
            "/ filter",
            ": command",
            "^P palette",
            "p pause",
            "s scale",
            "d drain",
            "l logs",
            "? help",
            "q back",
        )
        keys.set_keys([KeyHint(*hint.split(" "), priority=i) for i, hint in enumerate(hints)])
        super().__init__(header, body, keys, theme=theme)


async def at_rest(pilot: Pilot[None]) -> None:
    for first in pilot.app.query("#first"):
        first.focus()
        if isinstance(first, LogRing):
            first.drain()
    await settled(pilot)
    # The third row under the cursor shows more than the first.
    if pilot.app.query("FleetTable#first"):
        await pilot.press("j", "j")
    await settled(pilot)


BODIES: dict[str, Callable[[], Widget]] = {
    "nodes": nodes,
    "models": models,
    "logs": logs,
    "heat": fleet_heat,
    "charts": charts,
    "empty": empty,
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("size", [(120, 40), (80, 24)], ids=["120x40", "80x24"])
def test_look(snap_compare: Compare, body: str, size: tuple[int, int]) -> None:
    app: App[None] = Looks(BODIES[body](), "nebula-dark")
    assert snap_compare(app, terminal_size=size, run_before=at_rest)


@pytest.mark.parametrize("theme", EVERY_THEME[1:])
@pytest.mark.parametrize("body", ["nodes", "logs"])
def test_theme(snap_compare: Compare, body: str, theme: str) -> None:
    app: App[None] = Looks(BODIES[body](), theme)
    assert snap_compare(app, terminal_size=(100, 20), run_before=at_rest)


def test_an_unfocused_narrow_stage(snap_compare: Compare) -> None:
    """40 columns by 10 lines: less of everything, and nothing breaks."""
    app: App[None] = Looks(nodes(), "nebula-dark")
    assert snap_compare(app, terminal_size=(40, 10))


async def test_no_color_sends_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = Looks(nodes(), NO_COLOR_THEME)
    async with app.run_test(size=(100, 20)) as pilot:
        await at_rest(pilot)
        styles = [s.style for strip in app.screen._compositor.render_strips() for s in strip if s.style is not None]
        colors = {color for style in styles for color in (style.color, style.bgcolor) if color is not None}
        assert all(color.is_default for color in colors)
        # What colour said is still said: by weight, and by the glyphs in the text.
        assert any(style.dim for style in styles)
        assert any(style.underline for style in styles)
        assert any(line.startswith("║  ▶ node-034") for line in app.lines())
