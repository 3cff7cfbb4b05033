"""Answers that must have a shape: JSON for a schema, and the call of a tool; deterministic, small and valid.

Good effort, not a validator: types, enum, const, required properties, items, the bounds of numbers, lengths and the
first alternative of anyOf / oneOf / allOf, and local `$ref`. A pattern is not read.
"""

import json
from collections.abc import Mapping
from typing import Any

from nebula_agent.simulator.request_body import ApiError, Fields, invalid
from nebula_agent.simulator.tokenizer import tokenizer

#: Deeper than this a value is null; it also bounds what a schema that contains itself can cost.
_DEPTH = 6
_LONGEST_STRING = 4096
_WORD = "simulated"


def example(schema: Any, root: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """A value that fits `schema`."""
    if not isinstance(schema, dict) or depth > _DEPTH:
        return None
    root = root if root is not None else schema
    if "$ref" in schema:
        return example(_resolve(str(schema["$ref"]), root), root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if "default" in schema:
        return schema["default"]
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return example(schema[key][0], root, depth + 1)
    if schema.get("allOf"):
        merged: dict[str, Any] = {"properties": {}, "required": []}
        for part in schema["allOf"]:
            whole = _resolve(str(part["$ref"]), root) if "$ref" in part else part
            merged["properties"].update(whole.get("properties", {}))
            merged["required"].extend(whole.get("required", []))
            merged.update({key: value for key, value in whole.items() if key not in {"properties", "required"}})
        return example(merged, root, depth + 1)
    return _of_type(schema, root, depth)


def _of_type(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    match kind:
        case "object":
            properties = schema.get("properties") or {}
            # Optional properties are filled too while it is shallow, so that the answer looks like one.
            names = [name for name in properties if depth < 3 or name in schema.get("required", ())]
            return {name: example(properties[name], root, depth + 1) for name in names}
        case "array":
            count = max(int(schema.get("minItems", 1)), 0)
            return [
                example(schema.get("items", {}), root, depth + 1) for _ in range(min(count, 16 if depth < 2 else 1))
            ]
        case "boolean":
            return True
        case "null":
            return None
        case "integer" | "number":
            return _number(schema, whole=kind == "integer")
        case _:
            return _string(schema)


def _number(schema: Mapping[str, Any], *, whole: bool) -> float:
    low, high = schema.get("minimum"), schema.get("maximum")
    value = float(low) if low is not None else min(42.0, float(high)) if high is not None else 42.0
    if "exclusiveMinimum" in schema:
        value = max(value, float(schema["exclusiveMinimum"]) + (1 if whole else 0.5))
    if "exclusiveMaximum" in schema and value >= float(schema["exclusiveMaximum"]):
        value = float(schema["exclusiveMaximum"]) - (1 if whole else 0.5)
    return int(value) if whole else value


def _string(schema: Mapping[str, Any]) -> str:
    by_format = {
        "date": "2026-01-01",
        "date-time": "2026-01-01T00:00:00Z",
        "time": "00:00:00Z",
        "email": "simulated@example.org",
        "uri": "https://example.org/simulated",
        "uuid": "00000000-0000-4000-8000-000000000000",
    }
    text = by_format.get(str(schema.get("format")), _WORD)
    least = min(int(schema.get("minLength", 0)), _LONGEST_STRING)
    text = (text * (least // len(text) + 1))[: max(least, len(text))]
    return text[: int(schema["maxLength"])] if "maxLength" in schema else text


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for step in reference.removeprefix("#/").split("/"):
        found = found.get(step, {}) if isinstance(found, dict) else {}
    return found


def structured_text(fields: Fields) -> str | None:
    """The text `response_format` or `structured_outputs` asks for; None if the answer is free."""
    wanted = fields.table("response_format") or {}
    match wanted.get("type"):
        case "json_schema":
            named = wanted.get("json_schema")
            schema = named.get("schema") if isinstance(named, dict) else None
            if not isinstance(schema, dict):
                raise ApiError(
                    400,
                    "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
                    param="response_format",
                )
            return _example_text(schema)
        case "json_object":
            return json.dumps({"simulated": True, "answer": _WORD})
    outputs = fields.table("structured_outputs") or {}
    if isinstance(outputs.get("json"), dict):
        return _example_text(outputs["json"])
    choices = outputs.get("choice")
    return str(choices[0]) if isinstance(choices, list) and choices else None


def _example_text(schema: object) -> str:
    """An example as JSON; a schema that is none is the client's mistake."""
    try:
        return json.dumps(example(schema))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ApiError(400, f"Invalid JSON schema: {error}", param="response_format") from None


class ToolCall:
    """The one call a forced tool choice makes."""

    def __init__(self, name: str, arguments: str, *, named: bool) -> None:
        self.name = name
        self.arguments = arguments
        #: The client named the function; the finish reason is then "stop" and not "tool_calls", as in vLLM.
        self.named = named


def forced_tool_call(fields: Fields, *, auto_allowed: bool) -> ToolCall | None:
    """The call that `tool_choice` forces; None if the answer is text. Raises vLLM's complaints about the rest."""
    tools = fields.items("tools") or []
    choice = fields.body.get("tool_choice", "auto" if tools else "none")
    if choice is None or choice == "none":
        return None
    if not tools:
        raise ApiError(
            400, "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)", param="tool_choice"
        )
    if choice == "auto":
        if not auto_allowed:
            raise ApiError(
                400,
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            )
        return None
    functions = [
        tool["function"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    if len(functions) < len(tools):
        raise invalid("missing", "body.tools.0.function", "Field required", tools[0])
    if choice == "required":
        return _call(functions[0], named=False)
    wanted = choice.get("function") if isinstance(choice, dict) else None
    name = wanted.get("name") if isinstance(wanted, dict) else None
    if name is None:
        raise ApiError(
            400,
            f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" are '
            "supported. (parameter=tool_choice)",
            param="tool_choice",
        )
    for function in functions:
        if function.get("name") == name:
            return _call(function, named=True)
    raise ApiError(
        400,
        "The tool specified in `tool_choice` does not match any of the specified `tools` (parameter=tool_choice)",
        param="tool_choice",
    )


def _call(function: Mapping[str, Any], *, named: bool) -> ToolCall:
    arguments = _example_text(function.get("parameters") or {"type": "object"})
    return ToolCall(str(function.get("name", "")), arguments, named=named)


def script_of(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text))
