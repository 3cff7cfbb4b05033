"""Which token comes next: the "model" of the simulated engine, a pure function of the tokens so far.

Theory. A cut stream is continued on another replica by sending prompt and answer so far as token ids (the way measured
to be exact on vLLM). So the next token may depend on nothing but the ids: not on where the prompt ended, not on who
made them. `next_token` therefore looks for the last `<|im_start|>` (answers never hold one): all up to and including
the line `assistant` is what was asked, and its digest chooses a text without end; the number of tokens after it is the
place in that text. Without a chat template there is no such mark, and the first token alone chooses the text.

A text is a row of sections (paragraph, list, code) cut into tokens. It has an opener and a natural length: the first
section end past 40 to 150 tokens, where the end-of-turn token comes unless it is ignored. A sampling seed
(temperature > 0) only chooses another text.
"""

import zlib
from array import array
from collections.abc import Sequence
from functools import lru_cache

from nebula_agent.simulator import corpus
from nebula_agent.simulator.tokenizer import tokenizer

_MASK = (1 << 64) - 1


def mix(seed: int, index: int) -> int:
    """64 well-mixed bits of a seed and an index (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def digest(tokens: Sequence[int]) -> int:
    return zlib.crc32(array("I", tokens).tobytes())


class Text:
    """The endless text of one seed; grows by whole sections as it is read."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tokens: list[int] = []
        self._ends: set[int] = set()
        self._sections = 0
        self._natural_length = 40 + mix(seed, 0) % 110

    def token(self, place: int) -> int:
        self._grow_past(place)
        return self._tokens[place]

    def ends_at(self, place: int) -> bool:
        """Whether an answer of `place` tokens is complete here."""
        self._grow_past(place)
        return place in self._ends

    def _grow_past(self, place: int) -> None:
        while len(self._tokens) <= place:
            if len(self._tokens) >= self._natural_length:
                self._ends.add(len(self._tokens))
            section = self._section(self._sections)
            self._sections += 1
            self._tokens.extend(tokenizer().encode(section if self._sections == 1 else "\n\n" + section))

    def _choose(self, texts: Sequence[str], index: int) -> str:
        return texts[mix(self._seed, index) % len(texts)]

    def _some(self, texts: Sequence[str], index: int, count: int) -> list[str]:
        """`count` neighbours of a random place: never the same one twice in a section."""
        start = mix(self._seed, index) % len(texts)
        return [texts[(start + step) % len(texts)] for step in range(count)]

    def _section(self, number: int) -> str:
        base = 1000 * (number + 1)
        kind = mix(self._seed, base) % 8
        if number == 0:
            return f"{self._choose(corpus.OPENERS, base)} {self._choose(corpus.SENTENCES, base + 1)}"
        if kind == 0:
            return f"{self._choose(corpus.CODE_INTROS, base + 1)}\n\n{self._choose(corpus.CODE, base + 2)}"
        if kind in {1, 2}:
            items = self._some(corpus.ITEMS, base + 1, 3)
            marks = ("- ", "- ", "- ") if kind == 1 else ("1. ", "2. ", "3. ")
            lines = "\n".join(mark + item for mark, item in zip(marks, items, strict=True))
            return f"{self._choose(corpus.LIST_INTROS, base + 2)}\n\n{lines}"
        sentences = " ".join(self._some(corpus.SENTENCES, base + 1, 1 + mix(self._seed, base + 2) % 3))
        return f"{self._choose(corpus.HEADINGS, base + 3)}\n\n{sentences}" if kind == 3 else sentences


@lru_cache(maxsize=512)
def _text(seed: int) -> Text:
    return Text(seed)


def answer_start(tokens: Sequence[int]) -> int | None:
    """Where the last assistant turn of a chat begins; None if the tokens are no open assistant turn."""
    vocabulary = tokenizer()
    role = vocabulary.encode("assistant\n")
    for at in range(len(tokens) - 1, -1, -1):
        if tokens[at] == vocabulary.start_of_turn:
            start = at + 1 + len(role)
            return start if list(tokens[at + 1 : start]) == role else None
        if tokens[at] == vocabulary.end_of_turn:
            return None
    return None


class Continuation:
    """The rest of one sequence: the text its tokens chose, read on from the place they reached."""

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        seed: int | None = None,
        ignore_end: bool = False,
        min_tokens: int = 0,
        script: Sequence[int] | None = None,
    ) -> None:
        start = answer_start(tokens)
        asked = tokens[:1] if start is None else tokens[:start]
        chosen = digest(asked)
        self._text = _text(chosen if seed is None else mix(chosen, seed))
        self._place = len(tokens) - len(asked)
        # A script (structured output, a forced tool call) replaces the text and is read from the same place. Without
        # a chat template nobody can tell where the answer began: then it begins here.
        self._script = script
        self._script_place = 0 if start is None else self._place
        self._ignore_end = ignore_end
        self._end_allowed_from = self._place + min_tokens

    def next_token(self) -> int:
        place = self._place
        self._place += 1
        if self._script is not None:
            at = self._script_place
            self._script_place += 1
            return self._script[at] if at < len(self._script) else tokenizer().end_of_turn
        if not self._ignore_end and place >= self._end_allowed_from and self._text.ends_at(place):
            return tokenizer().end_of_turn
        return self._text.token(place)
