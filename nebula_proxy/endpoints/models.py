"""`GET /v1/models`, from the routing table, with what the caller's key may use; never asked of an engine."""

import time

from starlette.requests import Request
from starlette.responses import Response

from nebula_proxy.decisions.refusal import invalid_key, model_not_allowed, model_not_found
from nebula_proxy.endpoints.answers import json_answer, refusal_answer
from nebula_proxy.endpoints.shapes import ModelCard, ModelList
from nebula_proxy.traffic.authentication import Pass
from nebula_proxy.traffic.plane import Plane
from nebula_proxy.traffic.routing_table import ModelRoutes


class Models:
    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._created = int(time.time())

    async def every(self, request: Request) -> Response:
        caller = self._caller(request)
        if caller is None:
            return refusal_answer(invalid_key())
        models = self._plane.table.models
        data = [self._entry(name, models[name]) for name in sorted(models) if caller.principal.may_use(name)]
        return json_answer(ModelList(data=data))

    async def one(self, request: Request) -> Response:
        caller = self._caller(request)
        if caller is None:
            return refusal_answer(invalid_key())
        name = request.path_params["model"]
        if not caller.principal.may_use(name):
            return refusal_answer(model_not_allowed(name, caller.principal.name))
        routes = self._plane.table.models.get(name)
        if routes is None:
            known = [known for known in self._plane.table.models if caller.principal.may_use(known)]
            return refusal_answer(model_not_found(name, known))
        return json_answer(self._entry(name, routes))

    def _caller(self, request: Request) -> Pass | None:
        return self._plane.authenticator.check(dict(request.scope["headers"]))

    def _entry(self, name: str, routes: ModelRoutes) -> ModelCard:
        view = routes.view
        return ModelCard(
            id=name,
            created=self._created,
            # As vLLM tells an adapter from its model; where its files are is nobody's business.
            root=view.model,
            parent=None if name == view.model else view.model,
            max_model_len=view.max_model_len,
            ready=len(view.endpoints),
            starting=view.starting,
            wanted=view.wanted,
        )
