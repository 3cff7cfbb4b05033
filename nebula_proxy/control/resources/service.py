"""`/healthz`, `/readyz`, `/metrics`, `/openapi.json` and `/docs`: what other programs ask of the process itself."""

import json
from collections.abc import Sequence

from fastapi import Request
from starlette.responses import Response

from nebula_core.records.access import Role
from nebula_proxy.control.answers import JSON
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.docs_page import docs_page
from nebula_proxy.control.guard import PUBLIC
from nebula_proxy.control.metrics import Metrics
from nebula_proxy.control.operations import Operation


class Service:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._metrics = Metrics(desk)

    def operations(self) -> Sequence[Operation]:
        text = "text/plain"
        return (
            Operation("GET", "/healthz", self.healthz, PUBLIC, "Whether the process lives", root=True),
            Operation("GET", "/readyz", self.readyz, PUBLIC, "Whether it can answer", root=True),
            Operation("GET", "/metrics", self.metrics, Role.VIEWER, "For Prometheus", root=True, media_type=text),
            Operation("GET", "/openapi.json", self.openapi, Role.VIEWER, "This description", root=True),
            Operation("GET", "/docs", self.docs, Role.VIEWER, "It as a page", root=True, media_type="text/html"),
        )

    async def healthz(self) -> Response:
        return _json({"status": "ok"})

    async def readyz(self) -> Response:
        """Ready once the cluster is known; it stays so while the store is away: what is known is still answered."""
        ready = not self._desk.knows_nothing
        body = {
            "ready": ready,
            "store_reachable": self._desk.watcher.reachable,
            "leader": self._desk.planner.is_leader,
        }
        return _json(body, 200 if ready else 503)

    async def metrics(self) -> Response:
        return self._metrics.answer()

    async def openapi(self, request: Request) -> Response:
        return _json(request.app.openapi())

    async def docs(self) -> Response:
        return docs_page()


def _json(content: object, status: int = 200) -> Response:
    return Response(json.dumps(content), status, media_type=JSON)
