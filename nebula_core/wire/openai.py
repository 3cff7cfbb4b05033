"""The OpenAI surface, sans I/O: the facts a request is routed by, the error envelope, and what a stream says of itself.

Bodies pass through untouched; only the few fields below are read (msgspec skips the rest, whatever its depth).
"""

import re
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from nebula_core.wire import sse

_NOT_GIVEN = msgspec.Raw(b"")
_NONE_GIVEN = (None,) * 12


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Facts(msgspec.Struct):
    """What routing, admission and metrics need to know of a request; msgspec reads these and skips the rest."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    #: As they came: an engine judges odd values.
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    #: What is limited (`nebula_proxy.decisions.parameters`).
    n: Any = None
    best_of: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    prompt_logprobs: Any = None
    stop: Any = None
    chat_template: Any = None
    guided_regex: Any = None
    guided_grammar: Any = None
    structured_outputs: msgspec.Raw = _NOT_GIVEN
    api_base: Any = None
    base_url: Any = None
    api_key: Any = None
    #: The prompt and what stands before it, by their place in the body: routing compares these bytes and never decodes them.
    messages: msgspec.Raw = _NOT_GIVEN
    prompt: msgspec.Raw = _NOT_GIVEN
    input: msgspec.Raw = _NOT_GIVEN
    tools: msgspec.Raw = _NOT_GIVEN
    system: msgspec.Raw = _NOT_GIVEN
    instructions: msgspec.Raw = _NOT_GIVEN
    cache_salt: Any = None
    #: What keeps the requests of one user or one conversation together.
    user: Any = None
    previous_response_id: Any = None

    def asks_more(self, large: int) -> bool:
        """It holds a field that most requests do not, or messages of more than `large` bytes."""
        # One comparison in C for all of them: this is asked of every request.
        given = (
            self.n, self.stop, self.logprobs, self.top_logprobs, self.best_of, self.prompt_logprobs, self.chat_template,
            self.guided_regex, self.guided_grammar, self.api_base, self.base_url, self.api_key,
        )  # fmt: skip
        return given != _NONE_GIVEN or len(self.messages) > large or len(self.structured_outputs) > 0

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def output_limit(self) -> int | None:
        """Most tokens the answer may have, where the client said so in a sound way."""
        most = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        if most is None:
            most = self.max_output_tokens  # of the Responses API
        return most if type(most) is int else None


class BadBody(NamedTuple):
    """Why a body cannot be read, and what to do about it."""

    message: str
    param: str | None
    hint: str


class Usage(NamedTuple):
    """Tokens as the engine counted them; None when it did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


_request_decoder = msgspec.json.Decoder(Facts)
_AT = re.compile(r"at `\$\.?([^`]*)`")
_MISSING = re.compile(r"missing required field `([^`]+)`")


def read_facts(body: bytes) -> Facts | BadBody:
    """The facts of one request body. Anything else that is wrong with it is for the engine to say."""
    try:
        facts = _request_decoder.decode(body)
    except msgspec.ValidationError as error:
        return _explain(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return BadBody(f"The body is not JSON: {error}", None, "send one JSON object, UTF-8, without a comment or NaN")
    except RecursionError:
        return BadBody("The body is nested too deeply", None, "send a flatter JSON object")
    if not facts.model:
        return BadBody("`model` is empty", "model", "name one of the models of GET /v1/models")
    return facts


_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])


def count_entries(raw: msgspec.Raw) -> int:
    """How many values a list in JSON has; 0 for what is no list."""
    try:
        return len(_list_decoder.decode(raw))
    except msgspec.DecodeError:
        return 0


class Patterns(msgspec.Struct):
    """What `structured_outputs` may hold that has to be compiled."""

    regex: Any = None
    grammar: Any = None


_patterns_decoder = msgspec.json.Decoder(Patterns)


def read_patterns(raw: msgspec.Raw) -> Patterns | None:
    """None for what is no object."""
    try:
        return _patterns_decoder.decode(raw)
    except msgspec.DecodeError:
        return None


def _explain(text: str) -> BadBody:
    missing = _MISSING.search(text)
    at = _AT.search(text)
    path = at.group(1) if at else ""
    if missing is not None:
        name = f"{path}.{missing.group(1)}" if path else missing.group(1)
        hint = "name one of the models of GET /v1/models" if name == "model" else f"add `{name}`"
        return BadBody(f"`{name}` is missing", name, hint)
    what = text.split(" - at ", maxsplit=1)[0]
    if not path:
        return BadBody(f"The body must be a JSON object: {what}", None, 'send an object such as {"model": "…"}')
    return BadBody(f"`{path}` has the wrong type: {what}", path, f"change the type of `{path}`")


_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_model(body: bytes, model: str) -> bytes:
    """The same request for an engine that has another name for its model: every other value byte for byte.

    Only for bodies whose facts were read.
    """
    fields = _fields_decoder.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def error_type(status: int) -> str:
    """The `type` OpenAI's clients know for a status."""
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _:
            return "invalid_request_error" if status < 500 else "server_error"


def error_body(
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    hint: str | None = None,
    origin: str = "nebula",
) -> bytes:
    """The envelope of CONTRACT, 3."""
    body: dict[str, Any] = {
        "message": message,
        "type": error_type(status),
        "code": code,
        "param": param,
        "origin": origin,
    }
    if hint is not None:
        body["hint"] = hint
    return msgspec.json.encode({"error": body})


class Dialect(StrEnum):
    """How a call ends its streams and words its errors."""

    CHAT = "chat"
    RESPONSES = "responses"
    MESSAGES = "messages"


def error_event(code: str, message: str, *, origin: str = "engine", dialect: Dialect = Dialect.CHAT) -> bytes:
    """The event that ends a stream which cannot go on. No `[DONE]` follows it."""
    error = {"message": message, "type": "server_error", "code": code, "param": None, "origin": origin}
    payload: dict[str, Any]
    match dialect:
        case Dialect.CHAT:
            payload = {"error": error}
        case Dialect.MESSAGES:
            payload = {"type": "error", "error": error}
        case Dialect.RESPONSES:
            payload = {"type": "error", "code": code, "message": message, "param": None, "error": error}
    return sse.encode(msgspec.json.encode(payload), event="error")


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    def plain(self) -> Usage:
        prompt = self.prompt_tokens if self.prompt_tokens is not None else self.input_tokens
        completion = self.completion_tokens if self.completion_tokens is not None else self.output_tokens
        return Usage(prompt, completion)


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Response(msgspec.Struct):
    usage: _Usage | None = None


class _Payload(msgspec.Struct):
    usage: _Usage | None = None
    error: Any = None
    choices: list[_Choice] | None = None
    response: _Response | None = None


_payload_decoder = msgspec.json.Decoder(_Payload)
_answer_decoder = msgspec.json.Decoder(_Response)


class StreamNews(NamedTuple):
    """What some events of a stream say beside their text. `error_at` is where the first bad event begins."""

    usage: Usage | None = None
    #: The engine's own words when it reports an error behind a 200, and its code.
    error: str | None = None
    error_code: int | None = None
    #: The engine cut the answer short (`finish_reason` "abort").
    aborted: bool = False
    bad_at: int | None = None


NO_NEWS = StreamNews()


def worth_reading(events: bytes) -> bool:
    """Whether `read_events` could find anything: a few substring searches instead of JSON for each token."""
    return b'"usage"' in events or b'"error"' in events or b'"abort"' in events


def read_events(events: bytes) -> StreamNews:
    """Usage, errors and aborts in whole events."""
    usage: Usage | None = None
    at = 0
    for line in events.splitlines(keepends=True):
        start, at = at, at + len(line)
        if not line.startswith(b"data:") or not worth_reading(line):
            continue
        try:
            payload = _payload_decoder.decode(line[5:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # not of the shape looked for: the client may understand it
        found = payload.usage or (payload.response.usage if payload.response is not None else None)
        if found is not None:
            usage = found.plain()
        if payload.error:
            words, code = _engine_error(payload.error)
            return StreamNews(usage, words, code, bad_at=_event_start(events, start))
        if payload.choices and any(choice.finish_reason == "abort" for choice in payload.choices):
            return StreamNews(usage, aborted=True, bad_at=_event_start(events, start))
    return StreamNews(usage) if usage is not None else NO_NEWS


def read_usage(body: bytes) -> Usage | None:
    """The usage of a whole answer, None when it has none or cannot be read."""
    if b'"usage"' not in body:
        return None
    try:
        usage = _answer_decoder.decode(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return usage.plain() if usage is not None else None


#: What ends a stream of the chat and completions calls.
DONE_EVENT = b"data: [DONE]\n\n"


def is_closed(last: bytes, dialect: Dialect) -> bool:
    """Whether the last events of a stream say that it is over."""
    if dialect is Dialect.RESPONSES:
        return b'"response.completed"' in last or b'"response.incomplete"' in last or b'"response.failed"' in last
    if dialect is Dialect.MESSAGES:
        return b"message_stop" in last
    return _DONE(last) is not None


def is_finished(last: bytes, dialect: Dialect) -> bool:
    """Whether the answer in these last events is complete; some engines (transformers) send no `[DONE]` after it."""
    return is_closed(last, dialect) or (dialect is Dialect.CHAT and _FINISHED(last) is not None)


#: Inside JSON a line never begins anew, so no text of a model can look like this.
_DONE = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE).search
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"').search


def _event_start(events: bytes, line_start: int) -> int:
    """Where the event begins whose `data:` line begins at `line_start` (an `event:` line may stand before it)."""
    before = events[:line_start]
    return max(
        before.rfind(b"\n\n") + 2 if b"\n\n" in before else 0, before.rfind(b"\n\r\n") + 3 if b"\n\r\n" in before else 0
    )


def _engine_error(error: Any) -> tuple[str, int | None]:
    if isinstance(error, dict):
        code = error.get("code")
        return str(error.get("message") or error), code if type(code) is int else None
    return str(error), None


class _ErrorKind(msgspec.Struct):
    type: str | None = None
    param: str | None = None


class _Denial(msgspec.Struct):
    detail: Any = None
    message: Any = None
    error: _ErrorKind | None = None


_denial_decoder = msgspec.json.Decoder(_Denial)


def lacks_the_path(status: int, body: bytes) -> bool:
    """Whether an engine's answer says that it does not know the path, and not that something in the request is unknown.

    Captured: FastAPI (vLLM, SGLang, transformers) 404 `{"detail": "Not Found"}`, llama.cpp 404 of type
    "not_found_error" and 501 of type "not_supported_error". An unknown model or response is a 404 with a `param`, or
    with another type.
    """
    if status in {405, 501}:
        return True
    if status != 404:
        return False
    try:
        answer = _denial_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True  # a page of a plain web server
    if answer.error is None:
        # SGLang's errors stand at the top level: one with a message is about the request.
        return answer.message is None and answer.detail in (None, "Not Found")
    return answer.error.type == "not_found_error" and answer.error.param is None
