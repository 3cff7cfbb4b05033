"""A chat answer, whole or streamed, as an answer of the Responses API, sans I/O.

**Theory.** A Responses stream is a tree told in order: a response holds items (a message, a function call, reasoning), a
message holds parts, and every node is announced (`…added`), filled (`…delta`) and closed (`…done`) before the response
itself ends in exactly one of `response.completed`, `.incomplete` or `.failed`. Chat chunks are flat. So the stream keeps
the node that is being filled and closes it when a chunk is about another one. Function calls are the exception: a chunk
may return to an earlier one by its index, so they are all closed at the end.

`sequence_number` counts every event from 0. There is no `[DONE]`. Shapes: OpenAI's API reference, *Responses: streaming
events*; vLLM's own are in the captures of the project.

Nothing here is clock or chance: ids are made of the `stem` and the creation time that the caller gives.
"""

from typing import Any

import msgspec

from nebula_core.wire import sse
from nebula_core.wire.responses_request import Asked


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    #: vLLM's and SGLang's word, and the older one.
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(msgspec.Struct):
    content: list[Any] | None = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _ReasoningTokens(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _CachedTokens | None = None
    completion_tokens_details: _ReasoningTokens | None = None

    def plain(self) -> dict[str, Any]:
        """The details are numbers in this API: what is not known of them counts as 0."""
        prompt, completion = self.prompt_tokens or 0, self.completion_tokens or 0
        cached, reasoning = self.prompt_tokens_details, self.completion_tokens_details
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": (cached.cached_tokens or 0) if cached else 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": (reasoning.reasoning_tokens or 0) if reasoning else 0},
            "total_tokens": prompt + completion,
        }


class _Chunk(msgspec.Struct):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def whole(body: bytes, asked: Asked, stem: str, created: int) -> bytes | None:
    """The response object for a chat completion; None when `body` is not one."""
    try:
        answer = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not answer.choices or answer.choices[0].message is None:
        return None
    choice = answer.choices[0]
    for index, call in enumerate(choice.message.tool_calls or ()):  # type: ignore[union-attr] # looked at above
        call.index = index
    choice.delta = choice.message
    stream = ResponseStream(asked, stem, created)
    stream.take(answer)
    stream.end()
    return msgspec.json.encode(stream.response())


class _Item:
    """An item of the output while it is being filled; `parts` are closed texts, `text` is the one being filled."""

    __slots__ = ("call_id", "id", "kind", "logprobs", "name", "part", "parts", "place", "text")

    def __init__(self, kind: str, item_id: str, place: int) -> None:
        self.kind = kind
        self.id = item_id
        self.place = place
        self.part: str | None = None
        self.text: list[str] = []
        self.logprobs: list[Any] = []
        self.parts: list[dict[str, Any]] = []
        self.name = ""
        self.call_id = ""

    def record(self, status: str) -> dict[str, Any]:
        if self.kind == "function_call":
            return {
                "id": self.id,
                "type": "function_call",
                "call_id": self.call_id,
                "name": self.name,
                "arguments": "".join(self.text) if status != "in_progress" else "",
                "status": status,
            }
        if self.kind == "reasoning":
            return {
                "id": self.id, "type": "reasoning", "summary": [], "content": list(self.parts),
                "encrypted_content": None, "status": status,
            }  # fmt: skip
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": list(self.parts),
        }

    def part_record(self, *, empty: bool = False) -> dict[str, Any]:
        text = "" if empty else "".join(self.text)
        if self.part == "refusal":
            return {"type": "refusal", "refusal": text}
        if self.part == "reasoning_text":
            return {"type": "reasoning_text", "text": text}
        logprobs = [] if empty else list(self.logprobs)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


class ResponseStream:
    """One stream: chat events in, Responses events out; or, fed with one whole message, a response object."""

    def __init__(self, asked: Asked, stem: str, created: int) -> None:
        """`stem` makes the ids (`resp_…`, `msg_…`), `created` is in Unix seconds."""
        self._asked = asked
        self._stem = stem
        self._created = created
        self._model = asked.model
        self._number = 0
        self._out: list[bytes] = []
        self._items: list[_Item] = []
        self._done: dict[int, dict[str, Any]] = {}
        self._open: _Item | None = None
        self._calls: dict[int, _Item] = {}
        self._begun = False
        self._finish: str | None = None
        self._usage: _Usage | None = None
        self._error: dict[str, Any] | None = None
        #: in_progress, then completed, incomplete or failed.
        self.status = "in_progress"

    @property
    def over(self) -> bool:
        return self.status != "in_progress"

    def feed(self, events: bytes) -> bytes:
        """Whole chat events as Responses events; empty when they say nothing a client of this API hears of."""
        for payload in sse.payloads(events):
            if self.over:
                break
            if payload.startswith(b"[DONE]"):
                self.end()
                break
            try:
                chunk = _decoder.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                self.fail({"message": f"The engine sent a chunk that is none: {error}", "code": "engine_died"})
                break
            if chunk.error:
                self.fail(chunk.error if isinstance(chunk.error, dict) else {"message": str(chunk.error)})
                break
            self.take(chunk)
        return self._taken()

    def finish(self) -> bytes:
        """The end of the chat stream: what closes this one, if it is not closed yet."""
        self.end()
        return self._taken()

    def _taken(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out

    # What a chunk says

    def take(self, chunk: _Chunk) -> None:
        if chunk.model:
            self._model = chunk.model
        self._begin()
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices or ():
            if choice.index:
                continue  # there is no `n` in this API
            if choice.delta is not None:
                self._delta(choice.delta, choice.logprobs)
            if choice.finish_reason:
                self._finish = choice.finish_reason

    def _delta(self, delta: _Delta, logprobs: _Logprobs | None) -> None:
        reasoning = delta.reasoning or delta.reasoning_content
        if reasoning:
            self._text("reasoning", "reasoning_text", reasoning)
        if delta.content:
            self._text("message", "output_text", delta.content, logprobs.content if logprobs is not None else None)
        if delta.refusal:
            self._text("message", "refusal", delta.refusal)
        for call in delta.tool_calls or ():
            self._call(call)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            for name in ("response.created", "response.in_progress"):
                self._event(name, response=self.response())

    def _text(self, kind: str, part: str, text: str, logprobs: list[Any] | None = None) -> None:
        item = self._open
        if item is None or item.kind != kind:
            self._close_open()
            item = self._open = self._add(_Item(kind, self._id(kind), len(self._items)))
        if item.part != part:
            self._close_part(item)
            item.part = part
            self._event("response.content_part.added", **self._at(item), part=item.part_record(empty=True))
        item.text.append(text)
        match part:
            case "output_text":
                item.logprobs.extend(logprobs or ())
                self._event("response.output_text.delta", **self._at(item), delta=text, logprobs=logprobs or [])
            case _:
                self._event(f"response.{part}.delta", **self._at(item), delta=text)

    def _call(self, call: _ToolCall) -> None:
        number = call.index or 0
        function = call.function or _Function()
        item = self._calls.get(number)
        if item is None:
            self._close_open()
            item = _Item("function_call", self._id("function_call"), len(self._items))
            item.name = function.name or ""
            item.call_id = call.id or f"call_{self._stem}_{number}"
            self._calls[number] = self._add(item)
        if function.arguments:
            item.text.append(function.arguments)
            place = {"item_id": item.id, "output_index": item.place}
            self._event("response.function_call_arguments.delta", **place, delta=function.arguments)

    # Nodes

    def _add(self, item: _Item) -> _Item:
        self._items.append(item)
        self._event("response.output_item.added", output_index=item.place, item=item.record("in_progress"))
        return item

    def _close_part(self, item: _Item) -> None:
        if item.part is None:
            return
        text = "".join(item.text)
        at = self._at(item)
        record = item.part_record()
        match item.part:
            case "output_text":
                self._event("response.output_text.done", **at, text=text, logprobs=record["logprobs"])
            case "refusal":
                self._event("response.refusal.done", **at, refusal=text)
            case part:
                self._event(f"response.{part}.done", **at, text=text)
        self._event("response.content_part.done", **at, part=record)
        item.parts.append(record)
        item.part = None
        item.text, item.logprobs = [], []

    def _close(self, item: _Item, status: str) -> None:
        if item.kind == "function_call":
            self._event(
                "response.function_call_arguments.done",
                item_id=item.id,
                output_index=item.place,
                name=item.name,
                arguments="".join(item.text),
            )
        else:
            self._close_part(item)
        record = self._done[item.place] = item.record(status)
        self._event("response.output_item.done", output_index=item.place, item=record)

    def _close_open(self, status: str = "completed") -> None:
        item, self._open = self._open, None
        if item is not None:
            self._close(item, status)

    # The end

    def end(self) -> None:
        """The answer is complete; closes everything. A second call does nothing."""
        if self.over:
            return
        self._begin()
        reason = _INCOMPLETE.get(self._finish or "")
        self._close_all("incomplete" if reason else "completed")
        self.status = "incomplete" if reason else "completed"
        self._event(f"response.{self.status}", response=self.response())

    def fail(self, error: dict[str, Any]) -> None:
        """The answer cannot go on. What was begun is left as it is; the `error` event follows for clients that raise."""
        if self.over:
            return
        self._begin()
        self.status = "failed"
        self._error = {"code": str(error.get("code") or "server_error"), "message": str(error.get("message") or error)}
        for item in self._items:
            if item.place not in self._done:
                if item.part is not None:
                    item.parts.append(item.part_record())
                self._done[item.place] = item.record("incomplete")
        self._event("response.failed", response=self.response())
        self._event("error", code=self._error["code"], message=self._error["message"], param=None, error=error)

    def _close_all(self, status: str) -> None:
        self._close_open(status)
        for item in self._calls.values():
            self._close(item, status)
        self._calls.clear()

    def response(self) -> dict[str, Any]:
        """The response object as it stands."""
        cut = _INCOMPLETE.get(self._finish or "") if self.status == "incomplete" else None
        return {
            "id": f"resp_{self._stem}",
            "object": "response",
            "created_at": self._created,
            "status": self.status,
            "error": self._error,
            "incomplete_details": {"reason": cut} if cut else None,
            "model": self._model,
            "output": [self._done[place] for place in sorted(self._done)] if self.over else [],
            "usage": self._usage.plain() if self.over and self._usage is not None else None,
            **self._asked.echo,
        }

    def _id(self, kind: str) -> str:
        prefix = {"message": "msg", "function_call": "fc", "reasoning": "rs"}[kind]
        return f"{prefix}_{self._stem}_{len(self._items)}"

    def _at(self, item: _Item) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": item.place, "content_index": len(item.parts)}

    def _event(self, name: str, /, **fields: Any) -> None:
        value = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        self._out.append(sse.encode(msgspec.json.encode(value), event=name))
