"""What all APIs of the simulated engine share: names and limits, ids, sequences that are let go of whatever happens."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from nebula_agent.simulator.client import Answer, EngineClient, EngineFailed, Output, Sampling
from nebula_agent.simulator.faults import Faults
from nebula_agent.simulator.http_server import Exchange
from nebula_agent.simulator.request_body import ApiError, Fields, check_lengths
from nebula_agent.simulator.tokenizer import LONGEST_TOKEN, tokenizer

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One served engine, as the API files see it."""

    client: EngineClient
    names: tuple[str, ...]
    adapters: tuple[str, ...]
    max_model_len: int
    fingerprint: str
    faults: Faults
    allow_request_faults: bool
    auto_tools: bool

    def model(self, fields: Fields) -> str:
        """The name to answer with; the first served name if the client gave none."""
        name = fields.text("model")
        if name is None or not name:
            return self.names[0]
        if name not in self.names:
            raise ApiError(
                404,
                f"The model `{name}` does not exist. Valid aliases: {', '.join(self.names)}.",
                kind="NotFoundError",
                param="model",
            )
        return name

    def encode(self, text: str) -> list[int]:
        """The prompt's tokens; what can only be too long is refused before it costs the time to encode it."""
        if len(text) > LONGEST_TOKEN * self.max_model_len:
            check_lengths(self.max_model_len, None, self.max_model_len)
        return tokenizer().encode(text)

    def submit(self, prompts: list[list[int]], sampling: Sampling) -> list[Answer]:
        """`sampling.n` answers for each prompt, in order; EngineFailed if they are not let in."""
        self.client.check_admission(len(prompts) * sampling.n)
        return [
            self.client.submit(prompt, sampling, choice=choice) for prompt in prompts for choice in range(sampling.n)
        ]

    @contextmanager
    def held(self, answers: list[Answer]) -> Iterator[None]:
        """Lets go of the answers at the end: done, failed, or the client gone."""
        try:
            yield
        finally:
            self.client.release(answers)


def new_id(prefix: str) -> str:
    return f"{prefix}{os.urandom(8).hex()}"


def reply_id(prefix: str, exchange: Exchange, body: Mapping[str, Any]) -> str:
    """The id a reply carries: the client's own, from the header or the body, behind the prefix, as in vLLM."""
    own = exchange.request.headers.get("x-request-id") or body.get("request_id")
    return f"{prefix}{own}" if own else new_id(prefix)


def now() -> int:
    return int(time.time())


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def reply_json(exchange: Exchange, value: Any, status: int = 200) -> None:
    try:
        body = _encode(value)
    except UnicodeEncodeError:
        # A lone surrogate the client sent and gets back, in an error message say: escaped it is still JSON.
        body = json.dumps(value).encode()
    exchange.reply(status, body)


def event(value: Any) -> bytes:
    """One frame of an OpenAI stream."""
    return b"data: " + _encode(value) + b"\n\n"


def named_event(name: str, value: Any) -> bytes:
    """One frame of a Responses or Messages stream."""
    return b"event: " + name.encode() + b"\ndata: " + _encode(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def error_body(failure: EngineFailed) -> dict[str, Any]:
    return {"error": {"message": failure.message, "type": failure.kind, "param": None, "code": failure.status}}


def error_event(failure: EngineFailed) -> bytes:
    """The frame that tells of a failure behind a 200; with the blanks vLLM's has, being made by another encoder."""
    return b"data: " + json.dumps(error_body(failure)).encode() + b"\n\n"


async def merged(answers: list[Answer]) -> AsyncIterator[tuple[int, Output]]:
    """The outputs of several answers as they come: (number of the answer, output)."""
    if len(answers) == 1:
        while True:
            output = await answers[0].next_output()
            yield 0, output
            if output.finish_reason is not None:
                return
    async for item in _merge_many(answers):
        yield item


async def _merge_many(answers: list[Answer]) -> AsyncIterator[tuple[int, Output]]:
    waiting = {asyncio.ensure_future(answer.next_output()): number for number, answer in enumerate(answers)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                output = task.result()
                if output.finish_reason is None:
                    waiting[asyncio.ensure_future(answers[number].next_output())] = number
                yield number, output
    finally:
        for task in waiting:
            task.cancel()


@dataclass(slots=True)
class Whole:
    """An answer read to its end."""

    text: str
    tokens: list[int]
    finish_reason: str
    stop_reason: str | int | None


async def collect(answer: Answer) -> Whole:
    text, tokens = "", []
    while True:
        output = await answer.next_output()
        text += output.text
        tokens += output.tokens
        if output.finish_reason is not None:
            return Whole(text, tokens, output.finish_reason, output.stop_reason)
