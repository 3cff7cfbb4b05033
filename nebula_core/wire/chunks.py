"""Chunks of token streams that carry token ids (vLLM's `return_token_ids`): read, made plain again, and written.

An engine that is asked for token ids puts them into each chunk: `"token_ids":[…]` in the choice, and the prompt's once,
`"prompt_token_ids":[…]`. Engines that were not asked write `null` there, so a chunk is made plain by writing `null`.
Inside a JSON string every quote is escaped, so these keys cannot be met in the text of a model, and bytes may be cut
without parsing JSON.

Two shapes (vLLM 0.32.0, captured): chat chunks with a `delta`, completion chunks with a `text`. A chunk begins with a
*head* that is the same for the whole stream: `data: {"id":…,"object":…,"created":…,"model":…,`.
"""

import re
from typing import Any

import msgspec

_IDS = re.compile(rb'("(?:prompt_)?token_ids"\s*:\s*)\[[0-9,\s]*\]')
_CHOICES = b'"choices":'
#: A head that says whose chunks these are; without it a stream cannot be continued under the same name.
_HEAD = re.compile(rb'data: \{"id":"[^"\\]*",.*"model":"', re.DOTALL).match


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None
    refusal: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Chunk(msgspec.Struct):
    """One chunk of a stream."""

    choices: list[_Choice] = msgspec.field(default_factory=list)
    prompt_token_ids: list[int] | None = None
    usage: dict[str, Any] | None = None
    system_fingerprint: Any = None

    @property
    def ids(self) -> list[int] | None:
        """The tokens of this chunk; None when the engine did not say."""
        return self.choices[0].token_ids if self.choices else None

    @property
    def prompt(self) -> list[int] | None:
        if self.prompt_token_ids is not None:
            return self.prompt_token_ids
        return self.choices[0].prompt_token_ids if self.choices else None

    @property
    def text(self) -> str:
        if not self.choices:
            return ""
        choice = self.choices[0]
        return (choice.delta.content if choice.delta is not None else choice.text) or ""

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason if self.choices else None

    @property
    def is_surplus(self) -> bool:
        """A chunk that is sent for its ids alone: a parser of the engine keeps the text of these tokens to itself."""
        if len(self.choices) != 1:
            return False
        delta = self.choices[0].delta
        return (
            delta is not None
            and delta.content is None
            and delta.role is None
            and self.choices[0].finish_reason is None
            and self.is_text_only
        )

    @property
    def is_text_only(self) -> bool:
        """It is of one answer, and nothing but plain text of it."""
        if len(self.choices) != 1 or self.choices[0].index != 0:
            return False
        delta = self.choices[0].delta
        return delta is None or not (delta.reasoning or delta.reasoning_content or delta.tool_calls or delta.refusal)


_decoder = msgspec.json.Decoder(Chunk)


def read_chunk(event: bytes) -> Chunk | None:
    """The chunk in one whole event; None when it holds none (`[DONE]`, a comment, another shape)."""
    if not event.startswith(b"data:"):
        return None
    try:
        return _decoder.decode(event[5:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def without_ids(events: bytes) -> bytes:
    """The events as the engine would have sent them without being asked for token ids."""
    return _IDS.sub(rb"\1null", events) if b"token_ids" in events else events


def head_of(event: bytes) -> bytes | None:
    """What every chunk of this stream begins with, from its first event; None when the shape is another."""
    at = event.find(_CHOICES)
    if at < 0 or _HEAD(event[:at]) is None:
        return None
    return event[:at]


class Shape:
    """How the chunks of one stream are written: the bytes around what changes."""

    __slots__ = ("_after_text", "_chat", "_finish", "head", "marker", "prefix")

    def __init__(self, head: bytes, *, chat: bool) -> None:
        self.head = head
        self._chat = chat
        between = b"" if chat else b'"stop_reason":null,"prompt_token_ids":null,'
        #: An ordinary chunk begins with this and an escaped text, goes on with `marker`, the ids and `TAIL`.
        self.prefix = head + (
            b'"choices":[{"index":0,"delta":{"content":"' if chat else b'"choices":[{"index":0,"text":"'
        )
        self.marker = b'"finish_reason":null,%b"token_ids":[' % between
        self._after_text = b'},"logprobs":null,' if chat else b',"logprobs":null,'
        self._finish = b'"token_ids":null' if chat else b'"prompt_token_ids":null,"token_ids":null'

    def chunk(
        self,
        text: str,
        finish_reason: str | None = None,
        stop_reason: Any = None,
        *,
        fingerprint: Any = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        """One chunk, as the engine would have written it."""
        ending = b"" if self._chat and finish_reason is None else b'"stop_reason":%b,' % _json(stop_reason)
        tail = b"" if fingerprint is None else b',"system_fingerprint":%b' % _json(fingerprint)
        if usage is not None:
            tail += b',"usage":%b' % _json(usage)
        return b'%b%b%b"finish_reason":%b,%b%b}]%b}\n\n' % (
            self.prefix[:-1],
            _json(text),
            self._after_text,
            _json(finish_reason),
            ending,
            self._finish,
            tail,
        )

    def usage_chunk(self, usage: dict[str, Any], fingerprint: Any = None) -> bytes:
        """The chunk without a choice that says what it all took."""
        tail = b"" if fingerprint is None else b',"system_fingerprint":%b' % _json(fingerprint)
        return b'%b"choices":[],"usage":%b%b}\n\n' % (self.head, _json(usage), tail)


#: How an ordinary chunk ends behind its ids.
TAIL = b"]}]}\n\n"

_json = msgspec.json.Encoder().encode
