"""Which path does what on the simulated engine, who may ask, and how every failure is worded."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from nebula_agent.simulator import chat, completions, embeddings, messages, responses, scoring, tokenize
from nebula_agent.simulator.client import EngineFailed
from nebula_agent.simulator.http_server import Exchange
from nebula_agent.simulator.metrics import UNCOUNTED_PATHS, EngineMetrics
from nebula_agent.simulator.request_body import ApiError, parse_body
from nebula_agent.simulator.service import Service, error_body, new_id, now, reply_json

_access = logging.getLogger("nebula_agent.simulator.access")
_log = logging.getLogger("nebula_agent.simulator")

_HEADERS = [("server", "nebula-simulator"), ("x-nebula-simulated", "1")]
_BodyHandler = Callable[[Service, Exchange, dict[str, Any]], Awaitable[None]]
_PlainHandler = Callable[[Exchange], Awaitable[None]]

_GENERATING: dict[str, _BodyHandler] = {
    "/v1/chat/completions": chat.create,
    "/v1/completions": completions.create,
    "/v1/responses": responses.create,
    "/v1/messages": messages.create,
    "/v1/messages/count_tokens": messages.count_tokens,
}
_POOLING: dict[str, _BodyHandler] = {
    "/v1/embeddings": embeddings.create,
    "/score": scoring.score,
    "/v1/score": scoring.score,
    "/rerank": scoring.rerank,
    "/v1/rerank": scoring.rerank,
    "/v2/rerank": scoring.rerank,
}
_ALWAYS: dict[str, _BodyHandler] = {"/tokenize": tokenize.tokenize, "/detokenize": tokenize.detokenize}


class Routes:
    """The application the HTTP server calls."""

    def __init__(
        self,
        service: Service,
        metrics: EngineMetrics,
        *,
        keys: tuple[str, ...],
        pooling: bool,
        dev_mode: bool,
        silent_paths: frozenset[str] = frozenset(),
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._keys = tuple(key.encode() for key in keys)
        self._silent_paths = silent_paths
        self._started = now()
        self._server_load = 0
        self._bodies: dict[str, _BodyHandler] = {**_ALWAYS, **(_POOLING if pooling else _GENERATING)}
        self._plain: dict[tuple[str, str], _PlainHandler] = {
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("POST", "/ping"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/load"): self._load,
            ("GET", "/metrics"): self._scrape,
            ("GET", "/v1/models"): self._models,
        }
        if dev_mode:
            self._plain["POST", "/reset_prefix_cache"] = self._reset_prefix_cache

    async def __call__(self, exchange: Exchange) -> None:
        request = exchange.request
        began = time.monotonic()
        exchange.headers = [*_HEADERS]
        if request.path.startswith("/v1/") and not self._authorised(request.headers.get("authorization", "")):
            reply_json(exchange, {"error": "Unauthorized"}, 401)
        else:
            exchange.headers.append(("vary", "Origin"))
            try:
                await self._answer(exchange)
            except ApiError as error:
                reply_json(exchange, error.body(), error.status)
            except EngineFailed as failure:
                reply_json(exchange, error_body(failure), failure.status)
            except asyncio.CancelledError:
                raise
            except Exception:
                _log.exception("request %s %s failed", request.method, request.path)
                if exchange.status == 0:
                    reply_json(exchange, error_body(EngineFailed("Internal Server Error")), 500)
        self._record(exchange, began)

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        plain = self._plain.get((request.method, request.path))
        if plain is not None:
            await plain(exchange)
            return
        handler = self._bodies.get(request.path)
        if handler is not None and request.method == "POST":
            body = parse_body(request.body, request.headers.get("content-type"))
            self._server_load += 1
            try:
                await handler(self._service, exchange, body)
            finally:
                self._server_load -= 1
            return
        allowed = [method for method, path in self._plain if path == request.path] + (["POST"] if handler else [])
        if allowed:
            exchange.reply(405, b'{"detail":"Method Not Allowed"}', headers=(("allow", ", ".join(sorted(allowed))),))
        else:
            exchange.reply(404, b'{"detail":"Not Found"}')

    def _authorised(self, header: str) -> bool:
        if not self._keys:
            return True
        scheme, _, given = header.partition(" ")
        if scheme.lower() != "bearer":
            return False
        # Every key is compared, so that the time says nothing about which one matched.
        matches = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        return any(matches)

    def _record(self, exchange: Exchange, began: float) -> None:
        request = exchange.request
        if request.path not in self._silent_paths:
            _access.info('%s - "%s %s HTTP/1.1" %s', request.client, request.method, request.path, exchange.status)
        if request.path in UNCOUNTED_PATHS or exchange.status == 401:
            return
        known = request.path in self._bodies or any(path == request.path for _, path in self._plain)
        self._metrics.record_http(
            request.path if known else "none",
            request.method,
            exchange.status,
            len(request.body),
            exchange.response_bytes,
            time.monotonic() - began,
        )

    # -- the paths without a body ----------------------------------------------------------------------------------

    async def _health(self, exchange: Exchange) -> None:
        exchange.reply(503 if self._service.client.dead else 200, content_type=None)

    async def _version(self, exchange: Exchange) -> None:
        reply_json(exchange, {"version": "0.32.0", "simulated": True})

    async def _load(self, exchange: Exchange) -> None:
        reply_json(exchange, {"server_load": self._server_load})

    async def _scrape(self, exchange: Exchange) -> None:
        if self._service.faults.scrape_slow_seconds:
            await asyncio.sleep(self._service.faults.scrape_slow_seconds)
        body, content_type = self._metrics.exposition()
        exchange.reply(200, body, content_type)

    async def _models(self, exchange: Exchange) -> None:
        reply_json(exchange, {"object": "list", "data": [self._model_card(name) for name in self._service.names]})

    def _model_card(self, name: str) -> dict[str, Any]:
        permission = {
            "id": new_id("modelperm-"),
            "object": "model_permission",
            "created": now(),
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "nebula-simulator",
            "root": name,
            "parent": self._service.names[0] if name in self._service.adapters else None,
            "max_model_len": self._service.max_model_len,
            "permission": [permission],
        }

    async def _reset_prefix_cache(self, exchange: Exchange) -> None:
        reply_json(exchange, {"success": await self._service.client.reset_prefix_cache()})
