"""Tokens to text as they come: whole characters only, stop strings cut out, nothing sent that may still be one."""

from collections.abc import Sequence
from dataclasses import dataclass

from nebula_agent.simulator.tokenizer import tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text that is certain now; `stop` is the stop string that ended the answer."""

    text: str
    stop: str | None = None


class Detokenizer:
    """The text of one sequence. The stop string itself is left out, unless it is to be included.

    As in vLLM a token gives all of its text or none: while the tokens so far end inside a character nothing of the
    latest ones leaves. And as in vLLM the last `longest stop string - 1` characters always wait, unless stop strings are
    included. Who resumes a stream relies on both (`nebula_proxy.decisions.resume`).
    """

    def __init__(self, stops: Sequence[str] = (), *, include_stop: bool = False, keep_special: bool = False) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._include_stop = include_stop
        self._keep_special = keep_special
        self._longest = max(map(len, self._stops), default=1) - 1
        self._pending = b""
        #: The end of what has left, and what waits: a stop string may reach over both.
        self._shown = ""
        self._held = ""

    def feed(self, tokens: Sequence[int], *, last: bool) -> TextDelta:
        """`last` lets go of all that was held back."""
        vocabulary = tokenizer()
        text = self._held
        for token in tokens:
            self._pending += vocabulary.token_bytes(token, keep_special=self._keep_special)
            decoded = self._pending.decode("utf-8", "replace")
            if not decoded.endswith("\N{REPLACEMENT CHARACTER}"):
                text += decoded
                self._pending = b""
        if last and self._pending:
            text += self._pending.decode("utf-8", "replace")
            self._pending = b""
        window = self._shown + text
        found = [(at, stop) for stop in self._stops if (at := window.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            end = at + len(stop) if self._include_stop else at
            self._held = ""
            return TextDelta(window[len(self._shown) : end], stop)
        hold = 0 if last or self._include_stop else min(self._longest, len(text))
        self._held = text[len(text) - hold :]
        ready = text[: len(text) - hold]
        self._shown = (self._shown + ready)[-self._longest :] if self._longest else ""
        return TextDelta(ready)
