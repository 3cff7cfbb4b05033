"""`/adopt`: an engine that somebody started by hand becomes a replica, as it runs."""

import re
from collections.abc import Sequence

from starlette.responses import Response

from nebula_core.records.access import Role
from nebula_core.records.base import Record
from nebula_core.records.deployment import Deployment
from nebula_core.records.ids import DeploymentName, ReplicaId
from nebula_core.records.views import PlanView, ReplicaView
from nebula_proxy.control import changes
from nebula_proxy.control.actions import Deed
from nebula_proxy.control.answers import record_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.operations import Calling, Operation, known_fields
from nebula_proxy.control.refusals import conflict, not_found


class AdoptOrder(Record):
    #: An unmanaged one of `/replicas`.
    replica: ReplicaId
    #: What clients call the model; None: as the engine does. One that exists gets one replica more.
    name: DeploymentName | None = None
    #: Of the names it lists; None: the first one.
    served_model: str | None = None


class Adopt:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        what = "Take in an engine that runs: no restart"
        return (Operation("POST", "/adopt", self.adopt, Role.ADMIN, what, PlanView),)

    async def adopt(self, order: AdoptOrder, call: Calling) -> Response:
        known_fields(AdoptOrder, call.body)
        found = self._found(order.replica)
        served = order.served_model or found.model
        name = order.name or plain_name(served)

        def words(former: Deployment | None, _following: Deployment | None) -> str:
            whereto = f"makes {name} of it" if former is None else f"{name} gets one replica more"
            left = found.found.left_out if found.found is not None else ()
            rest = f"; a restart would be without {', '.join(left)}" if left else ""
            return f"takes in {found.id} (pid {found.pid} on {found.node}) without a restart: {whereto}{rest}"

        def edit(former: Deployment | None) -> Deployment:
            following = changes.adopt(former, name, found, served, by=call.by, at=call.at)
            return changes.with_free_names(following, self._desk.watcher.snapshot.deployments)

        deed = Deed("adopt", f"replica/{found.id}", {"deployment": name, "pid": found.pid, "node": found.node})
        answer = await self._desk.actions.deployment(call, name, deed, edit, words)
        return record_answer(answer)

    def _found(self, replica: str) -> ReplicaView:
        views = self._desk.look().replicas
        if replica not in views:
            raise not_found("replica", replica, {name: view for name, view in views.items() if not view.managed})
        found = views[replica]
        if found.managed:
            raise conflict(f"{replica} is managed already", hint="`nebula replicas` marks those that are not")
        return found


def plain_name(served: str) -> str:
    """A name of a deployment from what an engine calls its model: `Qwen/Qwen2.5-7B` is `Qwen2.5-7B`."""
    last = served.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:63] or "model"
