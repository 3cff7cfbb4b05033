"""What a request may ask at most: each limit to the value, odd types left to the engine, everything a setting."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.wire.openai import Facts, read_facts
from nebula_proxy.decisions.parameters import NO_PARAMETER_LIMITS, ParameterLimits, check_parameters
from nebula_proxy.decisions.refusal import Refusal
from nebula_proxy.settings import ParameterSettings


def check(limits: ParameterLimits | None = None, **fields: Any) -> Refusal | None:
    body = json.dumps({"model": "m"} | fields).encode()
    facts = read_facts(body)
    assert isinstance(facts, Facts), facts
    return check_parameters(facts, body, limits or ParameterLimits())


AT_THE_LIMIT: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"n": 8}, {"n": 9}, "n"),
    ({"best_of": 8}, {"best_of": 9}, "best_of"),
    ({"logprobs": 20}, {"logprobs": 21}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 20}, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"prompt_logprobs": 0}, {"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"stop": ["x"] * 16}, {"stop": ["x"] * 17}, "stop"),
    ({"messages": [{}] * 4096}, {"messages": [{}] * 4097}, "messages"),
    ({"guided_regex": "x" * 4096}, {"guided_regex": "x" * 4097}, "guided_regex"),
    ({"guided_grammar": "é" * 2048}, {"guided_grammar": "é" * 2049}, "guided_grammar"),
    (
        {"structured_outputs": {"regex": "x" * 4096}},
        {"structured_outputs": {"regex": "x" * 4097}},
        "structured_outputs.regex",
    ),
]


@pytest.mark.parametrize(("allowed", "too_much", "param"), AT_THE_LIMIT, ids=[param for *_, param in AT_THE_LIMIT])
def test_limits_hold_to_the_value(allowed: dict[str, Any], too_much: dict[str, Any], param: str) -> None:
    assert check(**allowed) is None
    refusal = check(**too_much)
    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.param) == (400, "invalid_request", param)
    assert "parameters." in str(refusal.hint)
    assert check(NO_PARAMETER_LIMITS, **too_much) is None


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key"])
def test_addresses_and_keys_have_no_business_in_a_body(name: str) -> None:
    refusal = check(**{name: "http://10.0.0.1"})
    assert refusal is not None
    assert refusal.param == name
    assert "10.0.0.1" not in refusal.message
    assert check(**{name: None}) is None


def test_a_template_is_a_program() -> None:
    refusal = check(chat_template="{{ x }}")
    assert refusal is not None
    assert refusal.param == "chat_template"
    assert check(ParameterLimits(allow_chat_template=True), chat_template="{{ x }}") is None
    assert check(chat_template_kwargs={"enable_thinking": False}) is None


def test_depth() -> None:
    def nested(levels: int) -> Any:
        value: Any = "x"
        for _ in range(levels):
            value = [value]
        return value

    assert check(tools=nested(63)) is None
    refusal = check(tools=nested(64))
    assert refusal is not None
    assert "64 deep" in refusal.message


ODD = st.sampled_from([None, True, "9", 1.5, [], {}, ["x"], {"regex": 3}, "x" * 100])


@given(st.dictionaries(st.sampled_from([param for *_, param in AT_THE_LIMIT]), ODD))
def test_odd_types_are_the_engines_affair(fields: dict[str, Any]) -> None:
    assert check(**fields) is None


def test_a_long_schema_is_no_pattern() -> None:
    assert check(structured_outputs={"json": {"type": "object", "description": "x" * 50_000}}) is None


def test_the_settings_have_the_same_defaults() -> None:
    assert ParameterSettings().plain() == ParameterLimits()
