"""The filter line of a list: `llama`, `!batch`, `~q3b`, `util>90 state=ready model=qwen*`; all terms must hold.

A bare term is a regular expression over the row's text, ignoring case (text that is no valid expression is taken
literally); `!` negates, `~` matches its letters in order (fuzzy). `key OP value` compares a column: `> < >= <=` as
numbers (an unknown value matches none), `=` and `!=` by shell pattern, or as numbers where both are. A key that is no
column makes the term a bare one.
"""

import fnmatch
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from nebula_tui.presenters.cells import Order

ValueOf = Callable[[str], Order]
"""Value of a column by its key."""

_COMPARISON: Final = re.compile(r"([\w%.-]+?)(>=|<=|!=|>|<|=)(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RowFilter:
    """A parsed filter; `matches(text, value_of)` says whether a row is shown."""

    source: str
    terms: tuple[Callable[[str, ValueOf], bool], ...] = ()

    def matches(self, text: str, value_of: ValueOf) -> bool:
        return all(term(text, value_of) for term in self.terms)

    def __bool__(self) -> bool:
        return bool(self.terms)


def parse_filter(source: str, keys: Collection[str] = ()) -> RowFilter:
    """Never fails: what is not a comparison is text to look for."""
    known = {key.casefold(): key for key in keys}
    return RowFilter(source, tuple(_term(word, known) for word in source.split() if word not in ("!", "~")))


def _term(word: str, known: dict[str, str]) -> Callable[[str, ValueOf], bool]:
    found = _COMPARISON.fullmatch(word)
    if found and (key := known.get(found[1].casefold())) is not None:
        return _comparison(key, found[2], found[3])
    if word.startswith("!"):
        unwanted = _pattern(word[1:])
        return lambda text, _: unwanted.search(text) is None
    if word.startswith("~"):
        fuzzy = re.compile(".*?".join(map(re.escape, word[1:])), re.IGNORECASE | re.DOTALL)
        return lambda text, _: fuzzy.search(text) is not None
    wanted = _pattern(word)
    return lambda text, _: wanted.search(text) is not None


def _comparison(key: str, operator: str, operand: str) -> Callable[[str, ValueOf], bool]:
    number = _number(operand)
    if operator in ("=", "!="):
        glob = re.compile(fnmatch.translate(operand), re.IGNORECASE)
        wanted = operator == "="

        def same(_: str, value_of: ValueOf) -> bool:
            value = value_of(key)
            if isinstance(value, str):
                return (glob.match(value) is not None) == wanted
            return (value is not None and value == number) == wanted

        return same

    def ordered(_: str, value_of: ValueOf) -> bool:
        value = value_of(key)
        if number is None or value is None or isinstance(value, str):
            return False
        match operator:
            case ">":
                return value > number
            case "<":
                return value < number
            case ">=":
                return value >= number
            case _:
                return value <= number

    return ordered


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error:
        return re.compile(re.escape(text), re.IGNORECASE)


def _number(text: str) -> float | None:
    """`90`, `90%`, `2k`, `64k`; None when it is no number."""
    scales = {"k": 1e3, "M": 1e6, "G": 1e9, "%": 1.0}
    scale = scales.get(text[-1:])
    try:
        return float(text[:-1]) * scale if scale else float(text)
    except ValueError:
        return None
