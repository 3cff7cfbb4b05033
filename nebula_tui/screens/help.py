"""The help overlay: every key that works here, and the `:` commands."""

from collections.abc import Sequence
from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen

from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.text import BLANK, TextLine
from nebula_tui.screens.parts import Lines
from nebula_tui.widgets import KeyHint, Panel

_Section = tuple[str, tuple[tuple[str, str], ...]]

_SECTIONS: Final[tuple[_Section, ...]] = (
    (
        "everywhere",
        (
            ("1-8", "screens"),
            (":", "command: scale NAME=N, drain NAME, logs NAME"),
            ("^P", "palette: every screen, thing and action"),
            ("/", "filter: text !not ~fuzzy util>90; logs: search"),
            ("esc", "back, clear the filter"),
            ("[ ] -", "earlier, later, last screen"),
            ("p", "pause what is seen; data go on coming"),
            ("z", "faults only"),
            ("y", "copy"),
            ("q", "quit"),
        ),
    ),
    (
        "lists",
        (
            ("j k g G", "down, up, first, last; ^d ^u half a page"),
            ("⏎", "open"),
            ("space *", "mark, mark all shown"),
            ("< > I", "sort by the column left or right, invert"),
            ("← →", "fold, unfold"),
        ),
    ),
    (
        "jump to",
        (
            ("l", "logs"),
            ("t", "chat"),
            ("e", "events"),
            ("n", "its node"),
            ("m", "its model"),
            ("R", "its requests"),
            ("W F2", "why this request"),
        ),
    ),
)
_ACTIONS: Final = (
    "act: each shows the server's plan first",
    (
        ("s", "scale"),
        ("d", "drain a node or replica"),
        ("c U", "cordon, uncordon a node"),
        ("r", "restart"),
        ("x", "cancel a request"),
    ),
)
_MORE: Final = (
    (
        "logs",
        (
            ("f", "follow"),
            ("n N", "next, previous hit"),
            ("& -", "only with, without"),
            ("L w t", "level, wrap, time"),
            ("^S", "save"),
        ),
    ),
    (
        "chat",
        (
            ("⏎", "send (alt+⏎ new line)"),
            ("esc", "stop the answer, then leave the prompt"),
            ("^G", "choose model or replicas"),
            ("^N", "new session"),
        ),
    ),
)


def _lines(sections: Sequence[_Section]) -> list[TextLine]:
    lines: list[TextLine] = []
    for name, keys in sections:
        if lines:
            lines.append(BLANK)
        lines.append(((name, Severity.ACCENT),))
        lines.extend(((f"  {key:<9}", Severity.NORMAL), (label, Severity.DIM)) for key, label in keys)
    return lines


class HelpScreen(ModalScreen[None]):
    DEFAULT_CSS = """
    HelpScreen { align: center middle; background: $background 40%; }
    HelpScreen Panel { width: 116; max-width: 100%; height: auto; max-height: 100%; background: $surface; }
    HelpScreen VerticalScroll {
        height: auto; max-height: 100%; background: $surface; scrollbar-size-vertical: 1;
        scrollbar-background: $surface; scrollbar-color: $foreground 25%;
    }
    HelpScreen Lines { height: auto; }
    HelpScreen Horizontal { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,enter", "leave", "leave", show=False),
    ]

    def __init__(self, title: str, hints: list[KeyHint], *, may_act: bool) -> None:
        super().__init__()
        self._title, self._hints, self._may_act = title, hints, may_act

    def compose(self) -> ComposeResult:
        with Panel(title=f"keys · {self._title}", note="esc close"), VerticalScroll(), Horizontal():
            yield Lines(id="help-left")
            yield Lines(id="help-right")

    def on_mount(self) -> None:
        here = tuple((hint.key, hint.label) for hint in self._hints if hint.label)
        left = [("here", here), *_SECTIONS[1:], *([_ACTIONS] if self._may_act else [])]
        right = [_SECTIONS[0], *_MORE]
        if self.app.size.width < 100:
            left, right = [*left, *right], []
            self.query_one("#help-right").display = False
        self.query_one("#help-left", Lines).set_height(_lines(left))
        self.query_one("#help-right", Lines).set_height(_lines(right))
        self.query_one(VerticalScroll).focus()

    def action_leave(self) -> None:
        self.dismiss(None)
