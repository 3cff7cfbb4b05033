"""The fleet table under load, to be measured from outside: N rows of 12 columns, every row updated at R Hz.

Run it in the pty harness (`ptybench.py`, which starts it and measures CPU, bytes and key to paint), or bare to look at:

    ptybench.py --marker 'node-0000' --seconds 20 --keys 'down*30,up*30' --rounds 2 \
        --expect '48;2;38;50;72' -- python benchmarks/tui_table.py --rows 8000
"""

import argparse
import math
import random
import time

from textual.app import App, ComposeResult

from nebula_tui.presenters.cells import Cell, Column, LazyRows, Order, Row, Severity, age, count, heat, percent
from nebula_tui.themes import DEFAULT, register_themes
from nebula_tui.widgets import FleetTable, HeaderBar, HeaderState, KeyBar, KeyHint, Panel

COLUMNS = (
    Column("node", "NODE", 9),
    Column("state", "STATE", 8, flash=True),
    Column("gpu", "GPU", 4, "right"),
    Column("util", "UTIL%", 13, "right", 0, 5),
    Column("vram", "VRAM%", 13, "right", 2, 5),
    Column("kv", "KV%", 5, "right", 3),
    Column("temp", "TEMP°C", 6, "right", 4),
    Column("power", "W", 5, "right", 5),
    Column("run", "RUN", 4, "right", 6),
    Column("tok", "tok/s", 6, "right", 6),
    Column("age", "AGE", 5, "right", 1),
    Column("shade", "HEAT", 5, priority=7),
)


class Fleet:
    """Numbers for N GPUs, new ones each tick: a list of floats, so that making them is not what is measured."""

    def __init__(self, rows: int) -> None:
        self.ids = [f"node-{i // 8:04}/{i % 8}" for i in range(rows)]
        self.at = {id_: i for i, id_ in enumerate(self.ids)}
        self.noise = [random.random() for _ in range(rows)]
        self.tick = 0

    def util(self, id_: str) -> float:
        i = self.at[id_]
        return 0.5 + 0.4 * math.sin(i / 50 + self.tick / 5) + 0.1 * (self.noise[(i + self.tick) % len(self.ids)] - 0.5)

    def row(self, id_: str) -> Row:
        util = self.util(id_)
        node, _, gpu = id_.partition("/")
        hot = util > 0.88
        return Row(
            id_,
            (
                Cell(node),
                Cell("▲ hot" if hot else "ready", Severity.CRIT if hot else Severity.NORMAL),
                Cell(gpu),
                Cell.gauge(util, Severity.WARN if hot else Severity.NORMAL),
                Cell.gauge(min(1.0, util + 0.1)),
                Cell(percent(util * 0.9)),
                Cell(count(40 + util * 40)),
                Cell(count(100 + util * 600)),
                Cell(count(util * 48)),
                Cell(count(util * 3000)),
                Cell(age(0.2 + self.noise[self.tick % len(self.noise)]), Severity.DIM),
                Cell(heat(util) * 5),
            ),
        )

    def order(self, id_: str, key: str) -> Order:
        return id_ if key == "node" else self.util(id_)

    def rows(self) -> LazyRows:
        self.tick += 1
        return LazyRows(self.ids, self.row, self.order, lambda id_: id_)


class TableApp(App[None]):
    def __init__(self, rows: int, hertz: float, sort: str | None) -> None:
        super().__init__()
        self.fleet, self.hertz, self.sort = Fleet(rows), hertz, sort
        self.started = time.monotonic()

    def compose(self) -> ComposeResult:
        yield HeaderBar()
        yield Panel(FleetTable(COLUMNS), title="gpus")
        yield KeyBar()

    def on_mount(self) -> None:
        register_themes(self)
        self.theme = DEFAULT
        self.query_one(KeyBar).set_keys([KeyHint("j k", "move"), KeyHint("< >", "sort"), KeyHint("^C", "quit")])
        table = self.query_one(FleetTable)
        if self.sort:
            table.sort_by(self.sort, descending=True)
        table.focus()
        self.update()
        self.set_interval(1 / self.hertz, self.update)

    def update(self) -> None:
        table = self.query_one(FleetTable)
        table.set_rows(self.fleet.rows())
        clock = f"{time.monotonic() - self.started:5.0f}s"
        self.query_one(HeaderBar).set_state(HeaderState("bench", data_age=0.2, role="RO", clock=clock))
        self.query_one(Panel).set_note(f"{table.shown_count:,} shown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--hertz", type=float, default=1.0)
    parser.add_argument("--sort", help="column key, as util: the order changes with every tick")
    args = parser.parse_args()
    TableApp(args.rows, args.hertz, args.sort).run()


if __name__ == "__main__":
    main()
