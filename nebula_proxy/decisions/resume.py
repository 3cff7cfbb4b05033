"""Whether and where a stream that was cut can go on, on another replica, token by token.

**Theory.** The engine is asked for the ids of its tokens (`return_token_ids`). When it is gone, another replica gets
prompt ids + ids so far as the prompt of `/v1/completions` and computes what would have come next; measured on vLLM
0.32.0 this is identical in 18 of 18 cases at temperature 0, where continuing the *text* is in 6 (reference/engines.md).

*The safe point.* The client has text, the continuation needs ids, and an engine's text lags behind its ids: half a
character is held back until the other half comes, and of stop strings the last `longest - 1` characters always
are. Ids whose text was never sent must not be put into the prompt: that text would be lost. So the continuation begins
at a *safe point* p, at which all text of the ids before p had left, and repeats what follows it. What the client
has of that already is the *overlap*: the continuation must begin with it, and that much is swallowed. If it begins
otherwise the stream ends with an error: never a wrong text.

- Without stop strings, a chunk of one token with a text is safe behind it: an engine's decoder gives all or nothing
  per token. A chunk of several tokens may end in half a character, so p lies before it and its text is overlap: behind
  the latest chunk of one token if that is kept still, else before the latest chunk with a text, as a guess that the
  overlap proves or refutes.
- With stop strings whose longest has n characters, the text up to a chunk that had shown c characters is c + n - 1
  long; p is the last chunk where that much was shown in the end. A stop string that spans the cut begins behind p, so it
  is found. The overlap is never empty there, which also proves p right.
- At temperature 0 a repeated token is the same; above it is another draw. So there only cuts without an overlap can be
  mended; the rest of the text is then another sample of the same distribution (`seed` too: its generator starts anew).

*Which requests.* Denied by default: every field of the body is in a table below, or the request is not resumable.
Fields whose effect reaches back over the answer so far (frequency and presence penalties, bad words, structured output, tools)
would work differently on a prompt than on an answer; several answers, logprobs and echoes would have to be written anew.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from nebula_core.wire.openai import Dialect
from nebula_proxy.decisions.calls import Call

#: Kinds of engines that are known to return token ids and to take them as a prompt. SGLang is not yet: its chat streams
#: refuse the wish, and its completions may say more ids than text (docs/decisions/0017). Its streams end with an error
#: event. A vLLM too old to know the wish ignores it, and is found out by that.
ENGINES = frozenset({"vllm", "simulated"})
#: The prompt's ids come in one event of up to 8 bytes per token; a longer body could make it longer than an event may be.
LONGEST_BODY = 384 * 1024
#: Stop strings longer than this would need more of the past than is kept.
LONGEST_STOP = 64
MOST_RESUMES = 2
"""Per stream. A request that was there at two deaths is quarantined anyway (`decisions/quarantine`)."""

COMPLETIONS = b"/v1/completions"

#: Fields that shape each next token by the tokens before it, wherever these came from: they go along.
_CARRIED = frozenset(
    {
        "model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "logit_bias", "allowed_token_ids",
        "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
        "skip_special_tokens", "spaces_between_special_tokens", "priority", "cache_salt", "user",
    }
)  # fmt: skip
#: Fields that are in the prompt's ids by now, that are counted anew, or that say nothing of the answer.
_SPENT = frozenset(
    {
        "messages", "prompt", "add_special_tokens", "add_generation_prompt", "continue_final_message", "chat_template",
        "chat_template_kwargs", "documents", "truncate_prompt_tokens", "truncation_side", "reasoning_effort",
        "max_tokens", "max_completion_tokens", "min_tokens", "stream", "stream_options",
        "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
        "session_id", "request_id",
    }
)  # fmt: skip
#: Fields that stand in the way unless they ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "n": (1,), "best_of": (1,), "logprobs": (False,), "top_logprobs": (0,), "echo": (False,), "suffix": ("",),
        "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},), "modalities": (["text"],), "include_reasoning": (True,),
        "frequency_penalty": (0,), "presence_penalty": (0,), "length_penalty": (1,), "bad_words": ([],),
        "use_beam_search": (False,), "return_token_ids": (False,), "return_tokens_as_token_ids": (False,),
    }
)  # fmt: skip

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_decode = msgspec.json.decode
_encode = msgspec.json.Encoder().encode
#: A part of a message that is no text (an image, a sound): its place in the prompt's ids says nothing of it.
_OTHER_PART = re.compile(rb'"type"\s*:\s*"(?!text"|function")').search


class Terms(NamedTuple):
    """What a continuation of a request must hold to."""

    carried: Mapping[str, msgspec.Raw]
    chat: bool
    #: Most tokens the client asked for; None is as many as fit.
    limit: int | None
    min_tokens: int
    #: The same tokens would come again.
    greedy: bool
    #: Characters an engine holds back for stop strings.
    lag: int
    #: The client asked for the usage at the end, and in every chunk.
    usage: bool
    running_usage: bool

    @property
    def recent(self) -> int:
        """How many chunks must be kept to find the safe point: of each two one has text (`joined`)."""
        return 2 * (self.lag + 6)


class Refused(NamedTuple):
    """Why a request cannot be resumed, for people."""

    why: str


def terms_of(call: Call, body: bytes) -> Terms | Refused:
    """What a continuation of this streamed request must hold to, or why there can be none."""
    if call.dialect is not Dialect.CHAT or call.path not in {b"/v1/chat/completions", COMPLETIONS}:
        return Refused(f"{call.path.decode()} returns no token ids")
    if len(body) > LONGEST_BODY:
        return Refused("the body is too long")
    try:
        fields = _fields.decode(body)
        return _terms(fields, chat=call.path != COMPLETIONS)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError):
        return Refused("the body is odd")  # which is for the engine to say


def _terms(fields: Mapping[str, msgspec.Raw], *, chat: bool) -> Terms | Refused:
    carried: dict[str, msgspec.Raw] = {}
    for name, raw in fields.items():
        if name in _SPENT or bytes(raw) == b"null":
            continue
        if name in _CARRIED:
            carried[name] = raw
        elif not _asks_for_nothing(name, _decode(raw)):
            return Refused(f"of `{name}`")
    if chat:
        if _OTHER_PART(fields.get("messages", b"")):
            return Refused("its messages hold more than text")
    elif not _is_one_prompt(_value(fields, "prompt")):
        return Refused("it has several prompts")
    stops = _value(fields, "stop") or []
    longest = max(map(len, [stops] if isinstance(stops, str) else stops), default=0)
    lag = max(0, longest - 1)
    if lag >= LONGEST_STOP:
        return Refused("a stop string is too long")
    if lag and _value(fields, "include_stop_str_in_output"):
        return Refused("stop strings are to be included")
    limit = _value(fields, "max_completion_tokens")
    limit = _value(fields, "max_tokens") if limit is None else limit
    if limit is None and not chat:
        limit = 16  # the API's own default
    options = _value(fields, "stream_options") or {}
    return Terms(
        carried,
        chat,
        None if limit is None else _whole(limit),
        _whole(_value(fields, "min_tokens") or 0),
        greedy=_value(fields, "temperature") == 0,
        lag=lag,
        usage=options.get("include_usage") is True,
        running_usage=options.get("include_usage") is True and options.get("continuous_usage_stats") is True,
    )


def _asks_for_nothing(name: str, value: Any) -> bool:
    # In Python 0 equals False, but `logprobs = 0` asks for logprobs.
    return any(value == none and isinstance(value, bool) is isinstance(none, bool) for none in _NEUTRAL.get(name, ()))


def _value(fields: Mapping[str, msgspec.Raw], name: str) -> Any:
    return _decode(fields[name]) if name in fields else None


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(value)
    return value


def _is_one_prompt(prompt: object) -> bool:
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    return isinstance(prompt, str) or (isinstance(prompt, list) and all(type(each) is int for each in prompt))


def asking(body: bytes) -> bytes:
    """The body, with the wish for token ids."""
    return b'{"return_token_ids":true,' + body[body.index(b"{") + 1 :]


class Cut(NamedTuple):
    """Where a stream goes on: behind its first `kept` tokens, where the client has `overlap` already."""

    kept: int
    overlap: str


def joined(before: tuple[int, str] | None, tokens: int, text: str) -> tuple[int, str] | None:
    """The latest chunk and one more as one, if neither has a text; None when they must be kept apart."""
    if before is None or before[1] or text:
        return None
    return before[0] + tokens, ""


def safe_point(terms: Terms, count: int, recent: Sequence[tuple[int, str]], *, from_start: bool) -> Cut | Refused:
    """The latest safe point of a stream of `count` tokens.

    `recent` are its latest chunks (how many tokens, what text); `from_start` says that they reach back to the stream's
    begin, or to where it was resumed last, where the text is exactly that of the ids.
    """
    if terms.lag:
        return _behind_stops(terms, count, recent, from_start=from_start)
    left = count
    overlap = ""
    latest: Cut | None = None
    for tokens, text in reversed(recent):
        if text and tokens == 1:
            return Cut(left, overlap)
        if text and not terms.greedy:
            return Refused("several tokens came at once and cannot be repeated")
        left -= tokens
        overlap = text + overlap
        if text and latest is None:
            latest = Cut(left, overlap)
    if from_start:
        return Cut(left, overlap)
    return latest or Refused("no safe point is known any more")


def _behind_stops(terms: Terms, count: int, recent: Sequence[tuple[int, str]], *, from_start: bool) -> Cut | Refused:
    shown = "".join(text for _, text in recent)
    before = count - sum(tokens for tokens, _ in recent)
    if not shown and from_start:
        return Cut(before, "")
    if not terms.greedy:
        return Refused("stop strings hold text back, and it cannot be repeated")
    best = Cut(before, shown) if from_start else None
    seen, tokens_so_far = 0, before
    for tokens, text in recent:
        seen += len(text)
        tokens_so_far += tokens
        if (seen or not from_start) and seen + terms.lag < len(shown):
            best = Cut(tokens_so_far, shown[seen + terms.lag :])
    return best or Refused("no safe point is known any more")


def is_complete(terms: Terms, kept: int) -> bool:
    """Whether no token is left to be made: only the end of the stream is missing."""
    return terms.limit is not None and kept >= terms.limit


def continuation(terms: Terms, prompt: Sequence[int], answer: Sequence[int], context: int | None) -> bytes | Refused:
    """The body of the request that goes on behind `answer`; `context` is how many tokens fit into the engine at all."""
    if terms.limit is not None:
        left = terms.limit - len(answer)
    elif context is not None:
        left = context - len(prompt) - len(answer)
    else:
        return Refused("how many tokens fit into the engine is not known")
    if left < 1:
        return Refused("no token is left")
    body: dict[str, Any] = dict(terms.carried)
    body |= {"prompt": [*prompt, *answer], "max_tokens": left, "stream": True, "return_token_ids": True}
    if terms.min_tokens > len(answer):
        body["min_tokens"] = terms.min_tokens - len(answer)
    return _encode(body)
