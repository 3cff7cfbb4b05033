"""Answers as bytes: records as JSON, refusals in the one envelope, streams as server-sent events."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from nebula_core.errors import Conflict, NebulaError, StoreUnavailable, StoreUnfit
from nebula_core.records.base import Record
from nebula_core.wire.openai import error_body
from nebula_proxy.control.refusals import CallRefused, unauthenticated

JSON = "application/json"


def record_answer(record: Record, status: int = 200, *, generation: int | None = None) -> Response:
    """All fields, also those that hold their default: scripts should not have to know the defaults."""
    headers = {} if generation is None else {"etag": f'"{generation}"'}
    return Response(record.model_dump_json(), status, headers, media_type=JSON)


def page_answer(items: Sequence[Record], following: str | None = None) -> Response:
    """A `Page` without making one: its items are records already."""
    body = ",".join(item.model_dump_json() for item in items)
    cursor = "null" if following is None else f'"{following}"'
    return Response(f'{{"items":[{body}],"next":{cursor}}}', media_type=JSON)


def refusal_answer(refusal: CallRefused) -> Response:
    body = error_body(refusal.status, refusal.code, refusal.message, param=refusal.param, hint=refusal.hint)
    return Response(body, refusal.status, refusal.headers, media_type=JSON)


class _EventStream(StreamingResponse):
    """Closes its source when the client leaves, instead of leaving that to the garbage collector."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes]) -> None:
        # Proxies in between must not collect the stream.
        super().__init__(chunks, headers={"x-accel-buffering": "no"})
        self._source = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()


def stream_answer(chunks: AsyncGenerator[bytes], still_allowed: Callable[[], bool]) -> Response:
    """Server-sent events for as long as the caller's key is good: at the latest the next comment notices."""
    return _EventStream(_while_allowed(chunks, still_allowed))


async def _while_allowed(chunks: AsyncGenerator[bytes], still_allowed: Callable[[], bool]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        async for chunk in chunks:
            if not still_allowed():
                yield error_event(unauthenticated())
                return
            yield chunk


#: Line ends for some clients, though not by the rules of the format.
_LINE_ENDS = str.maketrans({code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)})


def sse(event: str, data: str, event_id: str | None = None) -> bytes:
    """One event; `data` is JSON and so one line, for every idea of what a line is."""
    if not data.isascii():
        data = data.translate(_LINE_ENDS)
    head = f"id: {event_id}\n" if event_id is not None else ""
    return f"{head}event: {event}\ndata: {data}\n\n".encode()


def error_event(error: NebulaError) -> bytes:
    """The last event of a stream that cannot go on; the client connects again."""
    refusal = as_refusal(error)
    body = error_body(refusal.status, refusal.code, refusal.message, hint=refusal.hint)
    return sse("error", body.decode())


KEEPALIVE = b": \n\n"
#: Seconds of silence after which a comment shows that the stream is alive.
KEEPALIVE_SECONDS = 5.0


def as_refusal(error: Exception) -> CallRefused:
    """What an exception means for the caller."""
    match error:
        case CallRefused():
            return error
        case StoreUnavailable() | StoreUnfit():
            return CallRefused(
                503, error.code, error.message, hint=error.hint or "start the store", headers={"retry-after": "2"}
            )
        case Conflict():
            return CallRefused(409, error.code, error.message, hint=error.hint, headers={"x-should-retry": "false"})
        case NebulaError():
            return CallRefused(500, error.code, error.message, hint=error.hint)
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            return _from_framework(error)
        case _:
            return CallRefused(
                500, "internal_error", "Nebula failed to handle this call", hint="the control process' log has it"
            )


def _invalid(error: RequestValidationError) -> CallRefused:
    found = error.errors()
    first = found[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "json_invalid":
        return CallRefused(
            400, "invalid_json", f"the body is not JSON: {first['ctx']['error']}", hint="check it with a JSON tool"
        )
    param = ".".join(place[1:]) or place[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return CallRefused(
        422, "invalid", f"{param}: {first['msg']}{more}", param=param, hint="GET /openapi.json has the schema"
    )


def _from_framework(error: HTTPException) -> CallRefused:
    codes = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
    code = codes.get(error.status_code, "invalid_request" if error.status_code < 500 else "internal_error")
    return CallRefused(
        error.status_code,
        code,
        str(error.detail),
        hint="GET /openapi.json lists what there is",
        headers=error.headers,
    )


async def refused(_request: Request, error: Exception) -> Response:
    """The handler of every exception of the application."""
    return refusal_answer(as_refusal(error))
