"""A small tokenizer of the simulated engine's own: reversible, deterministic, with stable ids.

Text is cut into pieces the way GPT-2 does (a word with the space before it, up to three digits, a run of punctuation
or white space). A piece is one token if the vocabulary has it, else the longest vocabulary entries from its left, down
to single bytes, so every text has an encoding and `decode(encode(text)) == text`.

Ids: 0..255 are the bytes; then pairs of letters, digits and white space; then the pieces of the corpus and of common
prompts in their order; the three special tokens come last. Specials are recognised inside text, as real servers do,
and are left out when decoding.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from string import ascii_lowercase, ascii_uppercase, digits

from nebula_agent.simulator import corpus

_PIECE = re.compile(r" ?[^\W\d_]+| ?\d{1,3}| ?[^\s\w]+| ?_+|\s+(?!\S)|\s")
#: Characters of the longest token there can be.
LONGEST_TOKEN = 16


def _entries() -> Iterable[str]:
    yield from (a + b for a in ascii_lowercase for b in ascii_lowercase)
    yield from (" " + a for a in ascii_lowercase + ascii_uppercase + digits)
    yield from (a + b for a in digits for b in digits)
    yield from ("\n\n", "  ", "   ", "    ", " (", ' "', " -", "- ", "**", " **", "```", "\n```", "##", "###")
    texts = (
        corpus.OPENERS + corpus.SENTENCES + corpus.LIST_INTROS + corpus.ITEMS + corpus.CODE + corpus.CODE_INTROS
    ) + corpus.HEADINGS
    for text in texts:
        yield from _PIECE.findall(text)
        yield from _PIECE.findall(" " + text)
    for word in corpus.COMMON_WORDS.split():
        yield word
        yield " " + word


class Tokenizer:
    """Text to ids and back; `end_of_turn` is the token that ends an answer."""

    def __init__(self) -> None:
        # Non-ASCII pieces stay out of the vocabulary: their bytes travel as single tokens, so that readers meet
        # characters cut in two, as they do with real engines.
        words = [word for word in dict.fromkeys(_entries()) if word.isascii() and 1 < len(word) <= LONGEST_TOKEN]
        self._bytes: list[bytes] = [bytes((value,)) for value in range(256)] + [word.encode() for word in words]
        self._ids: dict[str, int] = {chr(value): value for value in range(128)}
        self._ids.update({word: 256 + index for index, word in enumerate(words)})
        self.end_of_text = len(self._bytes)
        self.start_of_turn = self.end_of_text + 1
        self.end_of_turn = self.end_of_text + 2
        self.specials = {
            "<|endoftext|>": self.end_of_text,
            "<|im_start|>": self.start_of_turn,
            "<|im_end|>": self.end_of_turn,
        }
        self.size = self.end_of_text + len(self.specials)
        self._special_names = {token: name for name, token in self.specials.items()}
        self._split_specials = re.compile("(" + "|".join(map(re.escape, self.specials)) + ")")
        self._piece_ids = functools.lru_cache(maxsize=16384)(self._encode_piece)

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        for part in self._split_specials.split(text):
            special = self.specials.get(part)
            if special is not None:
                tokens.append(special)
                continue
            for piece in _PIECE.findall(part):
                tokens.extend(self._piece_ids(piece))
        return tokens

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        whole = self._ids.get(piece)
        if whole is not None:
            return (whole,)
        tokens: list[int] = []
        at = 0
        while at < len(piece):
            for length in range(min(LONGEST_TOKEN, len(piece) - at), 0, -1):
                token = self._ids.get(piece[at : at + length])
                if token is not None:
                    tokens.append(token)
                    at += length
                    break
            else:
                tokens.extend(piece[at].encode("utf-8", "surrogatepass"))
                at += 1
        return tuple(tokens)

    def token_bytes(self, token: int, *, keep_special: bool = False) -> bytes:
        """The bytes of one token; nothing for a special one, as `skip_special_tokens` has it."""
        if token < self.end_of_text:
            return self._bytes[token]
        return self._special_names[token].encode() if keep_special else b""

    def decode(self, tokens: Sequence[int], *, keep_special: bool = False) -> str:
        return b"".join(self.token_bytes(token, keep_special=keep_special) for token in tokens).decode(
            "utf-8", "replace"
        )

    def token_text(self, token: int) -> str:
        return self.token_bytes(token, keep_special=True).decode("utf-8", "replace")


@functools.cache
def tokenizer() -> Tokenizer:
    """The one tokenizer of the process; building it takes some 10 ms."""
    return Tokenizer()
