"""What a client may send, and what vLLM says when it sends something else: bodies to `Sampling`, or an `ApiError`.

The messages are vLLM's, word for word where they were captured, because clients and the proxy are tested on them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nebula_agent.simulator.client import Sampling
from nebula_agent.simulator.faults import Faults, RequestFault, parse_request_fault


class ApiError(Exception):
    """A reply with the OpenAI error envelope."""

    def __init__(self, status: int, message: str, *, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}


def invalid(kind: str, place: str, message: str, given: object, context: str = "") -> ApiError:
    """One validation error, in the words FastAPI's handler in vLLM makes of pydantic's."""
    text = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{place}', 'msg': '{message}', 'input': {_shown(given)}"
    return ApiError(400, text + context + "}", kind="Bad Request", param=place)


def _shown(given: object) -> str:
    if isinstance(given, dict):
        return f"'<dict of {len(given)} items>'"
    if isinstance(given, list):
        return f"'<list of {len(given)} items>'"
    return repr(given)


def parse_body(body: bytes, content_type: str | None) -> dict[str, Any]:
    if content_type is None or content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            400,
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
            kind="Bad Request",
        )
    try:
        parsed = json.loads(body)
    except json.JSONDecodeError as error:
        context = f", 'ctx': {{'error': {error.msg!r}}}"
        raise invalid("json_invalid", f"body.{error.pos}", "JSON decode error", {}, context) from None
    except UnicodeDecodeError:
        raise ApiError(400, "There was an error parsing the body", kind="Bad Request") from None
    except RecursionError:
        raise ApiError(400, "1 validation error:\n  JSON is nested too deeply", kind="Bad Request") from None
    if not isinstance(parsed, dict):
        raise invalid("model_attributes_type", "body", "Input should be a valid dictionary", parsed)
    return parsed


_BODY: Mapping[type, tuple[str, str]] = {
    str: ("string_type", "Input should be a valid string"),
    bool: ("bool_type", "Input should be a valid boolean"),
    dict: ("dict_type", "Input should be a valid dictionary"),
    list: ("list_type", "Input should be a valid list"),
}


_BEYOND = 1 << 63


class Fields:
    """Typed reading of one body; a wrong type is an `ApiError` that names the field."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body

    def integer(self, name: str) -> int | None:
        value = self._integer(name)
        if value is not None and not -_BEYOND <= value < _BEYOND:
            raise invalid("int_range", f"body.{name}", "Input should be an integer of 64 bits", value)
        return value

    def _integer(self, name: str) -> int | None:
        value = self.body.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str):
            try:
                return int(value)
            except ValueError:
                message = "Input should be a valid integer, unable to parse string as an integer"
                raise invalid("int_parsing", f"body.{name}", message, value) from None
        raise invalid("int_type", f"body.{name}", "Input should be a valid integer", value)

    def number(self, name: str) -> float | None:
        value = self.body.get(name)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return None if value is None else float(value)
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                message = "Input should be a valid number, unable to parse string as a number"
                raise invalid("float_parsing", f"body.{name}", message, value) from None
        raise invalid("float_type", f"body.{name}", "Input should be a valid number", value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self._typed(name, bool)
        return default if value is None else bool(value)

    def text(self, name: str) -> str | None:
        value: str | None = self._typed(name, str)
        return value

    def table(self, name: str) -> dict[str, Any] | None:
        value: dict[str, Any] | None = self._typed(name, dict)
        return value

    def items(self, name: str) -> list[Any] | None:
        value: list[Any] | None = self._typed(name, list)
        return value

    def required(self, name: str) -> Any:
        if name not in self.body:
            raise invalid("missing", f"body.{name}", "Field required", self.body)
        return self.body[name]

    def _typed(self, name: str, kind: type) -> Any:
        value = self.body.get(name)
        if value is None or isinstance(value, kind):
            return value
        raise invalid(_BODY[kind][0], f"body.{name}", _BODY[kind][1], value)


@dataclass(frozen=True, slots=True)
class StreamOptions:
    include_usage: bool
    continuous_usage: bool


def stream_options(fields: Fields, *, stream: bool) -> StreamOptions:
    options = fields.table("stream_options")
    if options is not None and not stream:
        raise ApiError(
            400,
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
            param="stream_options",
        )
    include = bool((options or {}).get("include_usage"))
    return StreamOptions(include, include and bool((options or {}).get("continuous_usage_stats")))


def read_fault(fields: Fields, faults: Faults, *, allowed: bool) -> RequestFault | None:
    text = fields.body.get("nebula_fault") if allowed else None
    if text is None:
        return faults.every_request
    try:
        return parse_request_fault(str(text))
    except ValueError as error:
        raise ApiError(400, str(error), param="nebula_fault") from None


_MOST_CHOICES = 16384
_MOST_LOGPROBS = 20


def check_range(fields: Fields) -> None:
    """The limits vLLM's SamplingParams keeps, as far as they were captured or read there."""
    temperature = fields.number("temperature")
    if temperature is not None and temperature < 0:
        raise _out_of_range("temperature", temperature, f"temperature must be non-negative, got {temperature}.")
    top_p = fields.number("top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise _out_of_range("top_p", top_p, f"top_p must be in (0, 1], got {top_p}.")
    for name in ("presence_penalty", "frequency_penalty"):
        penalty = fields.number(name)
        if penalty is not None and not -2 <= penalty <= 2:
            raise _out_of_range(name, penalty, f"{name} must be in [-2, 2], got {penalty}.")
    count = fields.integer("n")
    if count is not None and count < 1:
        raise _out_of_range("n", count, f"n must be at least 1, got {count}.")
    if count is not None and count > _MOST_CHOICES:
        raise _out_of_range("n", count, f"n must be at most {_MOST_CHOICES}, got {count}.")


def _out_of_range(name: str, value: float, message: str) -> ApiError:
    return ApiError(400, f"{message} (parameter={name}, value={value})", param=name)


def check_lengths(prompt_tokens: int, max_tokens: int | None, max_model_len: int) -> int:
    """How many tokens may be generated; an ApiError if none fits."""
    if prompt_tokens >= max_model_len:
        # vLLM stops counting one token past its limit, so the number says "at least".
        seen = max_model_len + 1
        raise ApiError(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least "
            f"{seen} input tokens, which exceeds this limit even without any output tokens. Please reduce the length "
            f"of the input prompt. (parameter=input_tokens, value={seen})",
            param="input_tokens",
        )
    if max_tokens is None:
        return max_model_len - prompt_tokens
    if max_tokens > max_model_len:
        raise ApiError(
            400,
            f"max_tokens={max_tokens} cannot be greater than max_model_len={max_model_len}. Please request fewer output "
            f"tokens. (parameter=max_tokens, value={max_tokens})",
            param="max_tokens",
        )
    if max_tokens < 1:
        raise _out_of_range("max_tokens", max_tokens, f"max_tokens must be at least 1, got {max_tokens}.")
    return min(max_tokens, max_model_len - prompt_tokens)


def check_logprobs(wanted: int | None) -> None:
    if wanted is not None and not 0 <= wanted <= _MOST_LOGPROBS:
        raise ApiError(
            400,
            f"Requested sample logprobs of {wanted}, which is greater than max allowed: {_MOST_LOGPROBS}",
            param="logprobs",
        )


def stop_strings(fields: Fields) -> tuple[str, ...]:
    stop = fields.body.get("stop")
    if stop is None:
        return ()
    given = [stop] if isinstance(stop, str) else stop
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise invalid("list_type", "body.stop", "Input should be a valid list", stop)
    if any(not text for text in given):
        raise ApiError(400, "stop cannot contain an empty string. (parameter=stop)", param="stop")
    return tuple(given)


def read_sampling(
    fields: Fields, *, max_tokens: int, script: tuple[int, ...] | None, fault: RequestFault | None, logprobs: int | None
) -> Sampling:
    """The sampling of a chat or a completion; `check_range` comes before it."""
    check_logprobs(logprobs)
    temperature = fields.number("temperature")
    stop_ids = fields.items("stop_token_ids") or []
    if not all(isinstance(token, int) for token in stop_ids):
        raise invalid("list_type", "body.stop_token_ids", "Input should be a valid list of integers", stop_ids)
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=fields.integer("min_tokens") or 0,
        temperature=1.0 if temperature is None else temperature,
        seed=fields.integer("seed"),
        ignore_eos=fields.flag("ignore_eos"),
        stop=stop_strings(fields),
        stop_token_ids=tuple(stop_ids),
        include_stop=fields.flag("include_stop_str_in_output"),
        keep_special=not fields.flag("skip_special_tokens", default=True),
        n=fields.integer("n") or 1,
        logprobs=logprobs,
        prompt_logprobs=fields.body.get("prompt_logprobs") is not None
        or (fields.flag("echo") and logprobs is not None),
        script=script,
        fault=fault,
    )
