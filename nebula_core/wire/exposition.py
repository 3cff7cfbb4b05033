"""Prometheus text, sans I/O: the few series that are wanted, out of tens of kilobytes, once a second per engine.

A scrape of vLLM is 60 KB and 560 series; a general parser spends 10 ms on it, which is a percent of a core per engine.
So each line is judged by its name alone, and only wanted ones are taken apart. Label sets repeat from scrape to
scrape: they are parsed once and kept.
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
_LABEL_SETS_KEPT = 4096


class Series(NamedTuple):
    """One line of the exposition."""

    labels: Mapping[str, str]
    value: float


Scan = Mapping[str, tuple[Series, ...]]


class Scanner:
    """Reads the series with these names (exact, with `_total`, `_bucket`, …) and skips everything else."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._labels: dict[str, Mapping[str, str]] = {}

    def scan(self, text: str) -> Scan:
        """The wanted series by name, in order; a name that is not there is not in the result. Bad lines are skipped."""
        found: dict[str, list[Series]] = {}
        names = self._names
        for line in text.split("\n"):
            brace = line.find("{")
            name = line[:brace] if brace > 0 else line.partition(" ")[0].partition("\t")[0]
            if name not in names and name.strip() not in names:
                continue
            matched = _LINE.match(line.strip())
            if matched is None:
                continue
            try:
                value = float(matched[3])
            except ValueError:
                continue
            found.setdefault(matched[1], []).append(Series(self._parsed(matched[2]), value))
        return {name: tuple(series) for name, series in found.items()}

    def _parsed(self, text: str | None) -> Mapping[str, str]:
        if not text:
            return _NONE
        known = self._labels.get(text)
        if known is None:
            if len(self._labels) >= _LABEL_SETS_KEPT:
                self._labels.clear()
            pairs = _LABEL.findall(text)
            known = self._labels[text] = MappingProxyType({name: _unescaped(value) for name, value in pairs})
        return known


def _unescaped(value: str) -> str:
    if "\\" not in value:
        return value
    return _ESCAPED.sub(lambda found: _PLAIN.get(found[1], found[0]), value)
