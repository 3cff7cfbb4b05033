"""Log entries: clean, with the level a reader would see, and filters that never hide a gap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.records.views import LogLine
from nebula_core.security.text import is_clean
from nebula_tui.presenters.loglines import (
    Level,
    LogFilter,
    compile_search,
    entries_of,
    gap_entry,
    level_of,
    make_entry,
)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("INFO 11-21 10:22:33 [engine.py:274] Avg prompt", Level.INFO),
        ("2026-11-21T10:22:33Z WARNING preempted", Level.WARN),
        ("ERROR upstream", Level.ERROR),
        ("level=error msg=x", Level.ERROR),
        ("[warn] low", Level.WARN),
        ("CRITICAL: gone", Level.FATAL),
        ("panic: runtime error", Level.FATAL),
        ("info: retry after ERROR", Level.ERROR),
        ("an errorless day, no terror", Level.NONE),
        ("prompts=3", Level.NONE),
        ("x" * 80 + " ERROR", Level.NONE),
        ("", Level.NONE),
    ],
)
def test_level(text: str, level: Level) -> None:
    assert level_of(text) is level


def test_an_entry_is_clean() -> None:
    entry = make_entry(1.0, "r1\x1b[2J", "\x1b]52;c;eA==\x07WARN \x1b[31mred\x9b0m\ttab\n")
    assert (entry.source, entry.text) == ("r1", "WARN red    tab ")
    assert entry.level is Level.WARN


@given(st.text(max_size=60))
def test_any_entry_is_clean(text: str) -> None:
    assert is_clean(make_entry(0.0, text, text).text)


def test_a_gap_in_a_record_becomes_a_line_of_its_own() -> None:
    line = LogLine(at=5.0, source="chat-1", text="INFO next", gap=1120)
    gap, entry = entries_of(line)
    assert gap.gap == 1120
    assert gap.text == "gap: 1,120 lines of chat-1 were left out by the server"
    assert entry.text == "INFO next"
    assert len(entries_of(LogLine(at=5.0, source="s", text="t"))) == 1


def test_filters() -> None:
    info, warn = make_entry(1, "a", "INFO GET /health"), make_entry(2, "b", "WARN kv full")
    assert [LogFilter().passes(e) for e in (info, warn)] == [True, True]
    assert [LogFilter(level=Level.WARN).passes(e) for e in (info, warn)] == [False, True]
    assert [LogFilter(include=("kv", "disk")).passes(e) for e in (info, warn)] == [False, True]
    assert [LogFilter(exclude=("GET /health",)).passes(e) for e in (info, warn)] == [False, True]
    assert [LogFilter(muted=frozenset("b")).passes(e) for e in (info, warn)] == [True, False]


def test_a_line_without_a_level_is_shown_with_info_but_not_with_warn() -> None:
    plain = make_entry(1, "a", "Traceback (most recent call last):")
    assert LogFilter(level=Level.INFO).passes(plain)
    assert not LogFilter(level=Level.WARN).passes(plain)


def test_no_filter_hides_a_gap() -> None:
    gap = gap_entry(1.0, 3)
    everything_off = LogFilter(Level.FATAL, ("never",), ("gap",), frozenset({""}))
    assert everything_off.passes(gap)


def test_search_is_smart_about_case_and_survives_bad_patterns() -> None:
    assert compile_search("") is None
    assert compile_search("xid").search("NVRM Xid 79")
    assert compile_search("Xid").search("NVRM xid 79") is None
    assert compile_search("a[").search("x a[0]")
    # A pattern that matches nothing would mark every place; it is taken literally.
    assert compile_search("a*").search("bbb") is None


@given(st.text(max_size=20), st.text(max_size=40))
def test_any_search_can_be_typed(source: str, text: str) -> None:
    pattern = compile_search(source)
    assert (pattern is None) == (source == "")
    if pattern is not None:
        pattern.search(text)
