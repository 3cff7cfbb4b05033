"""A request of the Responses API as a chat request, sans I/O, for engines that speak chat alone.

**Theory.** The two APIs say the same in other words, with three exceptions: what the Responses API *keeps*
(`previous_response_id`, `store`, `conversation`, `background`, stored prompts), what it *runs itself* (web search, file
search, code), and files by id. None of them can be had from a chat: they are refused, naming the field, because an
answer that silently forgot half of the question is worse than none. Everything else is moved over. Fields neither API
knows (an engine's own, such as `top_k` or `ignore_eos`) go along as they are.

Shapes: OpenAI's API reference, *Responses: create* and *Chat: create*. The answer is `responses_answer`'s.
"""

from typing import Any, NamedTuple

import msgspec


class Asked(NamedTuple):
    """What the answer must repeat of its request."""

    model: str
    stream: bool
    #: Fields of the response object that come from the request, by their names there.
    echo: dict[str, Any]


class Translated(NamedTuple):
    """`body` is a chat request in JSON."""

    body: bytes
    asked: Asked


class Untranslatable(NamedTuple):
    """Why a chat cannot answer it, and what to do about it."""

    message: str
    param: str | None
    hint: str


class _Refused(Exception):
    def __init__(self, message: str, param: str | None, hint: str) -> None:
        super().__init__(message)
        self.why = Untranslatable(message, param, hint)


_STATELESS = "send the whole conversation in `input` each time"
#: Fields that need something kept between two calls, or somebody who works on after the connection.
_KEPT = {
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "store": "leave it out, or send false",
    "background": "leave it out, or send false",
    "prompt": "send the prompt's text in `instructions` or `input`",
}
#: Fields with a meaning of their own here; all others go along unchanged.
_OWN = frozenset(
    {
        *_KEPT,
        "input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning", "include",
        "top_logprobs", "truncation", "metadata", "max_tool_calls", "stream", "stream_options", "service_tier",
        "prompt_cache_key", "safety_identifier", "context_management",
    }
)  # fmt: skip
_TEXTS = frozenset({"input_text", "output_text", "text"})


def to_chat(body: bytes) -> Translated | Untranslatable:
    """The chat request that asks the same. `body` has been read as a JSON object with a `model` before."""
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Untranslatable(f"The body is not JSON: {error}", None, "send one JSON object")
    if not isinstance(given, dict):
        return Untranslatable("The body must be a JSON object", None, 'send an object such as {"model": "…"}')
    try:
        return _translate(given)
    except _Refused as refused:
        return refused.why


def _translate(given: dict[str, Any]) -> Translated:
    for name, hint in _KEPT.items():
        if given.get(name):
            raise _Refused(f"`{name}` is not possible: this model's engine keeps no responses", name, hint)
    if given.get("truncation") not in {None, "disabled"}:
        raise _Refused("`truncation` is not possible here", "truncation", "shorten `input`, and leave it out")
    stream = given.get("stream") is True
    chat: dict[str, Any] = {name: value for name, value in given.items() if name not in _OWN}
    chat["messages"] = _messages(given)
    if given.get("max_output_tokens") is not None:
        chat["max_tokens"] = given["max_output_tokens"]
    if given.get("tools"):
        chat["tools"] = [_tool(tool, index) for index, tool in enumerate(_list(given["tools"], "tools"))]
        if given.get("tool_choice") is not None:
            chat["tool_choice"] = _tool_choice(given["tool_choice"])
    else:
        # A default of some clients, which engines complain of where there are no tools.
        chat.pop("parallel_tool_calls", None)
    _text_options(given, chat)
    _logprobs(given, chat)
    reasoning = given.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    if stream:
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    return Translated(msgspec.json.encode(chat), Asked(str(given.get("model", "")), stream, _echo(given)))


def _echo(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "background": False,
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": given.get("max_tool_calls"),
        "metadata": given.get("metadata") or {},
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": given.get("reasoning"),
        "service_tier": None,
        "store": False,
        "temperature": given.get("temperature"),
        "text": given.get("text") or {"format": {"type": "text"}},
        "tool_choice": given.get("tool_choice") or "auto",
        "tools": given.get("tools") or [],
        "top_logprobs": given.get("top_logprobs"),
        "top_p": given.get("top_p"),
        "truncation": "disabled",
        "user": given.get("user"),
    }


# Messages


def _messages(given: dict[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    instructions = given.get("instructions")
    if instructions:
        messages.append({"role": "system", "content": instructions})
    asked = given.get("input")
    if isinstance(asked, str):
        messages.append({"role": "user", "content": asked})
    elif isinstance(asked, list):
        for index, item in enumerate(asked):
            _add(messages, item, f"input[{index}]")
    elif asked is None:
        raise _Refused("`input` is missing", "input", "add `input`: a text or a list of items")
    else:
        raise _Refused("`input` must be a text or a list of items", "input", "change the type of `input`")
    return messages


def _add(messages: list[dict[str, Any]], item: Any, at: str) -> None:
    if not isinstance(item, dict):
        raise _Refused(f"`{at}` must be an object", at, "send items such as a message")
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            # Templates of open models know `system`; to OpenAI's own models the two words mean the same.
            role = "system" if role == "developer" else role
            messages.append({"role": role, "content": _content(item.get("content"), f"{at}.content", role)})
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        case "function_call_output":
            content = _content(item.get("output"), f"{at}.output", "tool")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        case "reasoning":
            pass  # a chat template makes its own of earlier turns, or none
        case "item_reference":
            raise _Refused(f"`{at}` refers to a stored item", at, _STATELESS)
        case kind:
            raise _Refused(f"`{at}` is of type {str(kind)[:64]!r}, which a chat cannot hold", at, "leave the item out")


def _content(content: Any, at: str, role: Any) -> Any:
    """Text as text; a list only where it holds more than text. What is neither is for the engine to judge."""
    if not isinstance(content, list):
        return content
    parts = [_part(part, f"{at}[{index}]") for index, part in enumerate(content)]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    if len(texts) == len(parts) and all(isinstance(text, str) for text in texts):
        if len(texts) == 1:
            return texts[0]
        if role in {"assistant", "tool"}:
            return "".join(texts)
    return parts


def _part(part: Any, at: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise _Refused(f"`{at}` must be an object", at, 'send a part such as {"type": "input_text", "text": "…"}')
    kind = part.get("type")
    if kind in _TEXTS:
        return {"type": "text", "text": part.get("text")}
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    if kind == "input_image":
        if not part.get("image_url"):
            raise _Refused(f"`{at}` names a stored file", at, "send the image itself: `image_url` with a data URL")
        image = {"url": part["image_url"]}
        if part.get("detail") not in {None, "auto"}:
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    if kind == "input_file":
        if not part.get("file_data"):
            raise _Refused(f"`{at}` names a file elsewhere", at, "send the file itself in `file_data`")
        return {"type": "file", "file": {"file_data": part["file_data"], "filename": part.get("filename")}}
    raise _Refused(f"`{at}` is of type {str(kind)[:64]!r}, which a chat cannot hold", at, "leave the part out")


# Options


def _tool(tool: Any, index: int) -> dict[str, Any]:
    at = f"tools[{index}]"
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else None
        raise _Refused(
            f"`{at}` is of type {str(kind)[:64]!r}: only functions are possible here",
            f"{at}.type",
            "offer it as a function and run it yourself",
        )
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _tool_choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise _Refused(
            f"`tool_choice` is of type {str(choice.get('type'))[:64]!r}", "tool_choice", "name a function, or auto"
        )
    return {"type": "function", "function": {"name": choice.get("name")}}


def _text_options(given: dict[str, Any], chat: dict[str, Any]) -> None:
    text = given.get("text")
    if not isinstance(text, dict):
        return
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    wanted = text.get("format")
    if not isinstance(wanted, dict) or wanted.get("type") == "text":
        return
    if wanted.get("type") == "json_schema":
        schema = {name: value for name, value in wanted.items() if name != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    else:
        chat["response_format"] = wanted


def _logprobs(given: dict[str, Any], chat: dict[str, Any]) -> None:
    include = given.get("include")
    wanted = isinstance(include, list) and "message.output_text.logprobs" in include
    if given.get("top_logprobs") or wanted:
        chat["logprobs"] = True
        if given.get("top_logprobs"):
            chat["top_logprobs"] = given["top_logprobs"]


def _list(value: Any, at: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Refused(f"`{at}` must be a list", at, f"change the type of `{at}`")
    return value
