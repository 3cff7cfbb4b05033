"""The frame around everything: `╭─┤ title ├───┤ note ├─╮`, doubled where the focus is.

Textual's border draws the sides (so layout, focus and themes work as everywhere); only its top line is ours, because a
border title there cannot have a second text at the right, nor our brackets.
"""

from typing import ClassVar

from rich.segment import Segment
from textual import events
from textual.containers import Vertical
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from nebula_core.security.text import clean_text
from nebula_tui.presenters.cells import Severity
from nebula_tui.widgets.painted import CUT, Line, Palette, fit, palette_of, text_width

_ROUND = ("╭─┤ ", " ├", "─", "┤ ", " ├─╮", "╭", "╮")
_DOUBLE = ("╔═╡ ", " ╞", "═", "╡ ", " ╞═╗", "╔", "╗")


class Panel(Vertical):
    """A titled box around its children. `set_title(text)`, `set_note(text, severity)`; focus inside doubles the frame."""

    DEFAULT_CSS = """
    Panel {
        border: round $foreground 35%;
        height: 1fr;
        width: 1fr;
        padding: 0 1;
    }
    Panel.-focused { border: double $accent; }
    """
    ALLOW_SELECT: ClassVar[bool] = False

    def __init__(
        self,
        *children: Widget,
        title: str = "",
        note: str = "",
        name: str | None = None,
        id: str | None = None,  # noqa: A002 - Textual's name
        classes: str | None = None,
    ) -> None:
        super().__init__(*children, name=name, id=id, classes=classes)
        self._title = clean_text(title)
        self._note = clean_text(note)
        self._note_severity = Severity.NORMAL

    def set_title(self, text: str) -> None:
        text = clean_text(text)
        if text != self._title:
            self._title = text
            self._refresh_top()

    def set_note(self, text: str, severity: Severity = Severity.NORMAL) -> None:
        """The text at the right end of the top line."""
        text = clean_text(text)
        if (text, severity) != (self._note, self._note_severity):
            self._note, self._note_severity = text, severity
            self._refresh_top()

    def _refresh_top(self) -> None:
        # Regions count from the content's corner; the top line lies above it.
        left, top = self.content_offset
        self.refresh(Region(-left, -top, self.outer_size.width, 1))

    def on_descendant_focus(self, _: events.DescendantFocus) -> None:
        self.add_class("-focused")

    def on_descendant_blur(self, _: events.DescendantBlur) -> None:
        self.remove_class("-focused")

    def render_lines(self, crop: Region) -> list[Strip]:
        strips = super().render_lines(crop)
        if strips and crop.y == 0:
            style = self.visual_style.rich_style
            top = Strip(Segment.apply_style(self._top(), style), self.outer_size.width)
            for line_filter in self.get_line_filters():
                top = top.apply_filter(line_filter, self.background_colors[1])
            strips[0] = top.crop(crop.x, crop.right)
        return strips

    def _top(self) -> list[Segment]:
        focused = self.has_class("-focused")
        line = Line()
        draw_top(line, self.outer_size.width, self._title, self._note, self._note_severity, palette_of(self), focused)
        return line.finish()


def draw_top(
    line: Line, width: int, title: str, note: str, severity: Severity, palette: Palette, focused: bool
) -> None:
    """The top line in exactly `width` cells; the note gives way to the title, then the title is cut."""
    left, after, rule, before, right, corner, end = _DOUBLE if focused else _ROUND
    frame = palette.border_focus if focused else palette.border
    if width < 4:
        line.add(corner + rule * max(0, width - 2) + end, frame)
        return
    room = width - 2
    taken = 0
    line.add(corner, frame)
    if title and room > 8:
        title = fit(title, min(text_width(title), room - 6))
        line.add(left[1:], frame).add(title, palette.title).add(after, frame)
        taken = text_width(title) + 5
    space = room - taken - 5 - 1
    note = shorten_note(note, space)
    if note:
        line.add(rule * (room - taken - text_width(note) - 5), frame)
        glyph = palette.of(severity) if severity is not Severity.NORMAL else palette.normal
        line.add(before, frame).add(note, glyph).add(right, frame)
        return
    line.add(rule * (room - taken), frame).add(end, frame)


def shorten_note(note: str, room: int) -> str:
    """A note whose last parts left until it fits: parts after " · ", then words. A figure is never cut in two."""
    whole = text_width(note)
    while text_width(note) > room and " · " in note:
        note = note.rpartition(" · ")[0]
    if text_width(note) <= room:
        return note
    while text_width(note) >= room and " " in note:
        note = note.rpartition(" ")[0]
    # Less than half of a phrase says nothing, or something else.
    return f"{note}{CUT}" if text_width(note) < room and 2 * text_width(note) >= min(whole, room) else ""
