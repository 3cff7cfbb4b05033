"""Prometheus text, sans I/O: the few series that are wanted, out of tens of kilobytes, once a second per engine.

A scrape of vLLM is 60 KB and 560 series; a general parser spends 10 ms on it, which is a percent of a core per engine.
But few of its lines are wanted, and of those only the values differ from scrape to scrape: what stands before the value (a
name with its labels) is taken apart once and then known. And mostly the lines stand where they stood: while a
page has as many lines as before, only the places of the wanted ones are looked at, and a line that is another one there
sends us through the whole page again. (A wanted line in the place of an unwanted one would not show: so all are read anew
every so often.)
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
#: Pages in a row of which only the known places are read.
_QUICK_PAGES = 30


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
        #: What stands before the last space of a wanted line: name and labels.
        self._heads: dict[str, _Head] = {}
        #: Of the last page that was read whole: its lines, and where the wanted ones stood, with what precedes the value.
        self._lines = -1
        self._places: list[tuple[int, str, _Head]] = []
        self._quick_left = 0

    def sibling(self) -> "Scanner":
        """One for the pages of another engine of the same kind: what lines mean is known to both, where they stand is not."""
        made = Scanner(())
        made._names, made._heads = self._names, self._heads
        return made

    def scan(self, text: str) -> Scan:
        """The wanted series by name, in order; a name that is not there is not in the result. Bad lines are skipped."""
        lines = text.split("\n")
        if len(lines) == self._lines and self._quick_left > 0:
            self._quick_left -= 1
            quick = self._at_known_places(lines)
            if quick is not None:
                return quick
        return self._whole(lines)

    def _at_known_places(self, lines: list[str]) -> Scan | None:
        """None: something stands where something else stood."""
        found: dict[str, list[Series]] = {}
        for place, start, (name, labels) in self._places:
            line = lines[place]
            if not line.startswith(start):
                return None
            try:
                value = float(line[len(start) :])
            except ValueError:
                return None
            series = found.get(name)
            if series is None:
                found[name] = [Series(labels, value)]
            else:
                series.append(Series(labels, value))
        return {name: tuple(series) for name, series in found.items()}

    def _whole(self, lines: list[str]) -> Scan:
        found: dict[str, list[Series]] = {}
        heads, names = self._heads, self._names
        self._lines, self._places, self._quick_left = len(lines), [], _QUICK_PAGES
        for place, line in enumerate(lines):
            head, _, tail = line.rpartition(" ")
            known = heads.get(head)
            if known is None:
                first = line.partition("{")[0].split(None, 1)
                if not first or first[0] not in names:
                    continue
                matched = self._taken_apart(line, head)
                if matched is None:
                    continue
                known, tail = matched
            try:
                value = float(tail)
            except ValueError:
                self._quick_left = 0
                continue
            # A line with more after its value is never known by its place.
            if line == f"{head} {tail}":
                self._places.append((place, f"{head} ", known))
            else:
                self._quick_left = 0
            found.setdefault(known[0], []).append(Series(known[1], value))
        return {name: tuple(series) for name, series in found.items()}

    def _taken_apart(self, line: str, head: str) -> tuple[_Head, str] | None:
        """A line seen for the first time: its head and its value; None when it is not wanted."""
        matched = _LINE.match(line)
        if matched is None or matched[1] not in self._names:
            return None
        known = (matched[1], _parsed(matched[2]))
        # Only a line that ends with its value is known by its head: a timestamp would be part of it.
        if head and matched.end() == len(line):
            if len(self._heads) >= _HEADS_KEPT:
                self._heads.clear()
            self._heads[head] = known
        return known, matched[3]


def _parsed(text: str | None) -> Mapping[str, str]:
    if not text:
        return _NONE
    return MappingProxyType({name: _unescaped(value) for name, value in _LABEL.findall(text)})


def _unescaped(value: str) -> str:
    if "\\" not in value:
        return value
    return _ESCAPED.sub(lambda found: _PLAIN.get(found[1], found[0]), value)
