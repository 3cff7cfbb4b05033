"""`/v1/responses` of the simulated engine: plain, and as the row of named events vLLM sends."""

from typing import Any

from nebula_agent.simulator.client import EngineFailed
from nebula_agent.simulator.http_server import Exchange
from nebula_agent.simulator.prompt import render_chat
from nebula_agent.simulator.request_body import (
    ApiError,
    Fields,
    check_lengths,
    check_range,
    invalid,
    read_fault,
    read_sampling,
)
from nebula_agent.simulator.service import (
    Service,
    collect,
    error_event,
    named_event,
    new_id,
    now,
    reply_json,
)
from nebula_agent.simulator.structured import forced_tool_call, script_of, structured_text


class ResponsesRequest:
    """A request that passed every check, and the parts of its reply that are known before the first token."""

    def __init__(self, service: Service, body: dict[str, Any]) -> None:
        fields = Fields(body)
        check_range(fields)
        self.model = service.model(fields)
        self.stream = fields.flag("stream")
        self.instructions = fields.text("instructions")
        self.max_output_tokens = fields.integer("max_output_tokens")
        messages = _messages(fields.required("input"))
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        tools = _chat_tools(fields.items("tools") or [])
        choice = body.get("tool_choice", "auto" if tools else "none")
        if isinstance(choice, dict) and "function" not in choice:
            choice = {"type": "function", "function": {"name": choice.get("name")}}
        self.tools, self.tool_choice = body.get("tools") or [], body.get("tool_choice", "auto") if tools else "none"
        self.call = forced_tool_call(Fields({"tools": tools, "tool_choice": choice}), auto_allowed=service.auto_tools)
        self.call_id = new_id("call_")
        wanted = (fields.table("text") or {}).get("format")
        shaped = (
            self.call.arguments if self.call else structured_text(Fields({"response_format": _chat_format(wanted)}))
        )
        self.prompt = service.encode(render_chat(messages, tools=tools))
        self.room = check_lengths(len(self.prompt), self.max_output_tokens, service.max_model_len)
        self.sampling = read_sampling(
            fields,
            max_tokens=self.room,
            script=None if shaped is None else script_of(shaped),
            fault=read_fault(fields, service.faults, allowed=service.allow_request_faults),
            logprobs=None,
        )
        self.response_id = new_id("resp_")
        self.message_id = new_id("fc_" if self.call else "msg_")
        self._created = now()
        self._metadata = fields.table("metadata")
        top_p = fields.number("top_p")
        self._top_p = 1.0 if top_p is None else top_p

    def response(self, text: str | None = None, generated: int = 0, finish_reason: str | None = None) -> dict[str, Any]:
        """The response object; without a text the one of a stream that has only begun."""
        cut = finish_reason == "length"
        finished = text is not None
        return {
            "id": self.response_id,
            "created_at": self._created,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": self.instructions,
            "metadata": self._metadata,
            "model": self.model,
            "object": "response",
            "output": [self.item(text)] if text is not None else [],
            "parallel_tool_calls": True,
            "temperature": self.sampling.temperature,
            "tool_choice": self.tool_choice,
            "tools": self.tools,
            "top_p": self._top_p,
            "background": False,
            "max_output_tokens": self.room if self.max_output_tokens is None else self.max_output_tokens,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": ("incomplete" if cut else "completed") if finished else "in_progress",
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": self._usage(generated) if finished else None,
            "user": None,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }

    def item(self, text: str | None) -> dict[str, Any]:
        if self.call is not None:
            return {
                "arguments": text or "",
                "call_id": self.call_id,
                "name": self.call.name,
                "type": "function_call",
                "id": self.message_id,
                "status": "in_progress" if text is None else "completed",
            }
        return {
            "id": self.message_id,
            "content": [] if text is None else [part(text)],
            "role": "assistant",
            "status": "in_progress" if text is None else "completed",
            "type": "message",
            "phase": None,
        }

    def _usage(self, generated: int) -> dict[str, Any]:
        return {
            "input_tokens": len(self.prompt),
            "input_tokens_details": {
                "cached_tokens": 0,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": generated,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": len(self.prompt) + generated,
        }


def part(text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}


def _messages(given: object) -> list[Any]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if isinstance(given, list):
        messages = []
        for item in given:
            if isinstance(item, dict) and item.get("type", "message") == "message":
                messages.append({"role": item.get("role"), "content": item.get("content")})
            elif isinstance(item, dict) and item.get("type") == "function_call":
                messages.append({"role": "assistant", "content": None, "tool_calls": [item]})
            elif isinstance(item, dict) and item.get("type") == "function_call_output":
                messages.append({"role": "tool", "content": item.get("output")})
            elif isinstance(item, dict) and item.get("type") != "reasoning":
                raise ApiError(400, f"input items of type {item.get('type')} are not simulated", param="input")
        return messages
    raise invalid("string_type", "body.input", "Input should be a valid string", given)


def _chat_tools(tools: list[Any]) -> list[Any]:
    """Tools as a chat has them: what a function is stands one level deeper there."""
    return [
        {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
        if isinstance(tool, dict) and tool.get("type") == "function"
        else tool
        for tool in tools
    ]


def _chat_format(wanted: Any) -> Any:
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {name: value for name, value in wanted.items() if name != "type"}}
    return wanted if isinstance(wanted, dict) else None


async def create(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    request = ResponsesRequest(service, body)
    answers = service.submit([request.prompt], request.sampling)
    with service.held(answers):
        if not request.stream:
            whole = await collect(answers[0])
            reply_json(exchange, request.response(whole.text, len(whole.tokens), whole.finish_reason))
            return
        exchange.start_stream()
        events = _Events(request)
        try:
            for frame in events.opening():
                await exchange.send(frame)
            text, generated = "", 0
            while True:
                output = await answers[0].next_output()
                generated += len(output.tokens)
                text += output.text
                if output.text:
                    await exchange.send(events.delta(output.text))
                if output.finish_reason is not None:
                    break
            for frame in events.closing(text, generated, output.finish_reason):
                await exchange.send(frame)
        except EngineFailed as failure:
            await exchange.send(error_event(failure))
        exchange.end_stream()


class _Events:
    """The numbered events of one stream."""

    def __init__(self, request: ResponsesRequest) -> None:
        self._request = request
        self._number = 0

    def opening(self) -> list[bytes]:
        request = self._request
        begun = {"response": request.response()}
        return [
            self._event("response.created", begun),
            self._event("response.in_progress", begun),
            self._event("response.output_item.added", {"item": request.item(None), "output_index": 0}),
            *(
                []
                if request.call
                else [self._event("response.content_part.added", {**self._place(), "part": part("", [])})]
            ),
        ]

    def delta(self, text: str) -> bytes:
        if self._request.call is not None:
            at = {"item_id": self._request.message_id, "output_index": 0}
            return self._event("response.function_call_arguments.delta", {"delta": text, **at})
        return self._event(
            "response.output_text.delta",
            {
                "content_index": 0,
                "delta": text,
                "item_id": self._request.message_id,
                "logprobs": [],
                "output_index": 0,
            },
        )

    def closing(self, text: str, generated: int, finish_reason: str) -> list[bytes]:
        request = self._request
        if request.call is not None:
            at = {"item_id": request.message_id, "output_index": 0}
            first = [
                self._event(
                    "response.function_call_arguments.done", {"arguments": text, "name": request.call.name, **at}
                )
            ]
        else:
            done = {
                "content_index": 0,
                "item_id": request.message_id,
                "logprobs": [],
                "output_index": 0,
            }
            first = [
                self._event("response.output_text.done", done, tail={"text": text}),
                self._event("response.content_part.done", {**self._place(), "part": part(text)}),
            ]
        return [
            *first,
            self._event("response.output_item.done", {"item": request.item(text), "output_index": 0}),
            self._event("response.completed", {"response": request.response(text, generated, finish_reason)}),
        ]

    def _place(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self._request.message_id, "output_index": 0}

    def _event(self, name: str, value: dict[str, Any], tail: dict[str, Any] | None = None) -> bytes:
        number = {"sequence_number": self._number}
        self._number += 1
        return named_event(name, {**value, **number, **(tail or {}), "type": name})
