"""`/tokenize` and `/detokenize` of the simulated engine."""

from typing import Any

from nebula_agent.simulator.http_server import Exchange
from nebula_agent.simulator.prompt import render_chat
from nebula_agent.simulator.request_body import ApiError, Fields
from nebula_agent.simulator.service import Service, reply_json
from nebula_agent.simulator.tokenizer import tokenizer


async def tokenize(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    fields = Fields(body)
    service.model(fields)
    messages = fields.items("messages")
    if messages is None:
        text = fields.required("prompt")
        if not isinstance(text, str):
            raise ApiError(400, "prompt must be a string", kind="Bad Request", param="body.prompt")
    else:
        text = render_chat(
            messages,
            tools=fields.items("tools"),
            add_generation_prompt=fields.flag("add_generation_prompt", default=True),
            continue_final_message=fields.flag("continue_final_message"),
        )
    tokens = tokenizer().encode(text)
    names = [tokenizer().token_text(token) for token in tokens] if fields.flag("return_token_strs") else None
    reply_json(
        exchange,
        {"count": len(tokens), "max_model_len": service.max_model_len, "tokens": tokens, "token_strs": names},
    )


async def detokenize(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    fields = Fields(body)
    service.model(fields)
    tokens = fields.required("tokens")
    if not isinstance(tokens, list) or not all(isinstance(one, int) and 0 <= one < tokenizer().size for one in tokens):
        raise ApiError(400, "tokens must be ids of the vocabulary", kind="Bad Request", param="body.tokens")
    reply_json(exchange, {"prompt": tokenizer().decode(tokens, keep_special=True)})
