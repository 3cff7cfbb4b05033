"""Health in three shades: the process lives, it can serve, and the engines behind it answer."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from nebula_proxy.endpoints.answers import json_answer
from nebula_proxy.traffic.plane import Plane


class Health:
    """`store_reachable` says whether the store answers now; a table once made goes on serving without it."""

    def __init__(self, plane: Plane, store_reachable: Callable[[], bool]) -> None:
        self._plane = plane
        self._store_reachable = store_reachable

    async def health(self, _request: Request) -> Response:
        engine_ready = any(routes.routes for routes in self._plane.table.models.values())
        healthy = self._can_serve()
        body = {
            "status": "ok" if engine_ready and healthy else "degraded",
            "engine_ready": engine_ready,
            "proxy_healthy": healthy,
        }
        return json_answer(body)

    async def healthz(self, _request: Request) -> Response:
        return json_answer({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        ready = self._can_serve()
        body = {
            "ready": ready,
            "table": self._plane.table.known,
            "store_reachable": self._store_reachable(),
            "draining": self._plane.draining,
        }
        return json_answer(body, 200 if ready else 503)

    def _can_serve(self) -> bool:
        return self._plane.table.known and not self._plane.draining
