"""`/v1/chat/completions` of the simulated engine: plain and streamed, frame for frame in vLLM's order."""

from typing import Any

from nebula_agent.simulator.client import Answer, EngineFailed, Output, Sampling
from nebula_agent.simulator.http_server import Exchange
from nebula_agent.simulator.logprobs import chat_logprobs
from nebula_agent.simulator.prompt import render_chat
from nebula_agent.simulator.request_body import (
    ApiError,
    Fields,
    StreamOptions,
    check_lengths,
    check_range,
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
    new_id,
    now,
    reply_id,
    reply_json,
    usage,
)
from nebula_agent.simulator.structured import ToolCall, forced_tool_call, script_of, structured_text


class ChatRequest:
    """A chat that passed every check: its prompt, its sampling, and what the client wants to see."""

    def __init__(self, service: Service, body: dict[str, Any]) -> None:
        fields = Fields(body)
        messages = fields.required("messages")
        if not isinstance(messages, list):
            raise ApiError(400, "messages must be a list", kind="Bad Request", param="body.messages")
        check_range(fields)
        max_tokens = fields.integer("max_completion_tokens")
        if max_tokens is None:
            max_tokens = fields.integer("max_tokens")
        self.tool_call = forced_tool_call(fields, auto_allowed=service.auto_tools)
        self.model = service.model(fields)
        self.stream = fields.flag("stream")
        self.options: StreamOptions = stream_options(fields, stream=self.stream)
        text = render_chat(
            messages,
            tools=fields.items("tools"),
            add_generation_prompt=fields.flag("add_generation_prompt", default=True),
            continue_final_message=fields.flag("continue_final_message"),
        )
        self.prompt = service.encode(text)
        shaped = self.tool_call.arguments if self.tool_call else structured_text(fields)
        self.top_logprobs = fields.integer("top_logprobs") or 0
        self.want_logprobs = fields.flag("logprobs")
        self.return_token_ids = fields.flag("return_token_ids")
        self.echo = str(messages[-1].get("content") or "") if fields.flag("echo") and messages else ""
        self.sampling: Sampling = read_sampling(
            fields,
            max_tokens=check_lengths(len(self.prompt), max_tokens, service.max_model_len),
            script=None if shaped is None else script_of(shaped),
            fault=read_fault(fields, service.faults, allowed=service.allow_request_faults),
            logprobs=self.top_logprobs if self.want_logprobs else None,
        )


async def create(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    request = ChatRequest(service, body)
    request_id = reply_id("chatcmpl-", exchange, body)
    if request.stream:
        await _stream(service, exchange, request, request_id)
        return
    answers = service.submit([request.prompt], request.sampling)
    with service.held(answers):
        await _whole(service, exchange, request, request_id, answers)


async def _whole(
    service: Service, exchange: Exchange, request: ChatRequest, request_id: str, answers: list[Answer]
) -> None:
    created = now()
    choices = []
    generated = 0
    for index, answer in enumerate(answers):
        whole = await collect(answer)
        generated += len(whole.tokens)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": request.echo + whole.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        finish_reason = whole.finish_reason
        if request.tool_call is not None:
            message["content"] = ""
            function = {"name": request.tool_call.name, "arguments": whole.text}
            message["tool_calls"] = [{"id": new_id("chatcmpl-tool-"), "type": "function", "function": function}]
            finish_reason = _finish_reason(request.tool_call, finish_reason)
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": chat_logprobs(whole.tokens, 0, request.top_logprobs) if request.want_logprobs else None,
                "finish_reason": finish_reason,
                "stop_reason": whole.stop_reason,
                "token_ids": whole.tokens if request.return_token_ids else None,
                "routed_experts": None,
            }
        )
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    reply_json(
        exchange,
        {
            "id": request_id,
            "object": "chat.completion",
            "created": created,
            "model": request.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": service.fingerprint,
            "usage": usage(len(request.prompt), generated) | details,
            "prompt_logprobs": None,
            "prompt_token_ids": request.prompt if request.return_token_ids else None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        },
    )


async def _stream(service: Service, exchange: Exchange, request: ChatRequest, request_id: str) -> None:
    """The 200 is out before the engine was asked: a full queue is told in a frame, as vLLM does."""
    exchange.start_stream()
    frames = _Frames(service, request, request_id)
    try:
        answers = service.submit([request.prompt], request.sampling)
    except EngineFailed as failure:
        await exchange.send(error_event(failure))
        await exchange.send(DONE)
        exchange.end_stream()
        return
    with service.held(answers):
        try:
            begun = False
            async for index, output in merged(answers):
                if not begun:
                    begun = True
                    for frame in frames.opening(len(answers)):
                        await exchange.send(frame)
                await exchange.send(frames.delta(index, output))
            if request.options.include_usage:
                await exchange.send(frames.usage())
        except EngineFailed as failure:
            await exchange.send(error_event(failure))
        await exchange.send(DONE)
        exchange.end_stream()


class _Frames:
    """The frames of one stream."""

    def __init__(self, service: Service, request: ChatRequest, request_id: str) -> None:
        self._service = service
        self._request = request
        self._head = {
            "id": request_id,
            "object": "chat.completion.chunk",
            "created": now(),
            "model": request.model,
        }
        self._generated = [0] * request.sampling.n
        self._tool_ids: dict[int, str] = {}

    def opening(self, count: int) -> list[bytes]:
        frames = []
        for index in range(count):
            choice = _choice(index, {"role": "assistant", "content": ""})
            prompt_ids = self._request.prompt if self._request.return_token_ids else None
            frames.append(self._frame([choice], 0, tail={"prompt_token_ids": prompt_ids, "prompt_text": None}))
        if self._request.echo:
            frames.extend(self._frame([_choice(index, {"content": self._request.echo})], 0) for index in range(count))
        return frames

    def delta(self, index: int, output: Output) -> bytes:
        request = self._request
        start = self._generated[index]
        self._generated[index] += len(output.tokens)
        choice = _choice(index, self._delta_of(index, output.text))
        if request.want_logprobs:
            choice["logprobs"] = chat_logprobs(output.tokens, start, request.top_logprobs)
        tail: dict[str, Any] = {}
        if output.finish_reason is not None:
            choice["finish_reason"] = _finish_reason(request.tool_call, output.finish_reason)
            choice["stop_reason"] = output.stop_reason
            if not request.options.include_usage:
                tail["system_fingerprint"] = self._service.fingerprint
        choice["token_ids"] = output.tokens if request.return_token_ids else None
        return self._frame([choice], self._generated[index], tail=tail)

    def usage(self) -> bytes:
        numbers = usage(len(self._request.prompt), sum(self._generated))
        return event({**self._head, "choices": [], "usage": numbers, "system_fingerprint": self._service.fingerprint})

    def _delta_of(self, index: int, text: str) -> dict[str, Any]:
        call = self._request.tool_call
        if call is None:
            return {"content": text}
        if index in self._tool_ids:
            return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        self._tool_ids[index] = new_id("chatcmpl-tool-")
        function = {"name": call.name, "arguments": text}
        return {"tool_calls": [{"id": self._tool_ids[index], "type": "function", "index": 0, "function": function}]}

    def _frame(self, choices: list[dict[str, Any]], generated: int, tail: dict[str, Any] | None = None) -> bytes:
        value: dict[str, Any] = {**self._head, "choices": choices}
        if tail and "prompt_token_ids" not in tail:
            value.update(tail)
        if self._request.options.continuous_usage:
            value["usage"] = usage(len(self._request.prompt), generated) | {"completion_tokens_details": None}
        if tail and "prompt_token_ids" in tail:
            value.update(tail)
        return event(value)


def _choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _finish_reason(call: ToolCall | None, reason: str) -> str:
    return "tool_calls" if call is not None and not call.named and reason == "stop" else reason
