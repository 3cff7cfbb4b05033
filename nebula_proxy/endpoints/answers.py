"""Answers of our own as Starlette responses, errors in the envelope of the contract."""

from typing import Any

import msgspec
from starlette.responses import Response

from nebula_proxy.decisions.refusal import Refusal


def json_answer(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def refusal_answer(refusal: Refusal) -> Response:
    headers = {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after), "x-should-retry": "true"}
    return Response(refusal.body(), refusal.status, headers, media_type="application/json")
