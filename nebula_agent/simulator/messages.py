"""`/v1/messages` of the simulated engine: Anthropic's API as vLLM speaks it, and its count of tokens."""

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
    reply_id,
    reply_json,
)


def _prompt(service: Service, fields: Fields) -> list[int]:
    given = fields.required("messages")
    messages = list(given) if isinstance(given, list) else []
    system = fields.body.get("system")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return service.encode(render_chat(messages))


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
    stops = fields.items("stop_sequences") or []
    sampling = read_sampling(
        Fields({**body, "stop": stops or None}),
        max_tokens=room,
        script=None,
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
                    "content": [{"type": "text", "text": whole.text}],
                    "model": model,
                    "stop_reason": _stop_reason(whole),
                    "usage": _usage(len(prompt), len(whole.tokens)),
                },
            )
            return
        exchange.start_stream()
        try:
            await exchange.send(_start(request_id, model, len(prompt)))
            block = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0}
            await exchange.send(named_event("content_block_start", block))
            generated = 0
            while True:
                output = await answers[0].next_output()
                generated += len(output.tokens)
                if output.text:
                    delta = {"type": "text_delta", "text": output.text}
                    value = {"type": "content_block_delta", "delta": delta, "index": 0}
                    await exchange.send(named_event("content_block_delta", value))
                if output.finish_reason is not None:
                    break
            await exchange.send(named_event("content_block_stop", {"type": "content_block_stop", "index": 0}))
            last = Whole("", [], output.finish_reason, output.stop_reason)
            ended = {
                "type": "message_delta",
                "delta": {
                    "stop_reason": _stop_reason(last),
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


def _stop_reason(whole: Whole) -> str:
    if whole.finish_reason == "length":
        return "max_tokens"
    return "stop_sequence" if isinstance(whole.stop_reason, str) else "end_turn"


def _usage(prompt_tokens: int, generated: int) -> dict[str, int]:
    return {"input_tokens": prompt_tokens, "output_tokens": generated}
