"""Small widgets the screens share: lines of text, text that grows, the banner, the command line."""

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len, chop_cells
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.widgets import Input

from nebula_core.security.text import clean_text
from nebula_tui.presenters.text import TextLine
from nebula_tui.widgets.painted import Line, Painted, fit


class Lines(Painted):
    """A few lines in pieces of different severity; `set_lines` repaints those that differ."""

    DEFAULT_CSS = """
    Lines { height: 1fr; width: 1fr; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id, classes=classes)
        self._lines: tuple[TextLine, ...] = ()
        self._stale = False

    def set_lines(self, lines: Sequence[TextLine], *, stale: bool = False) -> None:
        new = tuple(lines)
        if stale != self._stale or len(new) != len(self._lines):
            self._lines, self._stale = new, stale
            self.refresh()
            return
        changed = [
            Region(0, y, self.size.width, 1)
            for y, (old, now) in enumerate(zip(self._lines, new, strict=True))
            if old != now
        ]
        self._lines = new
        if changed:
            self.refresh(*changed)

    def set_height(self, lines: Sequence[TextLine]) -> None:
        """As `set_lines`, and as high as they are."""
        self.styles.height = max(1, len(lines))
        self.set_lines(lines)

    @property
    def lines(self) -> tuple[TextLine, ...]:
        return self._lines

    def draw(self, y: int, width: int, line: Line) -> None:
        if y >= len(self._lines):
            return
        palette = self.palette
        for text, severity in self._lines[y]:
            left = width - line.width
            if left <= 0:
                return
            cleaned = clean_text(text, newlines=False)
            shown = cleaned if cell_len(cleaned) <= left else fit(cleaned, left)
            line.add(shown, palette.dim if self._stale else palette.of(severity))


class Banner(Painted):
    """One line across the screen when something about the link must be known; takes no room otherwise."""

    DEFAULT_CSS = """
    Banner { height: 1; width: 1fr; display: none; background: $error 30%; }
    Banner.-shown { display: block; }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.text = ""

    def set_text(self, text: str | None) -> None:
        text = text or ""
        if text != self.text:
            self.text = text
            self.set_class(bool(text), "-shown")
            self.refresh()

    def draw(self, y: int, width: int, line: Line) -> None:
        if not y:
            line.add(fit(f" ▲ {self.text}", width), self.palette.crit)


class GrowingText(Painted):
    """Plain text that grows at its end, wrapped at words: what a stream looks like until it is finished.

    Only the last paragraph is wrapped again when text comes, so a long answer costs no more than a short one.
    """

    DEFAULT_CSS = """
    GrowingText { height: auto; width: 1fr; }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._done: list[str] = []
        self._tail = ""
        self._tail_lines: list[str] = []
        self._wrapped_at = 0
        self.text = ""
        self.cursor = False

    def set_text(self, text: str, *, cursor: bool) -> None:
        """`text` may only have grown; anything else starts anew."""
        if not text.startswith(self.text) or self._width() != self._wrapped_at:
            self._restart()
        added = text[len(self.text) :]
        self.text = text
        moved = cursor != self.cursor
        self.cursor = cursor
        if not added and not moved:
            return
        before = len(self._done) + len(self._tail_lines)
        *whole, self._tail = (self._tail + added).split("\n")
        for paragraph in whole:
            self._done.extend(wrap_words(paragraph, self._width()))
        self._tail_lines = wrap_words(self._tail, self._width())
        self.refresh(layout=len(self._done) + len(self._tail_lines) != before)

    def _restart(self) -> None:
        self._done, self._tail, self._tail_lines, self.text = [], "", [], ""
        self._wrapped_at = self._width()

    def _width(self) -> int:
        # One cell is kept for the cursor.
        return max(1, self.size.width - 1)

    def on_resize(self) -> None:
        if self._width() != self._wrapped_at:
            text = self.text
            self._restart()
            self.set_text(text, cursor=self.cursor)

    def get_content_height(self, container: object, viewport: object, width: int) -> int:  # noqa: ARG002 - Textual's shape
        return max(1, len(self._done) + len(self._tail_lines))

    def draw(self, y: int, width: int, line: Line) -> None:
        lines = len(self._done) + len(self._tail_lines)
        if y < len(self._done):
            line.add(self._done[y], self.palette.normal)
        elif y < lines:
            line.add(self._tail_lines[y - len(self._done)], self.palette.normal)
        if self.cursor and y == lines - 1 and line.width < width:
            line.add("▌", self.palette.accent)


def wrap_words(text: str, width: int) -> list[str]:
    """At spaces where there are any, else where the line is full; an empty text is one empty line."""
    lines: list[str] = []
    current, used = "", 0
    for word in _words(text):
        size = cell_len(word.rstrip())
        if used and used + size > width:
            lines.append(current.rstrip())
            current, used = "", 0
        if size > width:
            *full, rest = chop_cells(word, width)
            lines.extend(full)
        else:
            rest = word
        current += rest
        used += cell_len(rest)
    lines.append(current.rstrip() if lines else current)
    return lines


def _words(text: str) -> list[str]:
    """Words with the spaces after them, so that joined they are the text again."""
    words: list[str] = []
    start = 0
    for place in range(1, len(text)):
        if text[place] != " " and text[place - 1] == " ":
            words.append(text[start:place])
            start = place
    words.append(text[start:])
    return words


class CommandLine(Input):
    """The line for `:` commands and `/` filters; hidden until asked for."""

    DEFAULT_CSS = """
    CommandLine { display: none; height: 1; border: none; padding: 0 1; background: $surface; }
    CommandLine:focus { border: none; }
    CommandLine.-shown { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "leave", show=False),
        Binding("tab", "complete", "complete", show=False),
        Binding("up", "recall(-1)", "earlier", show=False),
        Binding("down", "recall(1)", "later", show=False),
    ]

    class Entered(Message):
        """Enter was pressed."""

        def __init__(self, mode: str, text: str) -> None:
            super().__init__()
            self.mode, self.text = mode, text

    class Typed(Message):
        """The text changed."""

        def __init__(self, mode: str, text: str) -> None:
            super().__init__()
            self.mode, self.text = mode, text

    class Left(Message):
        """Escape: whatever was typed is dropped."""

        def __init__(self, mode: str) -> None:
            super().__init__()
            self.mode = mode

    class CompletionAsked(Message):
        """Tab was pressed."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id, compact=True, select_on_focus=False)
        self.mode = ":"
        self._history: dict[str, list[str]] = {}
        self._at = 0

    def on_mount(self) -> None:
        self.cursor_blink = False  # a blinking cursor repaints twice a second for nothing

    def ask(self, mode: str, text: str = "") -> None:
        """Shows the line; `mode` is `:`, `/`, or another mark the screen understands."""
        self.mode = mode
        self.placeholder = {":": "command: nodes, scale NAME=N, drain NODE, logs NAME … tab completes"}.get(
            mode, "filter: text, !not, ~fuzzy, column>value"
        )
        self._at = len(self._history.get(mode, ()))
        self.add_class("-shown")
        with self.prevent(Input.Changed):
            self.value = text
        self.cursor_position = len(text)
        self.focus()

    def close(self) -> None:
        self.remove_class("-shown")
        with self.prevent(Input.Changed):
            self.value = ""

    def _on_paste(self, event: events.Paste) -> None:
        # Textual calls this before Input's own handler, which then takes the clean text.
        event.text = clean_text(event.text, newlines=False)

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.has_class("-shown"):
            self.post_message(self.Typed(self.mode, self.value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        text = self.value
        if text:
            self._history.setdefault(self.mode, []).append(text)
        self.post_message(self.Entered(self.mode, text))

    def action_leave(self) -> None:
        self.post_message(self.Left(self.mode))

    def action_complete(self) -> None:
        self.post_message(self.CompletionAsked(self.value))

    def action_recall(self, by: int) -> None:
        known = self._history.get(self.mode, [])
        self._at = max(0, min(self._at + by, len(known)))
        self.value = known[self._at] if self._at < len(known) else ""
        self.cursor_position = len(self.value)
