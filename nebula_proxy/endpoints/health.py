"""Health in three shades: the process lives, it can serve, and the engines behind it answer."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from nebula_proxy.endpoints.answers import json_answer
from nebula_proxy.endpoints.shapes import AliveAnswer, HealthAnswer, ReadyAnswer
from nebula_proxy.traffic.plane import Plane


class Health:
    """`store_reachable` says whether the store answers now; a table once made goes on serving without it."""

    def __init__(
        self, plane: Plane, store_reachable: Callable[[], bool], snapshot_age: Callable[[], float | None]
    ) -> None:
        self._plane = plane
        self._store_reachable = store_reachable
        self._snapshot_age = snapshot_age

    async def health(self, _request: Request) -> Response:
        engine_ready = any(routes.routes for routes in self._plane.table.models.values())
        healthy = self._can_serve()
        status = "ok" if engine_ready and healthy else "degraded"
        return json_answer(HealthAnswer(status, engine_ready, healthy))

    async def healthz(self, _request: Request) -> Response:
        return json_answer(AliveAnswer())

    async def readyz(self, _request: Request) -> Response:
        ready = self._can_serve()
        age = self._snapshot_age()
        body = ReadyAnswer(
            ready,
            self._plane.table.known,
            self._store_reachable(),
            self._plane.draining,
            None if age is None else round(age, 1),
        )
        return json_answer(body, 200 if ready else 503)

    def _can_serve(self) -> bool:
        return self._plane.table.known and not self._plane.draining
