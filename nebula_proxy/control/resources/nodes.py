"""`/nodes`: look, cordon, drain, forget; single GPUs as well."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Body
from pydantic import Field
from starlette.responses import Response

from nebula_core.records.access import Role
from nebula_core.records.base import Record
from nebula_core.records.snapshot import NodeState
from nebula_core.records.views import NodeView, Page, PlanView
from nebula_proxy.control import changes
from nebula_proxy.control.actions import Deed
from nebula_proxy.control.answers import page_answer, record_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.operations import Calling, Operation, known_fields
from nebula_proxy.control.refusals import conflict, not_found


class DrainOrder(Record):
    #: After so many seconds of draining one replica its streams are cut.
    grace_seconds: float = Field(default=600.0, ge=0, le=7 * 24 * 3600)
    reason: str | None = Field(default=None, max_length=500)


class Nodes:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        role = Role.OPERATOR
        gpu = "/nodes/{node}/gpus/{gpu:path}"
        return (
            Operation("GET", "/nodes", self.every, Role.VIEWER, "Machines with their GPUs", Page[NodeView]),
            Operation("GET", "/nodes/{node}", self.one, Role.VIEWER, "One machine", NodeView),
            Operation("DELETE", "/nodes/{node}", self.remove, role, "Forget a machine that is gone for good", PlanView),
            Operation("POST", "/nodes/{node}/cordon", self.cordon, role, "Place nothing new there", PlanView),
            Operation("POST", "/nodes/{node}/uncordon", self.uncordon, role, "Open it; also ends a drain", PlanView),
            Operation(
                "POST", "/nodes/{node}/drain", self.drain, role, "Move everything off, cutting no stream", PlanView
            ),
            Operation("POST", f"{gpu}/cordon", self.cordon_gpu, role, "Place nothing new on one GPU", PlanView),
            Operation("POST", f"{gpu}/uncordon", self.uncordon_gpu, role, "Use it again", PlanView),
        )

    async def every(self) -> Response:
        return page_answer(list(self._desk.look().nodes.values()))

    async def one(self, node: str) -> Response:
        nodes = self._desk.look().nodes
        if node not in nodes:
            raise not_found("node", node, nodes)
        return record_answer(nodes[node])

    async def cordon(self, node: str, call: Calling) -> Response:
        self._require(node)
        answer = await self._desk.actions.intent(
            call,
            node,
            Deed("cordon", f"node/{node}"),
            lambda former: changes.cordon(former, node, by=call.by),
            f"cordons {node}: nothing new is placed there",
        )
        return record_answer(answer)

    async def uncordon(self, node: str, call: Calling) -> Response:
        self._require(node)
        answer = await self._desk.actions.intent(
            call,
            node,
            Deed("uncordon", f"node/{node}"),
            lambda former: changes.uncordon(former, node, by=call.by),
            f"opens {node}",
        )
        return record_answer(answer)

    async def drain(self, node: str, call: Calling, order: Annotated[DrainOrder | None, Body()] = None) -> Response:
        self._require(node)
        known_fields(DrainOrder, call.body)
        order = order or DrainOrder()
        grace, reason = order.grace_seconds, order.reason
        why = f": {reason}" if reason else ""
        answer = await self._desk.actions.intent(
            call,
            node,
            Deed("drain", f"node/{node}", {"grace_seconds": grace, "reason": reason}),
            lambda former: changes.drain(former, node, grace, reason, by=call.by, at=call.at),
            f"drains {node}{why}",
        )
        return record_answer(answer)

    async def cordon_gpu(self, node: str, gpu: str, call: Calling) -> Response:
        gpu_id = self._gpu(node, gpu)
        answer = await self._desk.actions.intent(
            call,
            node,
            Deed("cordon", f"node/{node}", {"gpu": gpu_id}),
            lambda former: changes.cordon_gpu(former, node, gpu_id, by=call.by),
            f"cordons GPU {gpu_id} of {node}",
        )
        return record_answer(answer)

    async def uncordon_gpu(self, node: str, gpu: str, call: Calling) -> Response:
        gpu_id = self._gpu(node, gpu)
        answer = await self._desk.actions.intent(
            call,
            node,
            Deed("uncordon", f"node/{node}", {"gpu": gpu_id}),
            lambda former: changes.uncordon_gpu(former, node, gpu_id, by=call.by),
            f"opens GPU {gpu_id} of {node}",
        )
        return record_answer(answer)

    async def remove(self, node: str, call: Calling) -> Response:
        self._require(node)
        state = self._desk.watcher.snapshot.node_state(node, self._desk.clock.monotonic())
        if state is not NodeState.LOST:
            raise conflict(f"{node} still reports", hint="stop its agent first, or drain it if it should stay idle")
        deed = Deed("node_removed", f"node/{node}", severity="warn")
        return record_answer(await self._desk.actions.remove_node(call, node, deed, f"forgets {node}"))

    def _require(self, node: str) -> None:
        nodes = self._desk.watcher.snapshot.nodes
        if node not in nodes:
            raise not_found("node", node, nodes)

    def _gpu(self, node: str, gpu: str) -> str:
        """The GPU's id, of its id or its index."""
        self._require(node)
        gpus = self._desk.watcher.snapshot.nodes[node].gpus
        for one in gpus:
            if gpu in {one.id, str(one.index)}:
                return one.id
        raise not_found("gpu", gpu, (one.id for one in gpus))
