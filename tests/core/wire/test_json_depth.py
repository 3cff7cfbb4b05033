"""Depth by counting against depth by decoding."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.wire.json_depth import is_deeper

ODD = st.text(alphabet='[]{}"\\ax\n\u00e9', max_size=8)
VALUES = st.recursive(
    ODD | st.sampled_from([1, None, True]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ODD, inner, max_size=3),
    max_leaves=40,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(VALUES, st.integers(0, 8), st.booleans())
def test_it_is_what_decoding_says(value: Any, limit: int, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert is_deeper(text, limit) == (depth(value) > limit)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"[":'])
def test_the_limit_to_the_level(opening: str) -> None:
    levels = opening.count("[") - opening.count('"[') + opening.count("{")
    closing = "".join({"[": "]", "{": "}"}[each] for each in reversed(opening.replace('"["', "")) if each in "[{")
    times = 64 // levels
    text = (opening * times + "1" + closing * times).encode()
    json.loads(text)
    assert not is_deeper(text, 64)
    assert is_deeper(b"[" + text + b"]", 64)


def test_brackets_in_strings_do_not_hide_it() -> None:
    text = b"[" + b'"]",[' * 100 + b"]" * 101
    json.loads(text)
    assert is_deeper(text, 64)
    assert not is_deeper(json.dumps(["[" * 1000, "\\", '"[', "]" * 3]).encode(), 64)
