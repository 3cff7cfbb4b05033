"""`/images`: which images of engines are on which node; pulled ahead of a deployment, pruned when nothing needs them."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Body
from pydantic import Field, StringConstraints
from starlette.responses import Response

from nebula_core.records.access import Role
from nebula_core.records.base import Record
from nebula_core.records.ids import NodeName
from nebula_core.records.report import NodeReport
from nebula_core.records.views import NodeImagesView, OperationView, Page
from nebula_proxy.control.actions import Deed
from nebula_proxy.control.answers import page_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.node_orders import Ability, NodeOrders
from nebula_proxy.control.operations import Calling, Operation, known_fields

#: Of a reference; its parts are read by the nodes, which decide about them too.
ImageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}$", max_length=512)]


class PruneOrder(Record):
    #: None: every node that runs containers.
    nodes: tuple[NodeName, ...] | None = Field(default=None, max_length=1000)


class PullOrder(PruneOrder):
    image: ImageName


RUNS_CONTAINERS = Ability(
    lambda report: report.images is not None,
    lacking="runs no containers",
    nobody="no node runs containers",
    nobody_hint="install Docker there, or set docker.enabled of its agent",
)


class Images:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._orders = NodeOrders(desk, RUNS_CONTAINERS)

    def operations(self) -> Sequence[Operation]:
        role = Role.ADMIN
        return (
            Operation("GET", "/images", self.every, Role.VIEWER, "Images of each node", Page[NodeImagesView]),
            Operation("POST", "/images/pull", self.pull, role, "Pull an image on nodes, ahead of need", OperationView),
            Operation("POST", "/images/prune", self.prune, role, "Remove images that nothing needs", OperationView),
        )

    async def every(self) -> Response:
        now = self._desk.clock.monotonic()
        return page_answer(
            [
                NodeImagesView(
                    node=node,
                    age_seconds=round(max(0.0, now - received.at), 1),
                    images=received.report.images or (),
                    pulls=received.report.pulls,
                )
                for node, received in sorted(self._desk.watcher.snapshot.reports.items())
                if received.report.images is not None
            ]
        )

    async def pull(self, order: PullOrder, call: Calling) -> Response:
        known_fields(PullOrder, call.body)
        deed = Deed("image_pull", f"image/{order.image}", {"image": order.image, "nodes": order.nodes})
        nodes, arguments = self._orders.nodes(order.nodes), {"image": order.image}
        return await self._orders.send(
            call, "image.pull", nodes, arguments, deed, f"pulls {order.image}", _would_be_told
        )

    async def prune(self, call: Calling, order: Annotated[PruneOrder | None, Body()] = None) -> Response:
        known_fields(PruneOrder, call.body)
        order = order or PruneOrder()
        deed = Deed("image_prune", "image/*", {"nodes": order.nodes}, severity="warn")
        nodes, summary = self._orders.nodes(order.nodes), "prunes images that nothing needs"
        return await self._orders.send(call, "image.prune", nodes, {}, deed, summary, _would_prune)


def _would_be_told(_: NodeReport) -> str:
    return "would be told"


def _would_prune(report: NodeReport) -> str:
    free = [one for one in report.images or () if not one.in_use and not one.pinned]
    size = sum(one.size_bytes or 0 for one in free) / 1024**3
    return f"{len(free)} images that nothing needs, {size:.1f} GiB"
