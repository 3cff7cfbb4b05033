"""`GET /openapi.json`: every route of the data plane, what it takes and what it answers (OpenAPI 3.1).

Made of what the code itself uses: the list of calls, the facts that are read of a body, the shapes of our own answers.
An inference call's body and answer are the engine's affair; of the body is told what the proxy reads, and the rest may be
anything. It names no model and no replica, so it is as open as `/healthz`.
"""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nebula_core import __version__
from nebula_core.records.views import ErrorBody
from nebula_core.wire.openai import Dialect, Facts
from nebula_proxy.decisions.calls import CALLS, Call
from nebula_proxy.endpoints.shapes import AliveAnswer, HealthAnswer, ModelCard, ModelList, ReadyAnswer

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_SUMMARIES = {
    b"/v1/chat/completions": "A chat",
    b"/v1/completions": "A completion of a text",
    b"/v1/responses": "A response; a chat to engines without the Responses API",
    b"/v1/embeddings": "Embeddings",
    b"/v1/rerank": "Documents in the order in which they answer a query",
    b"/v1/score": "How well texts belong together",
    b"/v1/messages": "A message, in Anthropic's API",
    b"/v1/messages/count_tokens": "How many tokens a message would have",
    b"/tokenize": "The tokens of a text or a chat",
    b"/detokenize": "The text of tokens",
}
#: Ours, by status; the codes are those of `decisions/refusal`.
_ERRORS = {
    400: "Unreadable, or asks for more than is accepted",
    401: "No key, or not a valid one",
    403: "The key may not use this model, or may not wish this",
    404: "There is no such model or path",
    405: "Another method is meant; `Allow` names it",
    408: "The request did not come in time",
    413: "The body is too large",
    415: "The body is encoded",
    422: "The same request was on several engines when they died",
    429: "Every replica is saturated, or the key has reached a limit; `Retry-After` says when to come again",
    431: "The head is too large",
    500: "Nebula failed; its log has the request id",
    502: "The engine failed before it answered",
    503: "The model is known, but nothing of it is ready; `Retry-After` says when to come again",
    504: "The engine did not answer in time",
}
_OF_GET = (400, 401, 403, 404, 405, 431)
_HEADERS: Json = {
    "x-request-id": {"description": "The client's own, or one that was made", "schema": {"type": "string"}},
    "x-nebula-replica": {"description": "Who answered", "schema": {"type": "string"}},
    "x-nebula-decision": {"description": "Why this replica", "schema": {"type": "string"}},
    "x-nebula-overhead-ms": {"description": "Time spent in the proxy", "schema": {"type": "string"}},
    "x-ratelimit-limit-requests": {
        "description": "Per minute, where the key has such a limit",
        "schema": {"type": "string"},
    },
    "x-ratelimit-remaining-requests": {"description": "What is left of it now", "schema": {"type": "string"}},
    "x-ratelimit-reset-requests": {
        "description": "Until all of it is there again, as `8.64s`; the same three for `tokens`",
        "schema": {"type": "string"},
    },
}
_WISHES: tuple[tuple[str, str], ...] = (
    ("x-request-id", "An id for logs, kept if it is `[A-Za-z0-9._-]{1,64}`"),
    ("x-nebula-strategy", "How to choose the replica"),
    ("x-nebula-replica", "Which replica; for an operator's key"),
    ("x-nebula-priority", "-10 to 10, higher is served first; a key gets no more than it may have"),
    ("x-nebula-wait", "Longest wait for room in seconds, 0 does not wait; never longer than the proxy allows"),
    ("x-nebula-no-retry", "Never try another replica, and never resume a stream"),
    ("x-nebula-no-resume", "Never go on with a cut stream on another replica"),
    ("traceparent", "W3C trace context, passed to the engine"),
)


def description() -> Json:
    """The whole document."""
    shapes: list[type] = [ModelCard, ModelList, HealthAnswer, AliveAnswer, ReadyAnswer]
    _, schemas = msgspec.json.schema_components(shapes, ref_template=_REF)
    schemas["InferenceRequest"] = _request()
    schemas["Error"] = _envelope()
    schemas["EngineError"] = {"description": "An engine's own words, unchanged."}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Nebula data plane",
            "version": __version__,
            "description": "Requests to models, in OpenAI's and Anthropic's words. Engines' own fields may be added to any body.",
        },
        "paths": {
            **{path.decode("ascii"): {"post": _inference(call)} for path, call in CALLS.items()},
            "/v1/models": {"get": _get("Models this key may use", "ModelList", keyed=True)},
            "/v1/models/{model}": {
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
                "get": _get("One model", "ModelCard", keyed=True),
            },
            "/health": {"get": _get("Whether engines are ready behind a healthy proxy", "HealthAnswer")},
            "/healthz": {"get": _get("Whether this process lives", "AliveAnswer")},
            "/readyz": {"get": _get("Whether this process can serve", "ReadyAnswer", also={503: "It cannot"})},
            "/metrics": {"get": _text("Prometheus metrics")},
            "/openapi.json": {"get": _get("This document", None)},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "`nbl_…`, of `nebula keys create`"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _request() -> Json:
    fields = msgspec.structs.fields(Facts)
    properties: Json = {}
    for field in fields:
        # Taken as it comes; msgspec has no schema for the default of such a field.
        properties[field.encode_name] = {} if field.type is msgspec.Raw else _schema_of(field.type)
    properties["model"]["minLength"] = 1
    return {
        "type": "object",
        "description": "What the proxy reads of a body; the engine reads the rest. `null` is as good as absent.",
        "properties": properties,
        "required": [field.encode_name for field in fields if field.required],
    }


def _schema_of(kind: Any) -> Json:
    (schema,), parts = msgspec.json.schema_components([kind], ref_template=_REF)
    inlined = [dict(parts[str(one["$ref"]).rsplit("/", 1)[1]]) if "$ref" in one else one for one in _options(schema)]
    return dict(inlined[0]) if len(inlined) == 1 else {"anyOf": inlined}


def _options(schema: Json) -> list[Json]:
    return list(schema.get("anyOf", [schema]))


def _envelope() -> Json:
    error = ErrorBody.model_json_schema()
    return {
        "type": "object",
        "description": "OpenAI's envelope; `origin` says whose words they are, `hint` what to do next.",
        "properties": {"error": error},
        "required": ["error"],
    }


def _inference(call: Call) -> Json:
    content: Json = {"application/json": {"schema": {}}}
    if call.path not in _PLAIN:
        content["text/event-stream"] = {"schema": {}}
    own = {str(status): _error(text, engines=True) for status, text in _ERRORS.items()}
    return {
        "summary": _SUMMARIES[call.path],
        "operationId": call.path.decode("ascii").strip("/").replace("/", "_"),
        "tags": ["anthropic" if call.dialect is Dialect.MESSAGES else "openai"],
        "security": _KEYED,
        "parameters": [
            {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
            for name, text in _WISHES
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(name="InferenceRequest")}}},
        },
        "responses": {
            "200": {"description": "The engine's answer", "headers": _HEADERS, "content": content},
            **own,
            "default": {
                "description": "An error of the engine, unchanged",
                "content": {"application/json": {"schema": {}}},
            },
        },
    }


_KEYED: list[Json] = [{"bearer": []}, {"header": []}]
_PLAIN = {b"/v1/embeddings", b"/v1/rerank", b"/v1/score", b"/v1/messages/count_tokens", b"/tokenize", b"/detokenize"}


def _error(text: str, *, engines: bool = False) -> Json:
    schema: Json = {"$ref": _REF.format(name="Error")}
    if engines:
        schema = {"anyOf": [schema, {"$ref": _REF.format(name="EngineError")}]}
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _get(summary: str, shape: str | None, *, keyed: bool = False, also: dict[int, str] | None = None) -> Json:
    schema: Json = {"type": "object"} if shape is None else {"$ref": _REF.format(name=shape)}
    content = {"application/json": {"schema": schema}}
    others = {str(status): {"description": text, "content": content} for status, text in (also or {}).items()}
    return {
        "summary": summary,
        "security": _KEYED if keyed else [],
        "responses": {
            "200": {"description": summary, "content": content},
            **others,
            **{str(status): _error(_ERRORS[status]) for status in _OF_GET},
        },
    }


def _text(summary: str) -> Json:
    found = _get(summary, None)
    found["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return found


class Description:
    """Encoded once."""

    def __init__(self) -> None:
        self._body = msgspec.json.encode(description())

    async def openapi(self, _request: Request) -> Response:
        return Response(self._body, media_type="application/json")
