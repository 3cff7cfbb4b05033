"""The one sanitiser for everything that reaches a terminal: escape sequences, controls, bidi and invisible marks go.

Foreign text (a log line, a model name, an engine's error, a chat answer) may hold bytes that a terminal obeys: set the
clipboard (OSC 52), change the title, clear the screen, answer queries. Textual writes them through verbatim, so the text
must be clean before a widget sees it. Theory of operation:

* The escape grammar is ECMA-48 as xterm reads it, in its 7-bit (ESC [) and 8-bit (U+009B) forms. CSI ends at its final
  byte; OSC, DCS, APC, PM and SOS end at ST, BEL, CAN, SUB - or at a line break, or after `_LONGEST` characters, so that
  one unterminated sequence cannot swallow a whole stream after it.
* What comes out holds no ESC and no C1, so cleaning it again changes nothing: removal can never assemble a new sequence.
* `TextCleaner` keeps its state between chunks, because a stream may cut a sequence anywhere; `clean_text` is the same
  machine fed once. Text of nothing but printable ASCII, the common case by far, costs one scan.
* Removed as well: bidi overrides and isolates, zero-width and other invisible format characters, variation selectors and
  tag characters (they make the width of a line unknowable), line and paragraph separators. Lone surrogates, which could
  not be written to any terminal, become U+FFFD.
"""

import re
from typing import Final

_TAB: Final = "    "
_LONGEST: Final = 4096

# Everything that must not pass as it is. Ranges: C0, DEL + C1, soft hyphen, Arabic letter mark, Hangul fillers, Mongolian
# vowel separator and selectors, zero-width and bidi, separators, invisible operators and isolates, surrogates, variation
# selectors, BOM, interlinear annotations, musical format, tags and further selectors.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)

_GROUND, _ESCAPE, _INTERMEDIATE, _CSI, _STRING, _STRING_ESCAPE = range(6)
_STRING_7BIT: Final = frozenset("]PX^_")
_STRING_8BIT: Final = frozenset("\x90\x98\x9d\x9e\x9f")
_STRING_ENDS: Final = frozenset("\x07\x18\x1a\x9c")


class TextCleaner:
    """Cleans a stream that arrives in pieces; the pieces joined come out as if they had been cleaned at once."""

    __slots__ = ("_newlines", "_seen", "_state")

    def __init__(self, *, newlines: bool = True) -> None:
        self._newlines = newlines
        self._state = _GROUND
        self._seen = 0

    def feed(self, chunk: str) -> str:
        """What of `chunk` may be shown; the start of a sequence that is not complete yet is held back."""
        if self._state == _GROUND and is_clean(chunk):
            return chunk
        out: list[str] = []
        at, end = 0, len(chunk)
        while at < end:
            if self._state == _GROUND:
                found = _UNSAFE.search(chunk, at)
                if found is None:
                    out.append(chunk[at:])
                    break
                out.append(chunk[at : found.start()])
                at = found.end()
                out.append(self._meet(found[0]))
            elif self._advance(chunk[at]):
                at += 1
        return "".join(out)

    def finish(self) -> str:
        """Ends the text; a sequence that was never completed is dropped. The cleaner is as new afterwards."""
        self._state = _GROUND
        self._seen = 0
        return ""

    def _meet(self, char: str) -> str:
        """An unsafe character in plain text: enters a sequence, or is replaced."""
        if char == "\n":
            return "\n" if self._newlines else " "
        if char == "\t":
            return "\t" if self._newlines else _TAB
        self._seen = 0
        if char == "\x1b":
            self._state = _ESCAPE
        elif char == "\x9b":
            self._state = _CSI
        elif char in _STRING_8BIT:
            self._state = _STRING
        elif "\ud800" <= char <= "\udfff":
            return "\ufffd"
        return ""

    def _advance(self, char: str) -> bool:
        """One character inside a sequence. False: it is not part of it, and is read again from plain text."""
        self._seen += 1
        state = self._state
        if self._seen > _LONGEST:
            self._state = _GROUND
            return False
        if state in (_STRING, _STRING_ESCAPE):
            return self._advance_string(char)
        if state == _ESCAPE and char == "[":
            self._state = _CSI
        elif state == _ESCAPE and char in _STRING_7BIT:
            self._state = _STRING
        elif state in (_ESCAPE, _INTERMEDIATE) and " " <= char <= "/":
            self._state = _INTERMEDIATE
        elif state in (_ESCAPE, _INTERMEDIATE) and "0" <= char <= "~":
            self._state = _GROUND
        elif state == _CSI and " " <= char <= "?":
            pass
        elif state == _CSI and "@" <= char <= "~":
            self._state = _GROUND
        else:
            # A control, a new ESC or a character no sequence may hold: the sequence is over, whatever it was.
            self._state = _GROUND
            return False
        return True

    def _advance_string(self, char: str) -> bool:
        if self._state == _STRING_ESCAPE:
            if char == "\\":
                self._state = _GROUND
                return True
            # ESC inside a string ends it and opens a sequence of its own.
            self._state = _ESCAPE
            return False
        if char == "\x1b":
            self._state = _STRING_ESCAPE
        elif char in _STRING_ENDS:
            self._state = _GROUND
        elif char == "\n":
            self._state = _GROUND
            return False
        return True


def is_clean(text: str) -> bool:
    """Whether `text` may reach a terminal as it is, on one line."""
    if text.isascii():
        return text.isprintable()
    return _UNSAFE.search(text) is None


def clean_text(text: str, *, newlines: bool = False, max_length: int | None = None) -> str:
    """`text` without anything a terminal would obey or hide.

    With `newlines`, line breaks and tabs stay; without, they become spaces. `max_length` counts characters; a longer
    text is cut and ends in "…".
    """
    if not is_clean(text):
        text = TextCleaner(newlines=newlines).feed(text)
    if max_length is not None and len(text) > max_length:
        text = text[: max_length - 1] + "…" if max_length > 0 else ""
    return text


def escape_json(text: str) -> str:
    """A JSON document of the same meaning in which everything a terminal would obey or hide stands as an escape.

    JSON itself asks that of C0 alone. Line breaks are kept: outside of strings they are layout.
    """
    return _UNSAFE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    if found[0] == "\n":
        return found[0]
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
