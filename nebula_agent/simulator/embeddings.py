"""`/v1/embeddings` of the simulated engine (`--runner pooling`): unit vectors made of token ids, without meaning."""

import base64
import math
from array import array
from typing import Any

from nebula_agent.simulator.client import Sampling
from nebula_agent.simulator.http_server import Exchange
from nebula_agent.simulator.reply import digest, mix
from nebula_agent.simulator.request_body import ApiError, Fields, check_lengths, invalid, read_fault
from nebula_agent.simulator.service import Service, collect, now, reply_id, reply_json

_DIMENSIONS = 128
_MOST_DIMENSIONS = 4096


def embedding(tokens: list[int], dimensions: int = _DIMENSIONS) -> list[float]:
    """The same tokens give the same vector of length 1."""
    seed = digest(tokens)
    values = [(mix(seed, index) >> 11) / (1 << 52) - 1.0 for index in range(dimensions)]
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / length for value in values]


async def create(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    fields = Fields(body)
    model = service.model(fields)
    inputs = [service.encode(one) if isinstance(one, str) else one for one in _inputs(fields.required("input"))]
    dimensions = fields.integer("dimensions") or _DIMENSIONS
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise ApiError(400, f"dimensions must be 1 to {_MOST_DIMENSIONS}, got {dimensions}", param="dimensions")
    encoding = fields.text("encoding_format") or "float"
    if encoding not in {"float", "base64"}:
        raise ApiError(400, f"encoding_format must be float or base64, got {encoding}", param="encoding_format")
    for tokens in inputs:
        check_lengths(len(tokens), 1, service.max_model_len)
    # An embedding is a prompt computed without an answer: one token is made to hold it for as long as that takes.
    sampling = Sampling(
        max_tokens=1,
        temperature=0.0,
        fault=read_fault(fields, service.faults, allowed=service.allow_request_faults),
    )
    request_id = reply_id("embd-", exchange, body)
    answers = service.submit(inputs, sampling)
    with service.held(answers):
        for answer in answers:
            await collect(answer)
    count = sum(len(tokens) for tokens in inputs)
    reply_json(
        exchange,
        {
            "id": request_id,
            "object": "list",
            "created": now(),
            "model": model,
            "data": [
                {"index": index, "object": "embedding", "embedding": _encoded(embedding(tokens, dimensions), encoding)}
                for index, tokens in enumerate(inputs)
            ],
            "usage": {
                "prompt_tokens": count,
                "total_tokens": count,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        },
    )


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    return base64.b64encode(array("f", vector).tobytes()).decode() if encoding == "base64" else vector


def _inputs(given: object) -> list[Any]:
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(isinstance(one, int) for one in given):
            return [given]
        if all(isinstance(one, str | list) for one in given):
            return given
    raise invalid("string_type", "body.input", "Input should be a valid string", given)
