"""Answers with a shape: JSON for a schema, and the calls tool choices force."""

import json

import pytest

from nebula_agent.simulator.request_body import ApiError, Fields
from nebula_agent.simulator.structured import example, forced_tool_call, structured_text

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
        },
    },
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["string", "null"], "minLength": 12}, "simulatedsim"),
        ({"type": "string", "maxLength": 3}, "sim"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "integer", "maximum": 7}, 7),
        ({"type": "integer", "exclusiveMinimum": 50}, 51),
        ({"type": "number", "exclusiveMaximum": 1, "minimum": 0}, 0.0),
        ({"type": "array", "items": {"const": "x"}, "minItems": 2}, ["x", "x"]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 42),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"enum": ["first", "second"]}}}, "first"),
        (
            {"allOf": [{"properties": {"a": {"type": "boolean"}}}, {"properties": {"b": {"type": "null"}}}]},
            {"a": True, "b": None},
        ),
        ({}, "simulated"),
    ],
)
def test_an_example_fits_its_schema(schema, value):
    assert example(schema) == value


def test_a_schema_that_contains_itself_has_an_end():
    schema = {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}, "required": ["next"]}},
    }
    assert json.loads(json.dumps(example(schema)))


def test_response_formats():
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert structured_text(Fields({"response_format": wanted})) == '{"ok": true}'
    assert json.loads(structured_text(Fields({"response_format": {"type": "json_object"}})) or "")["simulated"]
    assert structured_text(Fields({"structured_outputs": {"choice": ["yes", "no"]}})) == "yes"
    assert structured_text(Fields({"response_format": {"type": "text"}})) is None
    with pytest.raises(ApiError):
        structured_text(Fields({"response_format": {"type": "json_schema"}}))


@pytest.mark.parametrize(
    ("choice", "named"), [("required", False), ({"type": "function", "function": {"name": "weather"}}, True)]
)
def test_a_forced_tool_is_called_with_arguments_of_its_schema(choice, named):
    call = forced_tool_call(Fields({"tools": [WEATHER], "tool_choice": choice}), auto_allowed=False)
    assert call is not None
    assert (call.name, json.loads(call.arguments), call.named) == ("weather", {"city": "simulated", "unit": "C"}, named)


@pytest.mark.parametrize(
    "body",
    [
        {"tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": "auto"},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": "sometimes"},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    ],
)
def test_other_choices_are_refused_as_vllm_does(body):
    with pytest.raises(ApiError) as refused:
        forced_tool_call(Fields(body), auto_allowed=False)
    assert refused.value.status == 400


def test_tools_that_need_not_be_called_are_not():
    assert forced_tool_call(Fields({"tools": [WEATHER], "tool_choice": "none"}), auto_allowed=False) is None
    assert forced_tool_call(Fields({"tools": [WEATHER]}), auto_allowed=True) is None
