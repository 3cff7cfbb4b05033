"""`/deployments`: what should run, in how many copies."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Body, Path
from pydantic import Field
from starlette.responses import Response

from nebula_core.records.access import Role
from nebula_core.records.base import Record
from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.ids import DeploymentName
from nebula_core.records.views import DeploymentView, Page, PlanView
from nebula_proxy.control import changes
from nebula_proxy.control.actions import Call, Deed
from nebula_proxy.control.answers import page_answer, record_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.operations import Calling, Operation, known_fields
from nebula_proxy.control.refusals import not_found

Name = Annotated[DeploymentName, Path()]


class ScaleOrder(Record):
    replicas: int = Field(ge=0, le=10_000)


class RollbackOrder(Record):
    #: None: to the latest generation in which engines were started differently.
    generation: int | None = Field(default=None, ge=1)


class Deployments:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        role = Role.OPERATOR
        one = "/deployments/{name}"
        return (
            Operation(
                "GET", "/deployments", self.every, Role.VIEWER, "Models, as they should be", Page[DeploymentView]
            ),
            Operation("GET", one, self.one, Role.VIEWER, "One model", DeploymentView),
            Operation("PUT", one, self.apply, role, "Make it as the body says", PlanView),
            Operation("DELETE", one, self.delete, role, "Remove it; its replicas drain and stop", PlanView),
            Operation("POST", f"{one}/scale", self.scale, role, "Set the number of replicas", PlanView),
            Operation("POST", f"{one}/restart", self.restart, role, "Replace its replicas one by one", PlanView),
            Operation("POST", f"{one}/undo", self.undo, role, "Take the last change of its spec back", PlanView),
            Operation("POST", f"{one}/rollback", self.rollback, role, "Start engines as they were before", PlanView),
        )

    async def every(self) -> Response:
        return page_answer(list(self._desk.look().deployments.values()))

    async def one(self, name: str) -> Response:
        views = self._desk.look().deployments
        if name not in views:
            raise not_found("deployment", name, views)
        return record_answer(views[name], generation=views[name].generation)

    async def apply(self, name: Name, spec: Annotated[DeploymentSpec, Body()], call: Calling) -> Response:
        known_fields(DeploymentSpec, call.body)

        def words(former: Deployment | None, following: Deployment | None) -> str:
            if former is None or following is None:
                return f"makes {name} with {spec.replicas} replicas"
            return f"changes {name} to generation {following.generation}"

        deed = Deed("deploy", f"deployment/{name}", {"spec": spec.model_dump(mode="json", exclude_defaults=True)})
        answer = await self._desk.actions.deployment(
            call,
            name,
            deed,
            lambda former: self._named(changes.apply_spec(former, name, spec, by=call.by, at=call.at)),
            words,
        )
        return record_answer(answer)

    async def delete(self, name: str, call: Calling) -> Response:
        def edit(former: Deployment | None) -> None:
            self._there(former, name)

        deed = Deed("delete", f"deployment/{name}", severity="warn")
        answer = await self._desk.actions.deployment(call, name, deed, edit, lambda *_: f"removes {name}")
        return record_answer(answer)

    async def scale(self, name: str, order: ScaleOrder, call: Calling) -> Response:
        known_fields(ScaleOrder, call.body)

        def words(former: Deployment | None, _following: Deployment | None) -> str:
            before = "?" if former is None else former.spec.replicas
            return f"scales {name} {before} → {order.replicas}"

        deed = Deed("scale", f"deployment/{name}", {"replicas": order.replicas})
        answer = await self._desk.actions.deployment(
            call,
            name,
            deed,
            lambda former: changes.scale(self._there(former, name), order.replicas, by=call.by, at=call.at),
            words,
        )
        return record_answer(answer)

    async def restart(self, name: str, call: Calling) -> Response:
        deed = Deed("restart", f"deployment/{name}")
        answer = await self._desk.actions.deployment(
            call,
            name,
            deed,
            lambda former: changes.restart(self._there(former, name), by=call.by, at=call.at),
            lambda *_: f"restarts {name}, one replica after the other",
        )
        return record_answer(answer)

    async def undo(self, name: str, call: Calling) -> Response:
        return record_answer(await self._back(call, name, "undo", None))

    async def rollback(
        self, name: str, call: Calling, order: Annotated[RollbackOrder | None, Body()] = None
    ) -> Response:
        known_fields(RollbackOrder, call.body)
        return record_answer(await self._back(call, name, "rollback", order))

    async def _back(self, call: Call, name: str, kind: str, order: RollbackOrder | None) -> PlanView:
        generation = None if order is None else order.generation

        def edit(former: Deployment | None) -> Deployment:
            known = self._there(former, name)
            if kind == "undo":
                return self._named(changes.undo(known, by=call.by, at=call.at))
            return self._named(changes.rollback(known, generation, by=call.by, at=call.at))

        def words(_former: Deployment | None, following: Deployment | None) -> str:
            verb = "takes the last change back" if kind == "undo" else "rolls back"
            return f"{verb}: {name} is generation {following.generation if following else '?'}"

        deed = Deed(kind, f"deployment/{name}", {"generation": generation})
        return await self._desk.actions.deployment(call, name, deed, edit, words)

    def _named(self, following: Deployment) -> Deployment:
        return changes.with_free_names(following, self._desk.watcher.snapshot.deployments)

    def _there(self, former: Deployment | None, name: str) -> Deployment:
        if former is None:
            raise not_found("deployment", name, self._desk.watcher.snapshot.deployments)
        return former
