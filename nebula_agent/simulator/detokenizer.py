"""Tokens to text as they come: whole characters only, stop strings cut out, nothing sent that may still be one."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from nebula_agent.simulator.tokenizer import tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text that is certain now; `stop` is the stop string that ended the answer."""

    text: str
    stop: str | None = None


class Detokenizer:
    """The text of one sequence. The stop string itself is left out, unless it is to be included."""

    def __init__(self, stops: Sequence[str] = (), *, include_stop: bool = False, keep_special: bool = False) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stop for stop in stops if stop)
        self._include_stop = include_stop
        self._keep_special = keep_special
        self._held = ""

    def feed(self, tokens: Sequence[int], *, last: bool) -> TextDelta:
        """`last` lets go of all that was held back."""
        vocabulary = tokenizer()
        data = b"".join(vocabulary.token_bytes(token, keep_special=self._keep_special) for token in tokens)
        text = self._held + self._decoder.decode(data, last)
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            self._held = ""
            return TextDelta(text[: at + len(stop)] if self._include_stop else text[:at], stop)
        hold = 0 if last else self._undecided(text)
        self._held = text[len(text) - hold :]
        return TextDelta(text[: len(text) - hold])

    def _undecided(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
