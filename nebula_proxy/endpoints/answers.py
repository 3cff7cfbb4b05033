"""Answers of our own as Starlette responses, errors in the envelope of the contract."""

from typing import Any

import msgspec
from starlette.responses import Response

from nebula_proxy.decisions.refusal import Refusal


def json_answer(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def refusal_answer(refusal: Refusal, allow: str | None = None) -> Response:
    """`allow` names the methods that are possible, for a 405."""
    headers = {"x-should-retry": "false"} if refusal.status < 500 else {}
    if refusal.retry_after is not None:
        headers = {"retry-after": str(refusal.retry_after), "x-should-retry": "true"}
    if allow is not None:
        headers["allow"] = allow
    return Response(refusal.body(), refusal.status, headers, media_type="application/json")
