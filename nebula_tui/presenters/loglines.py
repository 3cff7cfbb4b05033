"""Log lines as the log pane keeps them: small tuples that know their level, and filters over them.

Lines come at up to tens of thousands a second, so an entry is a NamedTuple, and its level is looked for - a few words
near the start of the line - only when somebody asks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from nebula_core.records.views import LogLine
from nebula_core.security.text import clean_text, is_clean
from nebula_tui.presenters.cells import Severity


class Level(IntEnum):
    """Ordered, so that "at least INFO" is a comparison. NONE is a line that names no level."""

    TRACE = 0
    DEBUG = 1
    INFO = 2
    NONE = 3
    WARN = 4
    ERROR = 5
    FATAL = 6

    @property
    def severity(self) -> Severity:
        return _SEVERITIES[self]


_SEVERITIES: Final = {
    Level.TRACE: Severity.DIM,
    Level.DEBUG: Severity.DIM,
    Level.INFO: Severity.NORMAL,
    Level.NONE: Severity.NORMAL,
    Level.WARN: Severity.WARN,
    Level.ERROR: Severity.CRIT,
    Level.FATAL: Severity.CRIT,
}

_WORDS: Final = {
    "TRACE": Level.TRACE,
    "DEBUG": Level.DEBUG,
    "INFO": Level.INFO,
    "NOTICE": Level.INFO,
    "WARN": Level.WARN,
    "WARNING": Level.WARN,
    "ERROR": Level.ERROR,
    "ERR": Level.ERROR,
    "CRITICAL": Level.FATAL,
    "FATAL": Level.FATAL,
    "PANIC": Level.FATAL,
}
_LEVEL: Final = re.compile(r"\b(TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERR(?:OR)?|CRITICAL|FATAL|PANIC)\b")
_LEVEL_ANY_CASE: Final = re.compile(_LEVEL.pattern, re.IGNORECASE)
_HINTS: Final = ("INFO", "WARN", "ERR", "DEBUG", "FATAL", "CRITICAL", "TRACE", "NOTICE", "PANIC")
_SEARCHED: Final = 80


class LogEntry(NamedTuple):
    """One line, clean. A gap entry (`gap` > 0) has no source: its text tells what is missing."""

    at: float
    source: str
    text: str
    gap: int = 0

    @property
    def level(self) -> Level:
        """Found when asked: most lines are never looked at."""
        return Level.WARN if self.gap else level_of(self.text)


def find_level(text: str) -> tuple[int, int] | None:
    """Where the level word stands: the first near the start; lower case counts where there is no upper case one."""
    head = text[:_SEARCHED]
    upper = head.upper()
    # Most lines without a level are told by a few substring tests, several times faster than by the pattern.
    if not any(hint in upper for hint in _HINTS):
        return None
    found = _LEVEL.search(head) or _LEVEL_ANY_CASE.search(head)
    return found.span() if found else None


def level_of(text: str) -> Level:
    span = find_level(text)
    return _WORDS[text[span[0] : span[1]].upper()] if span else Level.NONE


def make_entry(at: float, source: str, text: str) -> LogEntry:
    """A clean entry from foreign text."""
    if not is_clean(text):
        text = clean_text(text)
    if not is_clean(source):
        source = clean_text(source)
    return LogEntry(at, source, text)


def gap_entry(at: float, count: int, reason: str = "were left out") -> LogEntry:
    """A mark in the log where `count` lines are missing."""
    plural = "line" if count == 1 else "lines"
    return LogEntry(at, "", clean_text(f"gap: {count:,} {plural} {reason}"), count)


def entries_of(line: LogLine) -> tuple[LogEntry, ...]:
    """A record of the Control API as entries: the gap before it, if any, and the line."""
    entry = make_entry(line.at, line.source, line.text)
    if not line.gap:
        return (entry,)
    source = f"of {clean_text(line.source)} were left out by the server"
    return (gap_entry(line.at, line.gap, source), entry)


def compile_search(text: str) -> re.Pattern[str] | None:
    """The pattern of a search: smart case, and literal when it is no valid expression; None for ""."""
    if not text:
        return None
    flags = re.IGNORECASE if text == text.casefold() else re.NOFLAG
    try:
        pattern = re.compile(text, flags)
    except re.error:
        pattern = re.compile(re.escape(text), flags)
    # A pattern that matches nothing at all, as "a*", would mark every position of every line.
    return pattern if pattern.search("") is None else re.compile(re.escape(text), flags)


@dataclass(frozen=True, slots=True)
class LogFilter:
    """What is shown: at least a level, any of the includes, none of the excludes, sources not muted. Gaps always."""

    level: Level = Level.TRACE
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    muted: frozenset[str] = frozenset()
    _include: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False, default=())
    _exclude: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_include", _patterns(self.include))
        object.__setattr__(self, "_exclude", _patterns(self.exclude))

    def __bool__(self) -> bool:
        return bool(self.level or self.include or self.exclude or self.muted)

    @property
    def passes(self) -> Callable[[LogEntry], bool]:
        """A test for many lines: everything constant is looked up once."""
        level, muted = self.level, self.muted
        include, exclude = self._include, self._exclude

        def test(entry: LogEntry) -> bool:
            if entry.gap:
                return True
            return (
                entry.source not in muted
                and (not include or any(p.search(entry.text) for p in include))
                and not any(p.search(entry.text) for p in exclude)
                and (not level or entry.level >= level)
            )

        return test


def _patterns(sources: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(p for p in map(compile_search, sources) if p is not None)
