"""Screen 7, chat: does it answer, and how fast. One pane through the proxy, or up to three replicas side by side.

Text of a stream is plain while it grows (markdown of an unfinished answer costs more than it shows) and becomes markdown
when it is finished. Pieces are joined and shown at most ten times a second; the first one at once, so that the time to
the first token is seen when it happens.
"""

from functools import partial
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Markdown, TextArea
from textual.worker import Worker

from nebula_core.errors import NebulaError
from nebula_core.security.text import TextCleaner, clean_text
from nebula_tui.adapters.chat import Chat, ChatDelta, ChatDone, ChatOpened, ChatRequest, Turn
from nebula_tui.messages import HintsChanged, Selection, Told
from nebula_tui.presenters import chat
from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.chat import Pane, Progress
from nebula_tui.presenters.states import short_replica
from nebula_tui.presenters.text import TextLine, plain
from nebula_tui.screens.parts import GrowingText, Lines, wrap_words
from nebula_tui.screens.pick import PickDialog
from nebula_tui.screens.view import Host, View
from nebula_tui.widgets import KeyHint, Panel

SHOW_SECONDS = 0.1
MOST_PANES = 3
MAX_TOKENS = 512
#: Of a long question only so many lines are repeated above its answer.
_ASKED_LINES = 6


class Prompt(TextArea):
    """Where the question is typed. Enter sends; so does ^J, as far as the terminal can tell them apart."""

    DEFAULT_CSS = """
    Prompt { height: 1fr; border: none; padding: 0; background: transparent; }
    Prompt:focus { border: none; }
    """

    class Sent(Message):
        """Enter was pressed on a question."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Recalled(Message):
        """Up on the first line: an earlier question."""

        def __init__(self, by: int) -> None:
            super().__init__()
            self.by = by

    def on_mount(self) -> None:
        self.cursor_blink = False  # a blinking cursor repaints twice a second for nothing

    async def _on_key(self, event: events.Key) -> None:
        if event.key in ("enter", "ctrl+j"):
            event.stop()
            event.prevent_default()
            if self.text.strip():
                self.post_message(self.Sent(self.text.strip()))
        elif event.key in ("alt+enter", "shift+enter"):
            event.stop()
            event.prevent_default()
            self.insert("\n")
        elif event.key == "escape":
            # The view decides: stop the answer, or leave the prompt.
            event.prevent_default()
        elif (event.key == "up" and self.cursor_location[0] == 0) or (
            event.key == "down" and self.cursor_location[0] == self.document.line_count - 1
        ):
            event.stop()
            event.prevent_default()
            self.post_message(self.Recalled(-1 if event.key == "up" else 1))

    async def _on_paste(self, event: events.Paste) -> None:
        event.text = clean_text(event.text)


class ChatPane(Panel):
    """One answer beside others: what was said so far, the stream, and its figures."""

    DEFAULT_CSS = """
    ChatPane .scroll {
        height: 1fr; background: transparent; scrollbar-size-vertical: 1; scrollbar-background: $background;
        scrollbar-background-hover: $background; scrollbar-color: $foreground 25%;
    }
    ChatPane .foot { height: 2; }
    ChatPane Markdown { margin: 0; padding: 0; background: transparent; }
    ChatPane .asked { height: auto; margin-bottom: 1; }
    ChatPane MarkdownH1, ChatPane MarkdownH2 { margin: 0 0 1 0; padding: 0; content-align: left middle; }
    ChatPane MarkdownFence { margin: 0 0 1 0; }
    """

    def __init__(self, host: Host, target: str | None, model: str) -> None:
        super().__init__()
        self.host = host
        self.target = target
        self.model = model
        self.state = Pane()
        self.turns: list[Turn] = []
        self._cleaner = TextCleaner()
        self._waiting_text = ""
        self._waiting_pieces = 0
        self._first_ttft: float | None = None
        self._show_due = False
        self._worker: Worker[None] | None = None
        self._grown: GrowingText | None = None
        # Held, not queried: a pane that is being taken away may still be told of its answer.
        self.scroll = VerticalScroll(classes="scroll", can_focus=True)
        self._foot = Lines(classes="foot")

    def compose(self) -> ComposeResult:
        yield self.scroll
        yield self._foot

    @property
    def name_shown(self) -> str:
        return short_replica(self.target, self.model) if self.target else "proxy"

    def on_mount(self) -> None:
        self.refresh_state()

    # --------------------------------------------------------------------------------------------------- one answer

    def ask(self, text: str, door: Chat) -> None:
        """Sends the next turn; an answer that still comes is stopped first."""
        self.stop()
        self.turns.append(Turn("user", text))
        self.state = Pane().asked(text, self.host.now())
        self._cleaner = TextCleaner()
        self._waiting_text, self._waiting_pieces, self._first_ttft = "", 0, None
        self._grown = None
        self._worker = self.run_worker(partial(self._answer, door), group="answer", exit_on_error=False)

    def stop(self) -> None:
        if self._worker is None or not self.state.busy:
            return
        self._worker.cancel()
        # All here, nothing where the worker ends: it may not have begun, and when it ends the next question is asked.
        self._show()
        self.state = self.state.stopped()
        self._keep()
        if self._grown is not None:
            self._grown.set_text(self.state.text, cursor=False)
        self.refresh_state()

    async def _answer(self, door: Chat) -> None:
        scroll = self.scroll
        asked = Lines(classes="asked")
        wrapped = [
            line
            for paragraph in self.turns[-1].text.splitlines()
            for line in wrap_words(paragraph, max(10, scroll.size.width - 3))
        ]
        asked.set_height(
            [
                plain(f"{'  ' if place else '> '}{line}", Severity.ACCENT)
                for place, line in enumerate(wrapped[:_ASKED_LINES])
            ]
        )
        grown = self._grown = GrowingText()
        try:
            await scroll.mount(asked, grown)
            self._to_end()
            self.refresh_state()
            async for event in door.stream(
                ChatRequest(self.model, tuple(self.turns), replica=self.target, max_tokens=MAX_TOKENS)
            ):
                match event:
                    case ChatOpened():
                        self.state = self.state.opened(event.replica, event.decision, event.request_id)
                    case ChatDelta():
                        self._take(event)
                    case ChatDone():
                        self._show()
                        self.state = self.state.done(event.finish_reason, event.prompt_tokens, event.completion_tokens)
        except NebulaError as error:
            self._show()
            self.state = self.state.failed(str(error))
        self._keep()
        await self._finish(grown)

    def _keep(self) -> None:
        """The answer becomes part of the conversation; a question without one is taken back."""
        if self.state.text:
            self.turns.append(Turn("assistant", self.state.text))
        elif self.turns and self.turns[-1].role == "user":
            self.turns.pop()

    async def _finish(self, grown: GrowingText) -> None:
        scroll, error = self.scroll, self.state.error
        at_end = scroll.scroll_y >= scroll.max_scroll_y - 1
        if self.state.text:
            # Foreign text: links must not open a browser by a stray click.
            await scroll.mount(Markdown(self.state.text, open_links=False), before=grown)
        await grown.remove()
        if error is not None:
            failed = Lines(classes="asked")
            message, _, hint = error.partition(". ")
            told: list[TextLine] = [plain(f"▲ {message}", Severity.CRIT)]
            told += [plain(f"  {hint}", Severity.DIM)] if hint else []
            failed.styles.height = len(told)
            failed.set_lines(told)
            await scroll.mount(failed)
        if at_end:
            self._to_end()
        self.refresh_state()
        self.post_message(HintsChanged())

    def _take(self, event: ChatDelta) -> None:
        self._waiting_text += self._cleaner.feed(event.text)
        self._waiting_pieces += 1
        if event.ttft_seconds is not None:
            self._first_ttft = event.ttft_seconds
            self._show()
        elif not self._show_due:
            self._show_due = True
            self.set_timer(SHOW_SECONDS, self._show)

    def _show(self) -> None:
        """Shows what has come since the last time."""
        self._show_due = False
        grown = self._grown
        if self._waiting_pieces:
            self.state = self.state.grown(self._waiting_text, self._waiting_pieces, self._first_ttft, self.host.now())
            self._waiting_text, self._waiting_pieces = "", 0
        if grown is not None and grown.is_attached:
            # Who has scrolled up to read stays there.
            at_end = self.scroll.scroll_y >= self.scroll.max_scroll_y - 1
            grown.set_text(self.state.text, cursor=self.state.busy)
            if at_end:
                self._to_end()
        self.refresh_state()

    def _to_end(self) -> None:
        # Not `anchor`: it puts an answer shorter than the pane at the bottom of it.
        self.call_after_refresh(self.scroll.scroll_end, animate=False)

    # -------------------------------------------------------------------------------------------------------- shown

    def refresh_state(self) -> None:
        self.set_title(chat.pane_title(self.host.fleet, self.model, self.target, self.state, self.size.width))
        self.set_note(*chat.pane_note(self.state, self.host.now()))
        foot = self._foot
        bar = chat.rate_bar(self.state, foot.size.width)
        foot.set_lines([plain(bar, Severity.INFO), plain(chat.figures(self.state, foot.size.width))])

    async def clear(self) -> None:
        self.stop()
        self.workers.cancel_node(self)
        self.turns = []
        self.state = Pane()
        await self.scroll.remove_children()
        self.refresh_state()


class ChatView(View):
    NAME: ClassVar[str] = "chat"
    DEFAULT_CSS = """
    ChatView #ch-session { height: 1; }
    ChatView #ch-panes { height: 1fr; }
    ChatView #ch-verdict { height: 1; }
    ChatView #ch-prompt { height: 6; }
    ChatView.-compact #ch-prompt { height: 5; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+g", "pick", "replicas", show=False, id="chat.pick", priority=True),
        Binding("ctrl+n", "new", "new session", show=False, id="chat.new", priority=True),
        Binding("i", "write", "write", show=False, id="chat.write"),
    ]

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.model: str | None = None
        self.targets: tuple[str, ...] = ()
        self._asked: list[str] = []
        self._at = 0

    def compose(self) -> ComposeResult:
        yield Lines(id="ch-session")
        yield Horizontal(id="ch-panes")
        yield Lines(id="ch-verdict")
        with Panel(id="ch-prompt", title="prompt", note="⏎ send  ^G replicas  ^N new  ↑ earlier  esc leave"):
            yield Prompt(
                id="ch-text",
                placeholder="Ask something: the answer shows TTFT, tokens/s and who gave it.",
                compact=True,
                highlight_cursor_line=False,
                soft_wrap=True,
                show_line_numbers=False,
            )

    @property
    def panes(self) -> list[ChatPane]:
        return list(self.query(ChatPane))

    @property
    def prompt(self) -> Prompt:
        return self.query_one("#ch-text", Prompt)

    def first_focus(self) -> Widget | None:
        return self.prompt

    def refresh_data(self) -> None:
        self.set_class(self.compact, "-compact")
        if self.model is None or (self.model not in self.fleet.deployments and not self._known(self.model)):
            self._choose_first()
        self.query_one("#ch-session", Lines).set_lines(
            [((" ", Severity.DIM), *chat.session_line(self.fleet, self.model, self.targets, MAX_TOKENS, None))]
        )
        for pane in self.panes:
            pane.refresh_state()
        self._verdict()

    def _known(self, model: str) -> bool:
        return any(replica.model == model for replica in self.fleet.replicas.values())

    def _choose_first(self) -> None:
        ready = sorted(view.name for view in self.fleet.deployments.values() if view.replicas_ready)
        names = ready or sorted(self.fleet.deployments)
        if names and self.model not in names:
            self.set_targets(names[0], ())

    def _verdict(self) -> None:
        panes = self.panes
        line = chat.verdict([pane.name_shown for pane in panes], [pane.state for pane in panes])
        if not line and panes and panes[0].state.decision:
            line = (("routed   ", Severity.DIM), (panes[0].state.decision, Severity.NORMAL))
        self.query_one("#ch-verdict", Lines).set_lines([((" ", Severity.DIM), *line)] if line else [])

    def set_targets(self, model: str, targets: tuple[str, ...]) -> None:
        """One pane through the proxy, or one pinned pane per replica."""
        targets = targets[:MOST_PANES]
        if (model, targets) == (self.model, self.targets) and self.panes:
            return
        self.model, self.targets = model, targets
        box = self.query_one("#ch-panes", Horizontal)
        for pane in self.panes:
            pane.stop()
        box.remove_children()
        box.mount(*(ChatPane(self.host, target, model) for target in (targets or (None,))))

    def show_thing(self, selection: Selection) -> None:
        replicas = selection.replicas(self.fleet)
        if selection.kind == "deployment":
            self.set_targets(selection.name, ())
        elif replicas:
            self.set_targets(replicas[0].model, (replicas[0].id,))
        self.refresh_data()

    # --------------------------------------------------------------------------------------------------------- keys

    async def on_prompt_sent(self, event: Prompt.Sent) -> None:
        if self.model is None:
            self.post_message(Told("no model to talk to: deploy one first (nebula apply -f FILE)", "warn"))
            return
        try:
            door = await self.host.open_chat()
        except NebulaError as error:
            self.post_message(Told(str(error), "crit"))
            return
        self._asked.append(event.text)
        self._at = len(self._asked)
        self.prompt.clear()
        for pane in self.panes:
            pane.ask(event.text, door)

    def on_prompt_recalled(self, event: Prompt.Recalled) -> None:
        self._at = max(0, min(self._at + event.by, len(self._asked)))
        self.prompt.text = self._asked[self._at] if self._at < len(self._asked) else ""
        self.prompt.move_cursor(self.prompt.document.end)

    def back(self) -> bool:
        """Escape: stops answers that come; else leaves the prompt, so that letters are keys again."""
        if any(pane.state.busy for pane in self.panes):
            for pane in self.panes:
                pane.stop()
            return True
        if self.prompt.has_focus and self.panes:
            self.panes[0].scroll.focus()
            self.post_message(HintsChanged())
            return True
        return False

    def action_write(self) -> None:
        self.prompt.focus()
        self.post_message(HintsChanged())

    async def action_new(self) -> None:
        for pane in self.panes:
            await pane.clear()
        self._verdict()

    def action_pick(self) -> None:
        def picked(choice: tuple[str, tuple[str, ...]] | None) -> None:
            if choice is not None:
                self.set_targets(*choice)
                self.refresh_data()
            self.prompt.focus()

        self.app.push_screen(PickDialog(self.host, MOST_PANES, (self.model, self.targets)), picked)

    @property
    def selection(self) -> Selection | None:
        if self.targets:
            return Selection("replica", self.targets[0])
        return Selection("deployment", self.model) if self.model is not None else None

    @property
    def request(self) -> str | None:
        """The one the first pane showed last."""
        return next((pane.state.request_id for pane in self.panes if pane.state.request_id is not None), None)

    def copy_text(self) -> str | None:
        said = [turn for pane in self.panes[:1] for turn in pane.turns]
        return "\n\n".join(f"> {turn.text}" if turn.role == "user" else turn.text for turn in said) or None

    def hints(self) -> list[KeyHint]:
        if self.prompt.has_focus:
            return [
                KeyHint("⏎", "send", "enter", 0),
                KeyHint("esc", "stop, then leave", "escape", 0),
                KeyHint("^G", "replicas", "ctrl+g", 0),
                KeyHint("^N", "new session", "ctrl+n", 1),
                KeyHint("↑", "earlier", "up", 2),
                *([KeyHint("F2", "why", "f2", 1)] if self.request is not None else []),
                KeyHint("^P", "palette", "ctrl+p", 2),
            ]
        return [
            KeyHint("i", "write", "i", 0),
            KeyHint("^G", "replicas", "ctrl+g", 0),
            KeyHint("^N", "new session", "ctrl+n", 1),
            *([KeyHint("W", "why", "W", 1)] if self.request is not None else []),
            KeyHint("tab", "pane", "tab", 2),
            KeyHint("l", "logs", "l", 1),
            KeyHint("y", "copy markdown", "y", 2),
            KeyHint("1-8", "screens", "1", 1),
            KeyHint("?", "help", "question_mark", 0),
        ]


__all__ = ["ChatPane", "ChatView", "Progress", "Prompt"]
