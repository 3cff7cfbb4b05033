"""`/v1/completions` of the simulated engine: text or token ids in, the rest out; the way a cut stream is resumed."""

from typing import Any

from nebula_agent.simulator.client import EngineFailed, Output, Sampling
from nebula_agent.simulator.http_server import Exchange
from nebula_agent.simulator.logprobs import completion_logprobs, made_up
from nebula_agent.simulator.request_body import (
    ApiError,
    Fields,
    StreamOptions,
    check_lengths,
    check_range,
    invalid,
    read_fault,
    read_sampling,
    stream_options,
)
from nebula_agent.simulator.service import (
    DONE,
    Service,
    collect,
    error_event,
    event,
    merged,
    now,
    reply_id,
    reply_json,
    usage,
)
from nebula_agent.simulator.structured import script_of, structured_text
from nebula_agent.simulator.tokenizer import tokenizer

_DEFAULT_MAX_TOKENS = 16


def _prompts(service: Service, given: object) -> list[list[int]]:
    """A string, token ids, or a list of either."""
    if isinstance(given, str):
        return [_encoded(service, given)]
    if isinstance(given, list) and given:
        if all(isinstance(item, int) for item in given):
            return [_checked(given)]
        if all(isinstance(item, str) for item in given):
            return [_encoded(service, item) for item in given]
        if all(isinstance(item, list) and item and all(isinstance(one, int) for one in item) for item in given):
            return [_checked(item) for item in given]
    if given is None or given == []:
        raise ApiError(
            400, "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)", param="prompt"
        )
    raise invalid("string_type", "body.prompt", "Input should be a valid string", given)


def _encoded(service: Service, text: str) -> list[int]:
    return service.encode(text) or [tokenizer().end_of_text]


def _checked(tokens: list[int]) -> list[int]:
    outside = [token for token in tokens if not 0 <= token < tokenizer().size]
    if outside:
        raise ApiError(400, f"Token id {outside[0]} is out of vocabulary")
    return tokens


class CompletionRequest:
    """A completion that passed every check."""

    def __init__(self, service: Service, body: dict[str, Any]) -> None:
        fields = Fields(body)
        check_range(fields)
        self.model = service.model(fields)
        self.stream = fields.flag("stream")
        self.options: StreamOptions = stream_options(fields, stream=self.stream)
        self.prompts = _prompts(service, body.get("prompt"))
        self.logprobs = fields.integer("logprobs")
        self.echo = fields.flag("echo")
        self.return_token_ids = fields.flag("return_token_ids")
        max_tokens = fields.integer("max_tokens")
        room = min(
            check_lengths(
                len(prompt), _DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens or 1, service.max_model_len
            )
            for prompt in self.prompts
        )
        shaped = structured_text(fields)
        self.sampling: Sampling = read_sampling(
            fields,
            max_tokens=room,
            script=None if shaped is None else script_of(shaped),
            fault=read_fault(fields, service.faults, allowed=service.allow_request_faults),
            logprobs=self.logprobs,
        )
        self.prompt_tokens = sum(len(prompt) for prompt in self.prompts)

    def prompt_of(self, number: int) -> list[int]:
        return self.prompts[number // self.sampling.n]


async def create(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    request = CompletionRequest(service, body)
    request_id = reply_id("cmpl-", exchange, body)
    if request.stream:
        await _stream(service, exchange, request, request_id)
        return
    answers = service.submit(request.prompts, request.sampling)
    with service.held(answers):
        created = now()
        choices = []
        generated = 0
        for number, answer in enumerate(answers):
            whole = await collect(answer)
            generated += len(whole.tokens)
            choices.append(
                _whole_choice(request, number, Output(whole.text, whole.tokens, whole.finish_reason, whole.stop_reason))
            )
        details = {"prompt_tokens_details": None, "completion_tokens_details": None}
        reply_json(
            exchange,
            {
                "id": request_id,
                "object": "text_completion",
                "created": created,
                "model": request.model,
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": service.fingerprint,
                "usage": usage(request.prompt_tokens, generated) | details,
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            },
        )


def _whole_choice(request: CompletionRequest, number: int, output: Output) -> dict[str, Any]:
    prompt = request.prompt_of(number)
    prompt_text = tokenizer().decode(prompt) if request.echo else ""
    logprobs = prompt_logprobs = None
    if request.logprobs is not None:
        tokens = [*prompt, *output.tokens] if request.echo else output.tokens
        logprobs = completion_logprobs(tokens, 0, request.logprobs, 0, first_unknown=request.echo)
    if request.sampling.prompt_logprobs:
        prompt_logprobs = _prompt_logprobs(prompt, request.logprobs or 1)
    return {
        "index": number,
        "text": prompt_text + output.text,
        "logprobs": logprobs,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
        "token_ids": output.tokens if request.return_token_ids else None,
        "prompt_logprobs": prompt_logprobs,
        "prompt_token_ids": prompt if request.return_token_ids else None,
        "routed_experts": None,
    }


def _prompt_logprobs(prompt: list[int], alternatives: int) -> list[dict[str, Any] | None]:
    entries: list[dict[str, Any] | None] = [None]
    for place, token in enumerate(prompt[1:], start=1):
        entries.append(
            {
                str(one): {"logprob": logprob, "rank": rank, "decoded_token": tokenizer().token_text(one)}
                for rank, (one, logprob) in enumerate(made_up(token, place, alternatives), start=1)
            }
        )
    return entries


async def _stream(service: Service, exchange: Exchange, request: CompletionRequest, request_id: str) -> None:
    exchange.start_stream()
    head = {"id": request_id, "object": "text_completion", "created": now(), "model": request.model}
    try:
        answers = service.submit(request.prompts, request.sampling)
    except EngineFailed as failure:
        await exchange.send(error_event(failure))
        await exchange.send(DONE)
        exchange.end_stream()
        return
    generated = [0] * len(answers)
    written = [0] * len(answers)
    with service.held(answers):
        try:
            async for number, output in merged(answers):
                first = generated[number] == 0
                start = generated[number]
                generated[number] += len(output.tokens)
                text = output.text
                prompt = request.prompt_of(number)
                if first and request.echo:
                    text = tokenizer().decode(prompt) + text
                logprobs = None
                if request.logprobs is not None:
                    logprobs = completion_logprobs(output.tokens, start, request.logprobs, written[number])
                written[number] += len(text)
                value: dict[str, Any] = {
                    **head,
                    "choices": [
                        {
                            "index": number,
                            "text": text,
                            "logprobs": logprobs,
                            "finish_reason": output.finish_reason,
                            "stop_reason": output.stop_reason,
                            "prompt_token_ids": prompt if request.return_token_ids and first else None,
                            "token_ids": output.tokens if request.return_token_ids else None,
                        }
                    ],
                }
                if output.finish_reason is not None and not request.options.include_usage:
                    value["system_fingerprint"] = service.fingerprint
                if request.options.continuous_usage:
                    value["usage"] = usage(len(prompt), generated[number])
                await exchange.send(event(value))
            if request.options.include_usage:
                numbers = usage(request.prompt_tokens, sum(generated))
                last = {**head, "choices": [], "usage": numbers, "system_fingerprint": service.fingerprint}
                await exchange.send(event(last))
        except EngineFailed as failure:
            await exchange.send(error_event(failure))
        await exchange.send(DONE)
        exchange.end_stream()
