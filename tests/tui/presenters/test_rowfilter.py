"""The filter grammar: every line of text is a filter, and no filter raises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_tui.presenters.rowfilter import parse_filter

ROW = {"node": "node-034", "util": 93.0, "state": "ready", "model": "qwen3-32b", "temp": None}
TEXT = "node-034 ready qwen3-32b 93%"


def shown(source: str) -> bool:
    return parse_filter(source, ROW).matches(TEXT, ROW.get)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", True),
        ("QWEN", True),
        ("llama", False),
        ("node-0[0-9]4", True),
        ("[", False),
        ("!llama", True),
        ("!qwen", False),
        ("!", True),
        ("~q332", True),
        ("~zq", False),
        ("util>90", True),
        ("util>93", False),
        ("util>=93", True),
        ("util<93", False),
        ("util<=93", True),
        ("UTIL>90", True),
        ("util>90%", True),
        ("util>0.01k", True),
        ("util=93", True),
        ("util!=93", False),
        ("model=qwen*", True),
        ("model=QWEN*", True),
        ("model=qwen", False),
        ("model!=llama*", True),
        ("temp>1", False),
        ("temp<1", False),
        ("temp=1", False),
        ("util>many", False),
        ("dc=sh-2", False),
        ("util>90 state=ready model=qwen*", True),
        ("util>90 state=down", False),
    ],
)
def test_terms(source: str, expected: bool) -> None:
    assert shown(source) is expected


def test_a_key_that_is_no_column_is_looked_for_as_text() -> None:
    assert parse_filter("tenant=batch", ["node"]).matches("429 tenant=batch", lambda _: None)


def test_an_empty_filter_is_false() -> None:
    assert not parse_filter("  ")
    assert parse_filter("x")


@given(st.text(max_size=30), st.text(max_size=30))
def test_anything_can_be_typed(source: str, text: str) -> None:
    parse_filter(source, ["node", "util"]).matches(text, lambda key: 1.0 if key == "util" else text)
