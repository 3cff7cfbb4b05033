"""The chain of a prompt: what makes two requests begin alike, and what does not."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.wire.openai import Dialect, Facts, read_facts
from nebula_proxy.decisions.prompt import BLOCK_BYTES, ENDS, EVEN_BYTES, HASHED_BYTES, chain, prompt_of, seed_of


def facts_of(**fields: object) -> Facts:
    facts = read_facts(json.dumps({"model": "m", **fields}).encode())
    assert isinstance(facts, Facts)
    return facts


def chain_of(dialect: Dialect = Dialect.CHAT, **fields: object) -> list[int]:
    facts = facts_of(**fields)
    return chain(prompt_of(facts, dialect), seed_of(facts))


def shared(one: list[int], other: list[int]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=False))


def say(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user" if place % 2 == 0 else "assistant", "content": text} for place, text in enumerate(texts)]


def test_the_ends_rise_evenly_and_then_by_an_eighth() -> None:
    assert ENDS[0] == BLOCK_BYTES
    assert ENDS[-1] == HASHED_BYTES
    steps = [after - before for before, after in pairwise(ENDS)]
    assert steps == sorted(steps[:-1]) + steps[-1:]
    assert all(step == BLOCK_BYTES for end, step in zip(ENDS, steps, strict=False) if end < EVEN_BYTES)
    assert all(step <= end / 8 + BLOCK_BYTES for end, step in zip(ENDS, steps, strict=False))
    # 2,000 and 32,000 tokens.
    assert [sum(end < size for end in ENDS) for size in (8_000, 130_000)] == [21, 43]


@given(st.binary(min_size=1, max_size=9000), st.binary(max_size=600), st.binary(max_size=600))
def test_two_prompts_share_what_they_begin_with_and_no_more(begin: bytes, one: bytes, other: bytes) -> None:
    common = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    size = len(begin) + common
    left, right = chain(begin + one + b"]"), chain(begin + other + b"]")
    assert shared(left, right) == min(len(left), len(right), sum(end <= size for end in ENDS))


def test_the_next_turn_begins_with_the_one_before() -> None:
    first = chain_of(messages=say("x" * 3000))
    second = chain_of(messages=say("x" * 3000, "fine", "and then? " * 200), stream=True, max_tokens=9, temperature=0)
    assert first == second[: len(first)]
    assert len(second) > len(first)


def test_the_order_of_the_fields_makes_no_difference() -> None:
    body = b'{"stream": true, "max_tokens": 5, "messages": %b, "model": "m", "messages_": "no"}'
    messages = json.dumps(say("x" * 999)).encode()
    facts = read_facts(body % messages)
    assert isinstance(facts, Facts)
    assert prompt_of(facts) == messages


def test_a_body_that_only_speaks_of_messages_is_not_mistaken() -> None:
    facts = facts_of(note='"messages": [1, 2, 3]', prompt="p" * 300)
    assert prompt_of(facts) == json.dumps("p" * 300).encode()


@pytest.mark.parametrize("other", [{"tools": [{"type": "function"}]}, {"system": "be brief"}, {"instructions": "be brief"}, {"cache_salt": "s"}])  # fmt: skip
def test_what_stands_before_the_messages_tells_them_apart(other: dict[str, object]) -> None:
    plain = chain_of(messages=say("x" * 999))
    assert shared(plain, chain_of(messages=say("x" * 999), **other)) == 0
    assert chain_of(messages=say("x" * 999), **other) == chain_of(messages=say("x" * 999), **other)


def test_a_root_keeps_tenants_apart() -> None:
    facts = facts_of(messages=say("x" * 999))
    assert seed_of(facts, 1) != seed_of(facts, 2)
    assert not shared(chain(prompt_of(facts), seed_of(facts, 1)), chain(prompt_of(facts), seed_of(facts, 2)))


def test_calls_without_a_prompt_have_no_chain() -> None:
    assert chain_of(input="x" * 999) == []
    assert len(chain_of(Dialect.RESPONSES, input="x" * 999)) == 3
    assert chain_of() == []
    assert chain_of(messages=say("short")) == []


def test_beyond_the_bound_prompts_are_not_told_apart() -> None:
    long = "x" * (2 * HASHED_BYTES)
    assert len(prompt_of(facts_of(prompt=long))) == HASHED_BYTES
    assert chain_of(prompt=long) == chain_of(prompt=long + "y")
