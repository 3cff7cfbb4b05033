"""Prometheus text, sans I/O: the few series that are wanted, out of tens of kilobytes, once a second per engine.

A scrape of vLLM is 60 KB and 560 series; a general parser spends 10 ms on it, which is a percent of a core per engine.
But from scrape to scrape only the values differ: what stands before the value of a line (a name with its labels, or the
text of a comment) is taken apart once and then known, wanted or not.
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

#: name, labels without braces (quoted values may hold anything), value; a timestamp or exemplar may follow.
_LINE = re.compile(r'([^{\s]+)[ \t]*(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?[ \t]*([^\s#]+)')
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_PLAIN = {"n": "\n", '"': '"', "\\": "\\"}
_NONE: Mapping[str, str] = MappingProxyType({})
#: An endpoint whose labels change all the time must not fill memory.
_HEADS_KEPT = 8192


class Series(NamedTuple):
    """One line of the exposition."""

    labels: Mapping[str, str]
    value: float


Scan = Mapping[str, tuple[Series, ...]]
_Head = tuple[str, Mapping[str, str]]


class Scanner:
    """Reads the series with these names (exact, with `_total`, `_bucket`, …) and skips everything else."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        #: What stands before the last space of a line: name and labels, or None for what is skipped.
        self._heads: dict[str, _Head | None] = {}

    def scan(self, text: str) -> Scan:
        """The wanted series by name, in order; a name that is not there is not in the result. Bad lines are skipped."""
        found: dict[str, list[Series]] = {}
        heads = self._heads
        for line in text.split("\n"):
            head, _, tail = line.rpartition(" ")
            try:
                known = heads[head]
            except KeyError:
                matched = self._taken_apart(line, head)
                if matched is None:
                    continue
                known, tail = matched
            if known is None:
                continue
            try:
                value = float(tail)
            except ValueError:
                continue
            found.setdefault(known[0], []).append(Series(known[1], value))
        return {name: tuple(series) for name, series in found.items()}

    def _taken_apart(self, line: str, head: str) -> tuple[_Head, str] | None:
        """A line seen for the first time: its head and its value; None when it is not wanted."""
        matched = _LINE.match(line)
        # Only a line that ends with its value is known by its head: a timestamp would be part of it.
        plain = matched is None or matched.end() == len(line)
        known: _Head | None = None
        if matched is not None and matched[1] in self._names and not line.startswith("#"):
            known = (matched[1], _parsed(matched[2]))
        if plain and head:
            if len(self._heads) >= _HEADS_KEPT:
                self._heads.clear()
            self._heads[head] = known
        return None if known is None or matched is None else (known, matched[3])


def _parsed(text: str | None) -> Mapping[str, str]:
    if not text:
        return _NONE
    return MappingProxyType({name: _unescaped(value) for name, value in _LABEL.findall(text)})


def _unescaped(value: str) -> str:
    if "\\" not in value:
        return value
    return _ESCAPED.sub(lambda found: _PLAIN.get(found[1], found[0]), value)
