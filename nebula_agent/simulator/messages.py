"""`/v1/messages` of the simulated engine: Anthropic's API as vLLM speaks it, and its count of tokens."""

import json
from typing import Any

from nebula_agent.simulator.client import EngineFailed
from nebula_agent.simulator.http_server import Exchange
from nebula_agent.simulator.prompt import render_chat
from nebula_agent.simulator.request_body import Fields, check_lengths, check_range, read_fault, read_sampling
from nebula_agent.simulator.service import (
    Service,
    Whole,
    collect,
    error_event,
    named_event,
    new_id,
    reply_id,
    reply_json,
)
from nebula_agent.simulator.structured import ToolCall, forced_tool_call, script_of


def _prompt(service: Service, fields: Fields) -> list[int]:
    given = fields.required("messages")
    messages = list(given) if isinstance(given, list) else []
    system = fields.body.get("system")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return service.encode(render_chat(messages, tools=_chat_tools(fields)))


def _chat_tools(fields: Fields) -> list[Any]:
    """Anthropic's tools as a chat has them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.get("name"),
                "description": tool.get("description"),
                "parameters": tool.get("input_schema"),
            },
        }
        for tool in fields.items("tools") or []
        if isinstance(tool, dict)
    ]


def _forced(service: Service, fields: Fields) -> ToolCall | None:
    tools = _chat_tools(fields)
    given = fields.table("tool_choice") or {"type": "auto" if tools else "none"}
    kind = given.get("type")
    choice: Any = {"any": "required", "auto": "auto", "none": "none"}.get(str(kind), kind)
    if kind == "tool":
        choice = {"type": "function", "function": {"name": given.get("name")}}
    return forced_tool_call(Fields({"tools": tools, "tool_choice": choice}), auto_allowed=service.auto_tools)


async def count_tokens(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    fields = Fields(body)
    service.model(fields)
    count = len(_prompt(service, fields))
    reply_json(exchange, {"input_tokens": count, "context_management": {"original_input_tokens": count}})


async def create(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    fields = Fields(body)
    check_range(fields)
    model = service.model(fields)
    prompt = _prompt(service, fields)
    wanted = fields.required("max_tokens")
    room = check_lengths(
        len(prompt), fields.integer("max_tokens") if wanted is not None else None, service.max_model_len
    )
    call = _forced(service, fields)
    stops = fields.items("stop_sequences") or []
    sampling = read_sampling(
        Fields({**body, "stop": stops or None}),
        max_tokens=room,
        script=None if call is None else script_of(call.arguments),
        fault=read_fault(fields, service.faults, allowed=service.allow_request_faults),
        logprobs=None,
    )
    request_id = reply_id("chatcmpl-", exchange, body)
    answers = service.submit([prompt], sampling)
    with service.held(answers):
        if not fields.flag("stream"):
            whole = await collect(answers[0])
            reply_json(
                exchange,
                {
                    "id": request_id,
                    "type": "message",
                    "role": "assistant",
                    "content": [_block(call, whole.text)],
                    "model": model,
                    "stop_reason": _stop_reason(whole, call),
                    "usage": _usage(len(prompt), len(whole.tokens)),
                },
            )
            return
        exchange.start_stream()
        try:
            await exchange.send(_start(request_id, model, len(prompt)))
            block = {"type": "content_block_start", "content_block": _block(call, None), "index": 0}
            await exchange.send(named_event("content_block_start", block))
            generated = 0
            while True:
                output = await answers[0].next_output()
                generated += len(output.tokens)
                if output.text:
                    delta = {"type": "text_delta", "text": output.text}
                    if call is not None:
                        delta = {"type": "input_json_delta", "partial_json": output.text}
                    value = {"type": "content_block_delta", "delta": delta, "index": 0}
                    await exchange.send(named_event("content_block_delta", value))
                if output.finish_reason is not None:
                    break
            await exchange.send(named_event("content_block_stop", {"type": "content_block_stop", "index": 0}))
            last = Whole("", [], output.finish_reason, output.stop_reason)
            ended = {
                "type": "message_delta",
                "delta": {
                    "stop_reason": _stop_reason(last, call),
                    "stop_sequence": last.stop_reason if isinstance(last.stop_reason, str) else None,
                },
                "usage": _usage(len(prompt), generated),
            }
            await exchange.send(named_event("message_delta", ended))
            await exchange.send(named_event("message_stop", {"type": "message_stop"}))
        except EngineFailed as failure:
            await exchange.send(error_event(failure))
        exchange.end_stream()


def _start(request_id: str, model: str, prompt_tokens: int) -> bytes:
    message: dict[str, Any] = {
        "id": request_id,
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(prompt_tokens, 0),
    }
    return named_event("message_start", {"type": "message_start", "message": message})


def _block(call: ToolCall | None, text: str | None) -> dict[str, Any]:
    """The one block of an answer; without a text as it is before its first token."""
    if call is None:
        return {"type": "text", "text": text or ""}
    try:
        arguments = json.loads(text) if text else {}
    except ValueError:
        arguments = {}  # cut off by max_tokens
    return {"type": "tool_use", "id": new_id("chatcmpl-tool-"), "name": call.name, "input": arguments}


def _stop_reason(whole: Whole, call: ToolCall | None = None) -> str:
    if call is not None and whole.finish_reason == "stop":
        return "tool_use"
    if whole.finish_reason == "length":
        return "max_tokens"
    return "stop_sequence" if isinstance(whole.stop_reason, str) else "end_turn"


def _usage(prompt_tokens: int, generated: int) -> dict[str, int]:
    return {"input_tokens": prompt_tokens, "output_tokens": generated}
