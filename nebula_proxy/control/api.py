"""The Control API put together: every operation a guarded route, one error envelope, a description made of both."""

import secrets
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response

from nebula_core import __version__
from nebula_core.errors import NebulaError
from nebula_core.records.access import Role
from nebula_core.security.credentials import check_token
from nebula_proxy.control.answers import as_refusal, refusal_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.docs_page import docs_page
from nebula_proxy.control.guard import CALLER, Gate, GuardedRoute, require_roles, unknown_path, with_role
from nebula_proxy.control.operations import Operation, Resource
from nebula_proxy.control.resources.adopt import Adopt
from nebula_proxy.control.resources.adopt_store import AdoptStore
from nebula_proxy.control.resources.cache import Cache
from nebula_proxy.control.resources.cluster import Cluster
from nebula_proxy.control.resources.deployments import Deployments
from nebula_proxy.control.resources.images import Images
from nebula_proxy.control.resources.journal import Journal
from nebula_proxy.control.resources.keys import Keys
from nebula_proxy.control.resources.nodes import Nodes
from nebula_proxy.control.resources.operations import Operations
from nebula_proxy.control.resources.replicas import Replicas
from nebula_proxy.control.resources.requests import Requests
from nebula_proxy.control.resources.service import Service

log = structlog.get_logger(__name__)

PREFIX = "/api/v1"

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_api(
    desk: Desk,
    *,
    lifespan: Lifespan | None = None,
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    max_body_bytes: int = 1024 * 1024,
) -> Gate:
    """The ASGI application. Raises TypeError when a route lacks its role."""
    app = application(desk, lifespan=lifespan)
    return Gate(
        app,
        identify=lambda token: check_token(token, desk.watcher.snapshot.keys, desk.clock.wall()),
        blind=lambda: desk.knows_nothing,
        mint_id=lambda: f"ctl-{secrets.token_hex(8)}",
        snapshot_age=lambda: desk.watcher.snapshot_age(desk.clock.monotonic()),
        allowed_hosts=allowed_hosts,
        allowed_origins=allowed_origins,
        max_body_bytes=max_body_bytes,
    )


def resources(desk: Desk) -> tuple[Resource, ...]:
    return (
        Service(desk),
        Cluster(desk),
        Nodes(desk),
        Adopt(desk),
        AdoptStore(desk),
        Deployments(desk),
        Replicas(desk),
        Requests(desk),
        Journal(desk),
        Keys(desk),
        Images(desk),
        Cache(desk),
        Operations(desk),
    )


def application(desk: Desk, *, lifespan: Lifespan | None = None) -> FastAPI:
    """What stands behind the gate; alone it lets nobody in, for it knows no callers."""
    handlers: dict[Any, Any] = dict.fromkeys((NebulaError, RequestValidationError, HTTPException), _refused)
    app = FastAPI(
        title="Nebula Control API",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers={**handlers, Exception: _failed},
    )
    app.state.clock = desk.clock
    app.router.redirect_slashes = False
    app.router.default = unknown_path
    for resource in resources(desk):
        for operation in resource.operations():
            _add(app, operation)
    require_roles(app.routes)
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]
    return app


def _add(app: FastAPI, operation: Operation) -> None:
    endpoint = with_role(operation.endpoint, operation.role)
    app.router.add_api_route(
        operation.path if operation.root else f"{PREFIX}{operation.path}",
        endpoint,
        methods=[operation.method],
        summary=operation.summary,
        response_model=None,
        responses={200: _answer(operation)},
        tags=[operation.path.split("/")[1]],
        operation_id=f"{operation.method.lower()}{operation.path.replace('/', '_').replace('{', '').replace('}', '')}",
        openapi_extra={"x-nebula-role": str(operation.role)},
        route_class_override=GuardedRoute,
    )


def _answer(operation: Operation) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": operation.summary}
    if operation.media_type != "application/json":
        answer["content"] = {operation.media_type: {}}
    elif operation.answer is not None:
        answer["model"] = operation.answer
    return answer


def _description(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, openapi_version="3.1.0", routes=app.routes)
        schema.setdefault("components", {})["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "An API key, `nbl_…`."}
        }
        for methods in schema["paths"].values():
            for operation in methods.values():
                if operation.get("x-nebula-role") in set(Role):
                    operation["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema


async def _refused(request: Request, error: Exception) -> Response:
    refusal = as_refusal(error)
    if refusal.status == 401 and request.scope["path"] == "/docs" and request.method == "GET":
        return docs_page(401)
    return refusal_answer(refusal)


async def _failed(request: Request, error: Exception) -> Response:
    caller = request.scope.get(CALLER)
    log.error(
        "call_failed",
        method=request.method,
        path=request.scope["path"],
        request_id=getattr(caller, "request_id", None),
        exc_info=error,
    )
    return refusal_answer(as_refusal(error))
