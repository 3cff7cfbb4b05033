"""`/cache`: which models are on which node's disk; fetched ahead of a deployment, evicted when nothing needs them."""

from functools import partial
from typing import Annotated, Literal

from fastapi import Body
from pydantic import Field, StringConstraints
from starlette.responses import Response

from nebula_core.planning.fetches import model_size
from nebula_core.records.access import Role
from nebula_core.records.base import Record
from nebula_core.records.ids import NodeName
from nebula_core.records.model_source import ModelSource, read_source
from nebula_core.records.report import CachedModel, NodeReport
from nebula_core.records.views import NodeCacheView, OperationView, Page
from nebula_proxy.control.actions import Deed
from nebula_proxy.control.answers import page_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.node_orders import Ability, NodeOrders
from nebula_proxy.control.operations import Calling, Operation, known_fields
from nebula_proxy.control.refusals import conflict, invalid

#: Whether a node takes it is decided by that node's policy.
SourceText = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9/][A-Za-z0-9._:/@+ =!*'()-]{0,511}$", max_length=512)
]
GIB = 1024**3


class EvictOrder(Record):
    #: None: every node that keeps models.
    nodes: tuple[NodeName, ...] | None = Field(default=None, max_length=1000)
    #: A source or an id; None: all that nothing needs.
    model: SourceText | None = None


class PrefetchOrder(Record):
    source: SourceText
    nodes: tuple[NodeName, ...] | None = Field(default=None, max_length=1000)
    #: For which kind of engine: llama.cpp loads GGUF, the others safetensors.
    engine: Literal["vllm", "sglang", "llamacpp", "xllm"] = "vllm"


KEEPS_MODELS = Ability(
    lambda report: report.models is not None,
    lacking="keeps no models",
    nobody="no node keeps models",
    nobody_hint="set model_cache.enabled of the agents",
)


class Cache:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._orders = NodeOrders(desk, KEEPS_MODELS)

    def operations(self) -> tuple[Operation, ...]:
        role = Role.OPERATOR
        return (
            Operation("GET", "/cache", self.every, Role.VIEWER, "Models of each node", Page[NodeCacheView]),
            Operation("POST", "/cache/prefetch", self.prefetch, role, "Fetch a model to nodes", OperationView),
            Operation("POST", "/cache/evict", self.evict, role, "Remove models that nothing needs", OperationView),
        )

    async def every(self) -> Response:
        now = self._desk.clock.monotonic()
        return page_answer(
            [
                NodeCacheView(
                    node=node,
                    age_seconds=round(max(0.0, now - received.at), 1),
                    models=received.report.models or (),
                    fetches=received.report.fetches,
                    room=received.report.model_cache,
                )
                for node, received in sorted(self._desk.watcher.snapshot.reports.items())
                if received.report.models is not None
            ]
        )

    async def prefetch(self, order: PrefetchOrder, call: Calling) -> Response:
        known_fields(PrefetchOrder, call.body)
        source = read_source(order.source, engine=order.engine)
        if isinstance(source, str):
            raise invalid(source, param="source", hint="write it as in a deployment; see docs/deployments.md")
        deed = Deed("cache_prefetch", f"model/{order.source}", {"source": order.source, "nodes": order.nodes})
        arguments = {"source": order.source, "engine": order.engine}
        size = model_size(self._desk.watcher.snapshot, source.id)
        nodes, would = self._orders.nodes(order.nodes), partial(_would_fetch, source=source, size=size)
        return await self._orders.send(call, "cache.prefetch", nodes, arguments, deed, f"fetches {order.source}", would)

    async def evict(self, call: Calling, order: Annotated[EvictOrder | None, Body()] = None) -> Response:
        known_fields(EvictOrder, call.body)
        order = order or EvictOrder()
        what = order.model or "models that nothing needs"
        deed = Deed("cache_evict", f"model/{order.model or '*'}", {"nodes": order.nodes}, severity="warn")
        arguments = {} if order.model is None else {"model": order.model}
        nodes, would = self._nodes(order.nodes, order.model), partial(_would_evict, model=order.model)
        return await self._orders.send(call, "cache.evict", nodes, arguments, deed, f"evicts {what}", would)

    def _nodes(self, asked: tuple[str, ...] | None, model: str | None) -> list[str]:
        """Those that answer and keep models; without names, of a model only those that have it. Raises CallRefused."""
        nodes = self._orders.nodes(asked)
        if asked or model is None:
            return nodes
        having = [node for node in nodes if _having(self._orders.report(node), model)]
        if not having:
            raise conflict(f"no node has {model}", hint="look at `nebula cache list`")
        return having


def _having(report: NodeReport, model: str) -> list[CachedModel]:
    return [one for one in report.models or () if model in {one.id, one.source}]


def _would_fetch(report: NodeReport, source: ModelSource, size: int | None) -> str:
    if any(one.id == source.id and one.complete for one in report.models or ()):
        return "is there already"
    words = "would be fetched" + ("" if size is None else f" ({size / GIB:.1f} GiB)")
    room = report.model_cache
    if room is None:
        return words
    return f"{words}; {room.room_bytes / GIB:.1f} GiB free, {room.evictable_bytes / GIB:.1f} GiB more by eviction"


def _would_evict(report: NodeReport, model: str | None) -> str:
    if model is not None:
        found = _having(report, model)
        used = [one.source for one in found if one.in_use]
        size = sum(one.size_bytes for one in found) / GIB
        return f"{used[0]} is in use: refused" if used else f"{len(found)} evicted, {size:.1f} GiB"
    free = [one for one in report.models or () if not one.in_use]
    return f"{len(free)} models that nothing needs, {sum(one.size_bytes for one in free) / GIB:.1f} GiB"
