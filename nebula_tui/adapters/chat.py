"""Streaming chat on the data plane, like any client: text as it comes, time to first token, usage, and who answered.

Times are taken here with the monotonic clock, from just before the request is written to the first piece of text, so
they hold what a user of this machine would see. A replica is pinned by `x-nebula-replica` (operator keys only).
"""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from nebula_core.errors import NebulaError
from nebula_core.wire.sse import TooLong
from nebula_tui.adapters.control import Garbled, NotAllowed, NotFound, Refused, Unreachable
from nebula_tui.adapters.sse import decode

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    turns: Sequence[Turn]
    replica: str | None = None
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = 512


@dataclass(frozen=True, slots=True)
class ChatOpened:
    """Headers are here: which replica answers, and why this one."""

    replica: str | None = None
    decision: str | None = None
    request_id: str | None = None
    overhead_ms: float | None = None


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of text; `ttft_seconds` on the first one only."""

    text: str
    ttft_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ChatDone:
    """The end: tokens as the engine counted them (None when it did not say), seconds over all."""

    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0
    extra: dict[str, str] = field(default_factory=dict)


ChatEvent = ChatOpened | ChatDelta | ChatDone


class Chat(Protocol):
    """What the chat screen needs of a data plane."""

    def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]: ...
    async def aclose(self) -> None: ...


class ChatClient:
    """`base_url` ends in `/v1`."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        connect_seconds: float = 5.0,
        silence_seconds: float = 120.0,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._key = api_key
        self._connect = connect_seconds
        self._silence = silence_seconds
        self._http: httpx.AsyncClient | None = None

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Raises an error of this tree; leaving the iterator closes the connection, so the engine stops as well."""
        import httpx

        timeout = httpx.Timeout(self._connect, read=self._silence)
        started = time.monotonic()
        try:
            async with self._client().stream(
                "POST",
                f"{self.base_url}/chat/completions",
                json=_body(request),
                headers={"x-nebula-replica": request.replica} if request.replica else {},
                timeout=timeout,
            ) as answer:
                if answer.is_error:
                    raise _refused(answer.status_code, await answer.aread())
                yield _opened(answer.headers)
                async for event in self._read(answer, started):
                    yield event
        except TooLong as error:
            raise Garbled(f"the stream cannot be read: {error}") from error
        except httpx.TimeoutException as error:
            raise Unreachable(f"{self.base_url} does not answer in time", hint="try again") from error
        except (httpx.HTTPError, OSError) as error:
            raise Unreachable(
                f"{self.base_url} is not reachable ({error or type(error).__name__})", hint="is the proxy running?"
            ) from error

    async def _read(self, answer: "httpx.Response", started: float) -> AsyncIterator[ChatEvent]:
        finish: str | None = None
        usage: dict[str, Any] = {}
        first = True
        async for event in decode(answer.aiter_bytes()):
            if event is None:
                continue
            data = event.data
            if data == "[DONE]":
                yield ChatDone(
                    finish,
                    _whole(usage.get("prompt_tokens")),
                    _whole(usage.get("completion_tokens")),
                    time.monotonic() - started,
                )
                return
            chunk = _chunk(data)
            if event.event == "error" or "error" in chunk:
                raise _refused(None, data)
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                finish = choice.get("finish_reason") or finish
                delta = choice.get("delta") or {}
                text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
                if text:
                    yield ChatDelta(text, time.monotonic() - started if first else None)
                    first = False
        raise Refused("the answer broke off before its end", hint="the replica may have died: see events")

    def _client(self) -> "httpx.AsyncClient":
        import httpx

        if self._http is None:
            headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
            self._http = httpx.AsyncClient(headers=headers, trust_env=False)
        return self._http


def _body(request: ChatRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": turn.role, "content": turn.text} for turn in request.turns],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name in ("temperature", "seed", "max_tokens"):
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    return body


def _opened(headers: "httpx.Headers") -> ChatOpened:
    try:
        overhead: float | None = float(headers.get("x-nebula-overhead-ms", ""))
    except ValueError:
        overhead = None
    return ChatOpened(
        headers.get("x-nebula-replica"), headers.get("x-nebula-decision"), headers.get("x-request-id"), overhead
    )


def _chunk(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise Garbled("a chunk of the answer is not JSON", hint="is this an OpenAI-compatible address?") from error
    if not isinstance(chunk, dict):
        raise Garbled("a chunk of the answer is not an object", hint="is this an OpenAI-compatible address?")
    return chunk


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _refused(status: int | None, content: str | bytes) -> NebulaError:
    """The OpenAI envelope as an error; an engine's own body may lack fields of ours."""
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    message, hint = f"HTTP {status}: {text[:200]}", None
    try:
        body = json.loads(text)
        error = body.get("error", body)
        message = str(error.get("message") or message)
        told = error.get("hint")
        hint = str(told) if told else None
    except (ValueError, AttributeError):
        pass  # not our envelope: the beginning of the body says most
    match status:
        case 401 | 403:
            return NotAllowed(message, hint=hint or "check the key of this context")
        case 404:
            return NotFound(message, hint=hint or "see the models with 3")
        case _:
            return Refused(message, hint=hint)
