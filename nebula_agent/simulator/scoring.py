"""`/v1/score` and `/v1/rerank` of the simulated engine (`--runner pooling`): the share of tokens two texts have in common.

No model judges here, yet the order is not senseless: a document that repeats the words of the query comes first. The
shapes are read from vLLM's source (`entrypoints/pooling/scoring/`), not captured.
"""

from typing import Any

from nebula_agent.simulator.client import Sampling
from nebula_agent.simulator.http_server import Exchange
from nebula_agent.simulator.request_body import ApiError, Fields, check_lengths, invalid, read_fault
from nebula_agent.simulator.service import Service, collect, now, reply_id, reply_json, usage
from nebula_agent.simulator.tokenizer import tokenizer

_PAIRS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


def similarity(one: list[int], other: list[int]) -> float:
    """0..1: tokens in both, of tokens in either."""
    either = set(one) | set(other)
    return len(set(one) & set(other)) / len(either) if either else 0.0


async def score(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    fields = Fields(body)
    model = service.model(fields)
    names = next((pair for pair in _PAIRS if pair[0] in body and pair[1] in body), None)
    if names is None:
        raise invalid("missing", "body.queries", "Field required", body)
    queries, documents = (_texts(fields, name) for name in names)
    if len(queries) not in {1, len(documents)}:
        raise ApiError(400, "Input lengths must be either 1:1, 1:N or N:N")
    if len(queries) == 1:
        queries *= len(documents)
    request_id = reply_id("embd-", exchange, body)
    scores, prompt_tokens = await _scores(service, fields, list(zip(queries, documents, strict=True)))
    reply_json(
        exchange,
        {
            "id": request_id,
            "object": "list",
            "created": now(),
            "model": model,
            "data": [{"index": index, "object": "score", "score": one} for index, one in enumerate(scores)],
            "usage": usage(prompt_tokens, 0) | {"prompt_tokens_details": None, "completion_tokens_details": None},
        },
    )


async def rerank(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    fields = Fields(body)
    model = service.model(fields)
    query = fields.required("query")
    if not isinstance(query, str):
        raise invalid("string_type", "body.query", "Input should be a valid string", query)
    documents = _texts(fields, "documents")
    request_id = reply_id("rerank-", exchange, body)
    scores, prompt_tokens = await _scores(service, fields, [(query, document) for document in documents])
    results: list[dict[str, Any]] = [
        {"index": index, "document": {"text": document, "multi_modal": None}, "relevance_score": scores[index]}
        for index, document in enumerate(documents)
    ]
    results.sort(key=lambda result: -float(result["relevance_score"]))
    reply_json(
        exchange,
        {
            "id": request_id,
            "model": model,
            "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
            "results": results[: fields.integer("top_n") or len(results)],
        },
    )


async def _scores(service: Service, fields: Fields, pairs: list[tuple[str, str]]) -> tuple[list[float], int]:
    """One score for each pair, after the engine has computed the prompts; and how many tokens they had."""
    encoded = [(service.encode(query), service.encode(document)) for query, document in pairs]
    prompts = [[*query, tokenizer().end_of_text, *document] for query, document in encoded]
    for prompt in prompts:
        check_lengths(len(prompt), 1, service.max_model_len)
    fault = read_fault(fields, service.faults, allowed=service.allow_request_faults)
    answers = service.submit(prompts, Sampling(max_tokens=1, temperature=0.0, fault=fault))
    with service.held(answers):
        for answer in answers:
            await collect(answer)
    return [similarity(query, document) for query, document in encoded], sum(map(len, prompts))


def _texts(fields: Fields, name: str) -> list[str]:
    given = fields.required(name)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise invalid("string_type", f"body.{name}", "Input should be a valid string", given)
    return texts
