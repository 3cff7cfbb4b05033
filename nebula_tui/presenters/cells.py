"""What presenters hand to widgets: cells, columns, rows, and numbers as an operator reads them.

A presenter turns records into `Row`s of `Cell`s; a widget paints them. Colour means severity and nothing else, and
always travels with a glyph or a word. Units stand in column titles, so most formats here give bare numbers; unknown is
"–" everywhere, never 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from nebula_tui.presenters.glyphs import Mark, braille, heat, meter, sparkline

__all__ = [
    "UNKNOWN",
    "Cell",
    "Column",
    "LazyRows",
    "Mark",
    "Order",
    "Row",
    "Severity",
    "age",
    "braille",
    "clock_time",
    "count",
    "duration",
    "gib",
    "heat",
    "meter",
    "milliseconds",
    "percent",
    "rate",
    "ratio",
    "short_count",
    "sparkline",
    "stale_age",
]

UNKNOWN: Final = "–"

Order = float | str | None
"""What a cell sorts by; None sorts last, whichever way."""


class Severity(StrEnum):
    """The only meanings a colour has."""

    NORMAL = "normal"
    OK = "ok"
    INFO = "info"
    WARN = "warn"
    CRIT = "crit"
    DIM = "dim"
    ACCENT = "accent"

    @property
    def glyph(self) -> str:
        """`▲ ● ○`, so that the state is told apart without its colour; "" where there is none."""
        return _GLYPHS.get(self, "")


_GLYPHS: Final = {Severity.CRIT: "▲", Severity.WARN: "●", Severity.INFO: "○"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of a row. `bar` and `series` are drawn as wide as the column leaves room, before the text."""

    text: str = ""
    severity: Severity = Severity.NORMAL
    bold: bool = False
    bar: float | None = None
    """0..1 draws a meter; None draws none unless `has_bar`."""
    series: tuple[float | None, ...] = ()
    """History, oldest first, drawn as a sparkline."""
    parts: tuple[tuple[str, Severity], ...] = ()
    """Text in pieces of different severity, as a strip of GPUs; `text` is their sum."""
    order: Order = None
    """Sort key; the text when None and the text is not "–"."""
    has_bar: bool = False
    """Keep the room of the meter where its value is unknown."""
    heat: bool = False
    """The text is heat glyphs: each is painted as what it stands for."""

    @classmethod
    def of(cls, *parts: tuple[str, Severity], order: Order = None, bold: bool = False) -> "Cell":
        return cls(text="".join(text for text, _ in parts), parts=parts, order=order, bold=bold)

    @classmethod
    def gauge(cls, fraction: float | None, severity: Severity = Severity.NORMAL, *, text: str | None = None) -> "Cell":
        """A meter and its percentage: `■■■■■■·· 71%`."""
        shown = f"{percent(fraction)}%" if text is None and fraction is not None else (text or UNKNOWN)
        return cls(text=shown, severity=severity, bar=fraction, order=fraction, has_bar=True)

    @classmethod
    def strip(cls, glyphs: str, *, order: Order = None) -> "Cell":
        """A row of heat glyphs, as the GPUs of a node: `██▓▲░···`."""
        return cls(text=glyphs, heat=True, order=order)

    @property
    def sort_key(self) -> Order:
        if self.order is not None:
            return self.order
        return None if self.text in ("", UNKNOWN) else self.text


@dataclass(frozen=True, slots=True)
class Column:
    """`width` is what it likes, `min_width` what it can live with; columns of a high `priority` number leave first,
    those of priority 0 never. One `flex` column takes the room that is left.
    """

    key: str
    title: str
    width: int
    align: Literal["left", "right"] = "left"
    priority: int = 0
    min_width: int = 0
    flex: bool = False
    sortable: bool = True
    flash: bool = False
    """Changed cells are bold for one tick."""

    @property
    def narrowest(self) -> int:
        return self.min_width or self.width


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: `id` is its identity across updates; `depth` and `expandable` make a tree of the list."""

    id: str
    cells: tuple[Cell, ...]
    depth: int = 0
    expandable: bool = False
    expanded: bool = True
    """Where a tree row starts; afterwards the table remembers what the operator did."""
    stale: bool = False
    """The whole row is dimmed: its figures are old."""


def _no_text(_id: str) -> str:
    return ""


def _no_order(_id: str, _key: str) -> Order:
    return None


@dataclass(frozen=True, slots=True)
class LazyRows:
    """Rows made only when they come into sight: 8,000 GPUs cost a screenful of cells per tick, not 96,000.

    `order(id, column key)` and `text(id)` serve sorting and filtering without making cells.
    """

    ids: Sequence[str]
    make: Callable[[str], Row]
    order: Callable[[str, str], Order] = field(default=_no_order)
    text: Callable[[str], str] = field(default=_no_text)


# ------------------------------------------------------------------------------------------------------------- numbers


def count(value: float | None) -> str:
    """`1,214`."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def short_count(value: float | None) -> str:
    """`812`, `9.1k`, `184k`, `1.2M`: at most four characters, for tokens and lines per second."""
    if value is None:
        return UNKNOWN
    for limit, divisor, unit in (
        (999.5, 1, ""),
        (999_500, 1e3, "k"),
        (999_500_000, 1e6, "M"),
        (float("inf"), 1e9, "G"),
    ):
        if abs(value) < limit:
            scaled = value / divisor
            return f"{scaled:.1f}{unit}" if divisor > 1 and abs(scaled) < 9.95 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"


def rate(value: float | None, unit: str = "/s") -> str:
    """`9.1k/s`."""
    return UNKNOWN if value is None else f"{short_count(value)}{unit}"


def percent(fraction: float | None) -> str:
    """`71` for 0.71; 100 only when it is, 0 only when it is."""
    if fraction is None:
        return UNKNOWN
    whole = round(fraction * 100)
    if whole >= 100 > fraction * 100:
        whole = 99
    if whole == 0 and fraction > 0:
        whole = 1
    return str(whole)


def gib(value: float | None, *, digits: int = 0) -> str:
    """Bytes as GiB, `131` or with digits `131.2`."""
    return UNKNOWN if value is None else f"{value / 2**30:,.{digits}f}"


def ratio(part: int | None, whole: int | None) -> str:
    """`6/8`, `6/–`."""
    return f"{UNKNOWN if part is None else part}/{UNKNOWN if whole is None else whole}"


def milliseconds(seconds: float | None) -> str:
    """`17ms`, `640ms`, `1890ms`, and from ten seconds `14.2s`."""
    if seconds is None:
        return UNKNOWN
    return f"{seconds * 1000:.0f}ms" if seconds < 10 else f"{seconds:.1f}s"


def duration(seconds: float | None) -> str:
    """`0.41s`, `8.1s`, `41s`, `4m12s`, `3h04m`, `3d04h`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.2f}s" if seconds < 1 else f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def age(seconds: float | None) -> str:
    """How old something is: `0.4s`, `48s`, `7m`, `3h`, `3d`; four characters at most."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    for limit, divisor, unit in ((99.5, 1, "s"), (5970, 60, "m"), (172_800, 3600, "h"), (float("inf"), 86_400, "d")):
        if seconds < limit:
            return f"{seconds / divisor:.0f}{unit}"
    return f"{seconds:.0f}s"


def stale_age(seconds: float | None, limit: float) -> Cell:
    """An age that says so when it is past `limit` seconds: `~7.2s`."""
    old = seconds is None or seconds > limit
    text = f"~{age(seconds)}" if old and seconds is not None else age(seconds)
    return Cell(text, Severity.WARN if old else Severity.DIM, order=seconds)


def clock_time(seconds_of_day: float, *, digits: int = 0) -> str:
    """`14:22:07` or, with digits, `14:22:07.114`, from seconds since midnight."""
    scale: int = 10**digits
    ticks = int(seconds_of_day * scale + 0.5) % (86_400 * scale)
    whole, part = divmod(ticks, scale)
    base = f"{whole // 3600:02d}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{base}.{part:0{digits}d}" if digits else base
