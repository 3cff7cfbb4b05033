"""The lines around every screen: who and where we are, which screens there are, which keys work now.

All three shorten themselves instead of wrapping: parts leave by importance, never half of the clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.style import Style
from textual import events
from textual.geometry import Region
from textual.message import Message

from nebula_tui.presenters.cells import Severity, age
from nebula_tui.widgets.painted import Line, Painted, Palette, fit, text_width

_BAR: Final = " ▏"
_REVERSE: Final = Style(reverse=True)


@dataclass(frozen=True, slots=True)
class HeaderState:
    """What the first line says. `link` is the state of the watch; `data_age` how old what is shown is."""

    context: str
    link: Severity = Severity.OK
    link_word: str = "LIVE"
    data_age: float | None = None
    role: str = ""
    """`RW` or `RO`, and who: `RW admin@ops`."""
    production: bool = False
    badges: tuple[tuple[str, Severity], ...] = ()
    """Words that must not be overlooked: `SIMULATED`, `⏺ rec`, `PAUSED`."""
    crit: int = 0
    warn: int = 0
    clock: str = ""


@dataclass(frozen=True, slots=True)
class Tab:
    """A screen in the second line; `short` is its name below 100 columns."""

    key: str
    label: str
    short: str = ""


@dataclass(frozen=True, slots=True)
class KeyHint:
    """A key that works now; `key` is as shown (`^P`), `press` as Textual calls it (`ctrl+p`) when a click presses it.

    Hints of a high `priority` number leave first.
    """

    key: str
    label: str
    press: str = ""
    priority: int = 1


class HeaderBar(Painted):
    """Two lines: identity and alarms, and the screens. `set_state`, `set_tabs`; a click posts `TabClicked`."""

    DEFAULT_CSS = """
    HeaderBar { height: 2; width: 1fr; dock: top; }
    """

    class TabClicked(Message):
        """A screen's name was clicked; `key` is its digit."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(name=name, id=id, classes=classes)
        self._state = HeaderState("")
        self._tabs: tuple[Tab, ...] = ()
        self._active = ""
        self._places: list[tuple[int, int, str]] = []

    def set_state(self, state: HeaderState) -> None:
        if state != self._state:
            self._state = state
            self.refresh(Region(0, 0, self.size.width, 1))

    def set_tabs(self, tabs: Sequence[Tab], active: str) -> None:
        """`active` is the key of the screen shown."""
        if (tuple(tabs), active) != (self._tabs, self._active):
            self._tabs, self._active = tuple(tabs), active
            self.refresh(Region(0, 1, self.size.width, 1))

    def draw(self, y: int, width: int, line: Line) -> None:
        if y == 0:
            self._draw_identity(line, width, self.palette)
        elif y == 1:
            self._draw_tabs(line, width, self.palette)

    def _draw_identity(self, line: Line, width: int, palette: Palette) -> None:
        state = self._state
        glyph = "●" if state.link in (Severity.OK, Severity.NORMAL) else "▲" if state.link is Severity.CRIT else "~"
        link = f"{glyph} {state.link_word}" + ("" if state.data_age is None else f" {age(state.data_age)}")
        context = f"⚑ {state.context}" if state.production else state.context
        left: list[_Part] = [
            ("nebula", palette.title, 5),
            (context, palette.accent + palette.title if state.production else palette.title, 0),
            (link, palette.of(state.link), 0),
            (state.role, palette.normal, 3),
            *((text, palette.of(severity), 1) for text, severity in state.badges),
        ]
        long_form = width >= 100
        crit = f"▲{state.crit}" + (" crit" if long_form else "")
        warn = f"●{state.warn}" + (" warn" if long_form else "")
        right: list[_Part] = [
            (crit, palette.crit if state.crit else palette.dim, 2),
            (warn, palette.warn if state.warn else palette.dim, 2),
            (state.clock, palette.normal, 1),
        ]
        pieces = [piece for piece in left if piece[0]]
        ends = [piece for piece in right if piece[0]]
        while _width(pieces) + _ends_width(ends) + 1 > width and any(p[2] for p in pieces + ends):
            least = max(pieces + ends, key=lambda piece: piece[2])
            (ends if least in ends else pieces).remove(least)
        room = width - _ends_width(ends)
        for place, (text, style, _) in enumerate(pieces):
            line.add(_BAR if place else " ◆ ", palette.border if place else palette.accent)
            line.add(fit(text, max(0, min(text_width(text), room - line.width))), style)
        line.pad_to(room, palette.normal)
        for place, (text, style, _) in enumerate(ends):
            line.add(_between(ends, place), palette.border).add(text, style)

    def _draw_tabs(self, line: Line, width: int, palette: Palette) -> None:
        full = [(tab, f"{tab.key} {tab.label}") for tab in self._tabs]
        if sum(text_width(text) + 2 for _, text in full) + 1 > width:
            full = [(tab, f"{tab.key}{tab.short or tab.label[:4]}") for tab in self._tabs]
        if sum(text_width(text) + 2 for _, text in full) + 1 > width:
            full = [(tab, text if tab.key == self._active else tab.key) for tab, text in full]
        self._places = []
        line.add(" ", palette.normal)
        for tab, text in full:
            start = line.width
            if tab.key == self._active:
                line.add("[", palette.accent).add(text, palette.title).add("]", palette.accent)
            else:
                line.add(" ", palette.dim).add(text, palette.dim).add(" ", palette.dim)
            self._places.append((start, line.width, tab.key))

    def on_click(self, event: events.Click) -> None:
        where = event.get_content_offset(self)
        if where is not None and where.y == 1:
            for start, end, key in self._places:
                if start <= where.x < end:
                    self.post_message(self.TabClicked(key))


_Part = tuple[str, Style, int]
"""Text, its style, and how soon it leaves: 0 never, the highest number first."""


def _width(pieces: Sequence[_Part]) -> int:
    return 1 + sum(text_width(text) + 2 for text, _, _ in pieces)


def _between(ends: Sequence[_Part], place: int) -> str:
    """Before a part at the right: the counts stand together, the clock apart."""
    if place == 0:
        return ""
    return _BAR if ":" in ends[place][0] else " "


def _ends_width(ends: Sequence[_Part]) -> int:
    return 1 + sum(text_width(text) + len(_between(ends, place)) for place, (text, _, _) in enumerate(ends))


class KeyBar(Painted):
    """One line of the keys that work now; `set_keys`. A click on one posts `KeyClicked`."""

    DEFAULT_CSS = """
    KeyBar { height: 1; width: 1fr; dock: bottom; }
    """

    class KeyClicked(Message):
        """`press` is the key as Textual calls it."""

        def __init__(self, press: str) -> None:
            super().__init__()
            self.press = press

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(name=name, id=id, classes=classes)
        self._hints: tuple[KeyHint, ...] = ()
        self._message: tuple[str, Severity] | None = None
        self._places: list[tuple[int, int, str]] = []

    def set_keys(self, hints: Sequence[KeyHint]) -> None:
        if tuple(hints) != self._hints:
            self._hints = tuple(hints)
            self.refresh()

    def show_message(self, text: str, severity: Severity = Severity.NORMAL) -> None:
        """A short answer in place of the keys; "" brings them back."""
        message = (text, severity) if text else None
        if message != self._message:
            self._message = message
            self.refresh()

    def draw(self, y: int, width: int, line: Line) -> None:
        if y:
            return
        palette = self.palette
        self._places = []
        if self._message is not None:
            text, severity = self._message
            glyph = f"{severity.glyph} " if severity.glyph else ""
            line.add(fit(f" {glyph}{text}", width), palette.of(severity))
            return
        hints = list(self._hints)
        gap = 2
        while hints and _hints_width(hints, gap) > width:
            if gap == 2:
                gap = 1
                continue
            hints.remove(max(hints, key=lambda hint: (hint.priority, hints.index(hint))))
        for hint in hints:
            line.add(" " * (gap if line.width else 1), palette.normal)
            start = line.width
            line.add(hint.key, palette.accent).add(f" {hint.label}", palette.dim)
            self._places.append((start, line.width, hint.press or hint.key))

    def on_click(self, event: events.Click) -> None:
        where = event.get_content_offset(self)
        if where is not None:
            for start, end, press in self._places:
                if start <= where.x < end:
                    self.post_message(self.KeyClicked(press))


def _hints_width(hints: Sequence[KeyHint], gap: int) -> int:
    return 1 + sum(text_width(hint.key) + 1 + text_width(hint.label) + gap for hint in hints) - gap


__all__ = ["HeaderBar", "HeaderState", "KeyBar", "KeyHint", "Tab"]
