"""The sanitiser: nothing a terminal obeys comes out, and where the text was cut does not matter."""

import itertools
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.security.text import TextCleaner, clean_text, escape_json, is_clean

ESC = "\x1b"
NASTY = st.text(
    alphabet=st.one_of(
        st.sampled_from(list("\x1b\x07\x9b\x9c\x9d\x90\x98\x9e\x9f\x18\x1a[]PX^_\\;?0123mHJ h\n\t\r")),
        st.sampled_from(list("\u202e\u2066\u200b\u200d\u2028\ufe0f\ufeff\u061c\U000e0041")),
        st.characters(codec=None, exclude_categories=()),
    ),
    max_size=80,
)


def controls_in(text: str, allowed: str = "") -> list[str]:
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in allowed]


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("plain ASCII", "plain ASCII"),
        ("模型 Qwen3 é ✓ ▏", "模型 Qwen3 é ✓ ▏"),
        (f"{ESC}[31mred{ESC}[0m", "red"),
        (f"{ESC}[2J{ESC}[Hgone", "gone"),
        (f"a{ESC}]52;c;ZXZpbA=={ESC}\\b", "ab"),
        (f"a{ESC}]0;title\x07b", "ab"),
        (f"a{ESC}Pq#0;2;0;0;0{ESC}\\b", "ab"),
        (f"a{ESC}_apc{ESC}\\b{ESC}^pm{ESC}\\c{ESC}Xsos{ESC}\\d", "abcd"),
        ("a\x9b31mb", "ab"),
        ("a\x9d52;c;eA==\x9cb", "ab"),
        ("a\x90dcs\x9cb\x9fapc\x9cc\x9epm\x9cd\x98sos\x9ce", "abcde"),
        (f"a{ESC}(0b{ESC}=c{ESC}#8d{ESC}cend", "abcdend"),
        (f"a{ESC}]52;c;never ends", "a"),
        (f"a{ESC}[31", "a"),
        (f"a{ESC}", "a"),
        (f"a{ESC}[3{ESC}[31mb", "ab"),
        (f"a{ESC}]x{ESC}[31mb", "ab"),
        (f"a{ESC}[31é", "aé"),
        ("be\x07ll\x08 de\x7fl c\x85r\r", "bell del cr"),
        ("user\u202etxt.exe\u2066x\u2069", "usertxt.exex"),
        ("z\u200bero\u200dwidth\ufeff\u00ad", "zerowidth"),
        ("a\u2028b\u2029c", "abc"),
        ("heart\u2764\ufe0f", "heart\u2764"),
        ("raw \udc9b byte", "raw \ufffd byte"),
        ("col\tumn", "col    umn"),
        ("two\nlines", "two lines"),
    ],
)
def test_what_a_terminal_would_obey_or_hide_is_gone(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == clean


def test_line_breaks_and_tabs_stay_on_request() -> None:
    assert clean_text(f"a\n\tb\r\n{ESC}[1mc", newlines=True) == "a\n\tb\nc"


def test_a_line_break_ends_an_unterminated_string_so_the_next_line_is_seen() -> None:
    assert clean_text(f"a{ESC}]0;swallow\nnext line", newlines=True) == "a\nnext line"


def test_an_unterminated_string_cannot_swallow_a_stream() -> None:
    cleaner = TextCleaner()
    out = cleaner.feed(f"{ESC}]52;c;") + "".join(cleaner.feed("x" * 1000) for _ in range(10))
    assert 5000 < len(out) < 10_000


@pytest.mark.parametrize(("limit", "expected"), [(None, "abcdef"), (6, "abcdef"), (4, "abc…"), (1, "…"), (0, "")])
def test_long_text_is_cut_with_a_mark(limit: int | None, expected: str) -> None:
    assert clean_text("abcdef", max_length=limit) == expected


def test_markup_is_text_like_any_other() -> None:
    assert clean_text("[@click=app.quit]x[/]") == "[@click=app.quit]x[/]"


@given(NASTY)
def test_no_control_comes_out(text: str) -> None:
    assert controls_in(clean_text(text)) == []
    assert controls_in(clean_text(text, newlines=True), allowed="\n\t") == []
    assert is_clean(clean_text(text))


@given(NASTY, st.booleans())
def test_cleaning_twice_changes_nothing(text: str, newlines: bool) -> None:
    once = clean_text(text, newlines=newlines)
    assert clean_text(once, newlines=newlines) == once


@given(NASTY, st.lists(st.integers(0, 80)), st.booleans())
def test_where_the_stream_was_cut_does_not_matter(text: str, cuts: list[int], newlines: bool) -> None:
    cleaner = TextCleaner(newlines=newlines)
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = [cleaner.feed(text[a:b]) for a, b in itertools.pairwise(edges)]
    assert "".join(pieces) + cleaner.finish() == clean_text(text, newlines=newlines)


@given(NASTY, st.integers(0, 40))
def test_the_limit_holds(text: str, limit: int) -> None:
    assert len(clean_text(text, max_length=limit)) <= limit


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "Sm"]), max_size=60))
def test_honest_text_is_not_touched(text: str) -> None:
    hidden = {"\u115f", "\u1160", "\u3164", "\uffa0"}
    honest = "".join(c for c in text if c not in hidden)
    assert clean_text(honest) == honest


def test_a_finished_cleaner_starts_afresh() -> None:
    cleaner = TextCleaner()
    assert cleaner.feed(f"a{ESC}]0;never") == "a"
    assert cleaner.finish() == ""
    assert cleaner.feed("b") == "b"


@given(st.recursive(NASTY | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(NASTY, inner)))
def test_json_means_the_same_and_holds_nothing_a_terminal_obeys(value: object) -> None:
    # Two lone halves side by side are one letter in any JSON.
    meant = json.loads(json.dumps(value))
    for indent in (None, 2):
        escaped = escape_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert controls_in(escaped, allowed="\n") == []
        assert is_clean(escaped.replace("\n", " "))
        assert json.loads(escaped) == meant


def test_json_leaves_letters_as_they_are() -> None:
    text = json.dumps({"name": "Grüße 漢字 😀"}, ensure_ascii=False)
    assert escape_json(text) == text
    assert escape_json('"\x9b2J\u202e\U000e0041"') == '"\\u009b2J\\u202e\\udb40\\udc41"'
