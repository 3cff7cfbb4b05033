"""Messages to prompt: the ChatML template, and the tokens it makes."""

import json
from typing import Any

from nebula_agent.simulator.request_body import ApiError, invalid

_SEEN_BY_NOBODY = frozenset({"image_url", "input_image", "image", "input_audio", "audio_url", "video_url"})
_PLACEHOLDER = "<image>" * 8
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def render_chat(
    messages: list[Any],
    *,
    tools: list[Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> str:
    """The prompt of a chat; a continued answer is left open for the next token."""
    if continue_final_message and add_generation_prompt:
        raise ApiError(
            400,
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            param="continue_final_message",
        )
    turns = []
    if tools:
        listed = "\n".join(json.dumps(tool) for tool in tools)
        turns.append(f"<|im_start|>system\nYou may call these functions:\n{listed}<|im_end|>\n")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise invalid("dict_type", f"body.messages.{index}", "Input should be a valid dictionary", message)
        role = message.get("role")
        if role not in _ROLES:
            raise invalid("literal_error", f"body.messages.{index}.role", "Input should be a known role", role)
        turns.append(f"<|im_start|>{role}\n{_content(message, index)}<|im_end|>\n")
    if continue_final_message and turns:
        turns[-1] = turns[-1].removesuffix("<|im_end|>\n")
    if add_generation_prompt:
        turns.append("<|im_start|>assistant\n")
    return "".join(turns)


def _content(message: dict[str, Any], index: int) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        calls = message.get("tool_calls")
        return json.dumps(calls) if calls else ""
    if isinstance(content, list):
        return "\n".join(_part(part, index) for part in content)
    raise invalid("string_type", f"body.messages.{index}.content", "Input should be a valid string", content)


def _part(part: Any, index: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") in {"text", "input_text", "output_text"}:
        return str(part.get("text", ""))
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind in _SEEN_BY_NOBODY:
        return _PLACEHOLDER  # costs tokens as a picture does; nobody looks at it
    if isinstance(part, dict) and kind in {"tool_use", "tool_result"}:
        return json.dumps(part.get("input", part.get("content")))
    raise ApiError(400, f"Unknown part type: {kind}", param=f"messages.{index}.content")
