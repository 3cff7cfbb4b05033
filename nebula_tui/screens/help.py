"""The help overlay: every key that works here, and the `:` commands."""

from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.text import BLANK, TextLine
from nebula_tui.screens.parts import Lines
from nebula_tui.widgets import KeyHint, Panel

_SECTIONS: Final[tuple[tuple[str, tuple[tuple[str, str], ...]], ...]] = (
    (
        "everywhere",
        (
            ("1-8", "screens"),
            (":", "command: nodes, models /text, scale NAME=N, drain NAME, logs NAME, theme NAME, q"),
            ("^P", "palette: every screen, thing and action"),
            ("/", "filter: text, !not, ~fuzzy, util>90 state=ready; in logs: search"),
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
    ("jump to", (("l", "logs"), ("t", "chat"), ("e", "events"), ("n", "its node"), ("m", "its model"))),
)
_ACTIONS: Final = (
    "act: each shows the server's plan first",
    (("s", "scale"), ("d", "drain a node or replica"), ("c U", "cordon, uncordon a node"), ("r", "restart")),
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


class HelpScreen(ModalScreen[None]):
    DEFAULT_CSS = """
    HelpScreen { align: center middle; background: $background 40%; }
    HelpScreen Panel { width: 92; max-width: 100%; height: auto; max-height: 100%; background: $surface; }
    HelpScreen VerticalScroll { height: auto; max-height: 100%; scrollbar-size-vertical: 1; background: $surface; }
    HelpScreen Lines { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,enter", "leave", "leave", show=False),
    ]

    def __init__(self, title: str, hints: list[KeyHint], *, may_act: bool) -> None:
        super().__init__()
        self._title, self._hints, self._may_act = title, hints, may_act

    def compose(self) -> ComposeResult:
        with Panel(title=f"keys · {self._title}", note="esc close"), VerticalScroll():
            yield Lines(id="help-lines")

    def on_mount(self) -> None:
        self.query_one("#help-lines", Lines).set_height(self._lines())
        self.query_one(VerticalScroll).focus()

    def _lines(self) -> list[TextLine]:
        here = tuple((hint.key, hint.label) for hint in self._hints if hint.label)
        sections = [("here", here), *_SECTIONS, *([_ACTIONS] if self._may_act else []), *_MORE]
        lines: list[TextLine] = []
        for name, keys in sections:
            if lines:
                lines.append(BLANK)
            lines.append(((name, Severity.ACCENT),))
            lines.extend(((f"  {key:<9}", Severity.NORMAL), (label, Severity.DIM)) for key, label in keys)
        return lines

    def action_leave(self) -> None:
        self.dismiss(None)
