"""A request that is turned away: status, reason, and the next step for whoever sent it (CONTRACT, 3)."""

import math
from typing import NamedTuple

from nebula_core.wire.openai import error_body
from nebula_proxy.decisions.calls import CALLS


class Refusal(NamedTuple):
    status: int
    code: str
    message: str
    hint: str | None = None
    param: str | None = None
    #: Seconds; None sends no `Retry-After`.
    retry_after: int | None = None

    def body(self) -> bytes:
        return error_body(self.status, self.code, self.message, param=self.param, hint=self.hint)


def jittered(seconds: float, roll: float) -> int:
    """Whole seconds around `seconds`, ±50 % by `roll` in 0..1, so that those turned away together come back apart."""
    return min(60, max(1, math.ceil(seconds * (0.5 + roll))))


def bad_request(message: str, *, hint: str | None = None, param: str | None = None) -> Refusal:
    return Refusal(400, "invalid_request", message, hint, param)


def too_large(limit: int) -> Refusal:
    return Refusal(
        413, "request_too_large", f"The body is larger than {limit} bytes", "send less, or raise `max_body_bytes`"
    )


def encoded_body(encoding: str) -> Refusal:
    return Refusal(
        415, "unsupported_encoding", f"Content-Encoding {encoding!r} is not accepted", "send the body uncompressed"
    )


def head_too_large(what: str) -> Refusal:
    return Refusal(431, "headers_too_large", f"The request head has {what}", "send fewer or shorter headers")


def too_slow(what: str) -> Refusal:
    return Refusal(408, "request_timeout", f"The {what} did not come in time", "send the request without pauses")


def previous_response_gone(replica: str) -> Refusal:
    """The code is OpenAI's."""
    return Refusal(
        404,
        "previous_response_not_found",
        f"The previous response was held by {replica}, which is gone or was started anew",
        "send the whole conversation as `input`, without `previous_response_id`",
        "previous_response_id",
    )


def invalid_key() -> Refusal:
    return Refusal(
        401,
        "invalid_api_key",
        "The API key is missing, unknown, expired or revoked",
        "send `Authorization: Bearer nbl_…`; an admin makes keys with `nebula keys create`",
    )


def model_not_allowed(model: str, key: str) -> Refusal:
    return Refusal(
        403,
        "model_not_allowed",
        f"The key {key!r} may not use model {model!r}",
        "GET /v1/models lists what it may use",
        "model",
    )


def pin_not_allowed() -> Refusal:
    return Refusal(403, "pin_not_allowed", "Only an operator's key may pin a replica", "leave `x-nebula-replica` out")


def model_not_found(model: str, known: list[str]) -> Refusal:
    listed = ", ".join(known[:20]) or "there is none yet: `nebula apply -f deployment.toml` makes one"
    return Refusal(404, "model_not_found", f"There is no model {model[:128]!r}", f"known: {listed}", "model")


_PATHS = f"POST {', '.join(sorted(path.decode() for path in CALLS))}; GET /v1/models, /v1/models/{{id}}, /health, /metrics, /openapi.json"


def unknown_path(path: str) -> Refusal:
    return Refusal(404, "not_found", f"There is no {path[:128]!r} here", _PATHS)


def method_not_allowed(method: str, path: str) -> Refusal:
    return Refusal(405, "method_not_allowed", f"{method[:16]} is not possible on {path[:128]!r}", _PATHS)


def rate_limited(limit: str, retry_after: int) -> Refusal:
    """`limit` completes the sentence, for example "it may have 60 requests per minute"."""
    return Refusal(
        429,
        "rate_limited",
        f"This key is at its limit: {limit}",
        "try again after the seconds of Retry-After; an admin gives keys their limits",
        retry_after=retry_after,
    )


def overloaded(model: str, retry_after: int) -> Refusal:
    return Refusal(
        429,
        "overloaded",
        f"Every replica of {model!r} is saturated",
        "try again after the seconds of Retry-After, or scale the deployment up",
        retry_after=retry_after,
    )


def proxy_overloaded(cause: str, roll: float) -> Refusal:
    """Short of something is this process, the engines may be idle."""
    return Refusal(
        503,
        "proxy_overloaded",
        f"This proxy is short of {cause} and takes no new requests for a moment",
        "wait as Retry-After says and try again",
        retry_after=jittered(2.0, roll),
    )


def queue_full(model: str, waiting: int, retry_after: int) -> Refusal:
    return Refusal(
        429,
        "queue_full",
        f"Every replica of {model!r} is saturated and {waiting} requests wait already",
        "try again after the seconds of Retry-After, or scale the deployment up",
        retry_after=retry_after,
    )


def wait_expired(model: str, seconds: float, retry_after: int) -> Refusal:
    return Refusal(
        503,
        "wait_expired",
        f"No replica of {model!r} had room within {seconds:.1f} s",
        "try again after the seconds of Retry-After, or scale the deployment up",
        retry_after=retry_after,
    )


def model_starting(model: str, starting: int, roll: float) -> Refusal:
    return Refusal(
        503,
        "model_starting",
        f"Model {model!r} is starting ({starting} on the way)",
        "try again after the seconds of Retry-After",
        retry_after=jittered(4.0, roll),
    )


def no_replica(model: str, why: str, roll: float) -> Refusal:
    return Refusal(
        503,
        "no_replica",
        f"No replica of {model!r} can take a request: {why}",
        f"see `nebula describe deployment {model}`",
        retry_after=jittered(2.0, roll),
    )


def no_capacity(model: str, wanted: int, roll: float) -> Refusal:
    return Refusal(
        503,
        "no_capacity",
        f"None of the {wanted} replicas of {model!r} is ready or starting",
        f"`nebula describe deployment {model}` says what they wait for",
        retry_after=jittered(20.0, roll),
    )


def engine_died(replica: str, detail: str) -> Refusal:
    return Refusal(
        502, "engine_died", f"Replica {replica} failed before it answered: {detail}", "try again", retry_after=1
    )


def engine_timeout(replica: str, seconds: float) -> Refusal:
    return Refusal(
        504,
        "engine_timeout",
        f"Replica {replica} gave no answer within {seconds:g} s",
        "try again, or with a shorter prompt",
        retry_after=2,
    )


def engine_hangs(replica: str) -> Refusal:
    return Refusal(504, "engine_timeout", f"Replica {replica} hangs: nothing moves on it", "try again", retry_after=2)


def quarantined(seconds: float) -> Refusal:
    return Refusal(
        422,
        "request_quarantined",
        "This very request was running when several engines died, so it is not sent to another one",
        f"change the request, or send it again in {math.ceil(seconds)} s; an operator finds it as `quarantined` in the log",
    )


def cancelled() -> Refusal:
    """499 is nginx's number for a request that its client gave up; nobody retries it."""
    return Refusal(499, "request_cancelled", "An operator cancelled this request", "ask who runs this cluster for why")


def internal_error(request_id: str) -> Refusal:
    return Refusal(
        500, "internal_error", "Nebula failed to handle this request", f"the proxy's log has it under {request_id}"
    )
