"""The ASGI application of the data plane: an exact list of paths, all else is 404 in our envelope."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nebula_proxy.decisions.calls import CALLS
from nebula_proxy.decisions.refusal import bad_request, internal_error, method_not_allowed, unknown_path
from nebula_proxy.endpoints.answers import refusal_answer
from nebula_proxy.endpoints.health import Health
from nebula_proxy.endpoints.inference import Inference
from nebula_proxy.endpoints.metrics import Metrics
from nebula_proxy.endpoints.models import Models
from nebula_proxy.endpoints.openapi import Description
from nebula_proxy.traffic.cors import EXPOSED
from nebula_proxy.traffic.plane import Plane

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def application(
    plane: Plane,
    *,
    store_reachable: Callable[[], bool] = lambda: True,
    snapshot_age: Callable[[], float | None] = lambda: None,
    lifespan: Lifespan | None = None,
) -> Starlette:
    models = Models(plane)
    health = Health(plane, store_reachable, snapshot_age)
    inference = Inference(plane)
    routes = [
        Route("/v1/models", models.every, methods=["GET"]),
        Route("/v1/models/{model:path}", models.one, methods=["GET"]),
        Route("/health", health.health, methods=["GET"]),
        Route("/healthz", health.healthz, methods=["GET"]),
        Route("/readyz", health.readyz, methods=["GET"]),
        Route("/openapi.json", Description().openapi, methods=["GET"]),
        Route("/metrics", Metrics(plane, snapshot_age).metrics, methods=["GET"]),
        *(Route(path.decode("ascii"), inference) for path in CALLS),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=_cors(plane.allowed_origins),
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    app.router.redirect_slashes = False
    return app


def _allowed(error: Exception) -> str | None:
    headers = error.headers if isinstance(error, HTTPException) else None
    return None if headers is None else headers.get("Allow")


def _cors(origins: frozenset[str]) -> list[Middleware]:
    """Nothing at all where no page may call."""
    if not origins:
        return []
    allowed = sorted(origins)
    methods = ("GET", "POST")
    headers = ("*",)
    return [
        Middleware(
            CORSMiddleware, allow_origins=allowed, allow_methods=methods, allow_headers=headers, expose_headers=EXPOSED
        )
    ]


async def _failed(request: Request, _error: Exception) -> Response:
    """A bug of ours; the server logs it."""
    return refusal_answer(internal_error(request.headers.get("x-request-id", "-")))


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.scope["path"]
    if status == 404:
        return refusal_answer(unknown_path(path))
    if status == 405:
        return refusal_answer(method_not_allowed(request.method, path), _allowed(error))
    return refusal_answer(bad_request(str(error)))
