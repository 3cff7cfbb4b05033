"""`/replicas`: what runs, its lines, and replacing a single one."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from nebula_core.records.access import Role
from nebula_core.records.deployment import Deployment
from nebula_core.records.views import LogLine, Page, PlanView, ReplicaView
from nebula_proxy.control import changes
from nebula_proxy.control.actions import Call, Deed
from nebula_proxy.control.answers import page_answer, record_answer, stream_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.operations import Calling, Calls, Operation
from nebula_proxy.control.refusals import conflict, not_found

MOST_LINES = 10_000

Tail = Annotated[int, Query(ge=0, le=MOST_LINES, description="Lines from before now.")]
Since = Annotated[float | None, Query(ge=0, description="Only lines younger than so many seconds.")]


class Replicas:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        role = Role.OPERATOR
        one = "/replicas/{replica}"
        return (
            Operation("GET", "/replicas", self.every, Role.VIEWER, "Running copies", Page[ReplicaView]),
            Operation("GET", one, self.one, Role.VIEWER, "One copy", ReplicaView),
            Operation("POST", f"{one}/drain", self.drain, role, "Replace it by another, cutting no stream", PlanView),
            Operation("POST", f"{one}/restart", self.restart, role, "Replace it by a fresh one", PlanView),
            Operation(
                "GET",
                f"{one}/logs",
                self.logs,
                Role.VIEWER,
                "Its lines; `follow=1` streams (event `line`)",
                Page[LogLine],
            ),
        )

    async def every(self) -> Response:
        return page_answer(list(self._desk.look().replicas.values()))

    async def one(self, replica: str) -> Response:
        return record_answer(self._view(replica))

    async def drain(self, replica: str, call: Calling) -> Response:
        return record_answer(await self._move(call, replica, "drain"))

    async def restart(self, replica: str, call: Calling) -> Response:
        return record_answer(await self._move(call, replica, "restart"))

    async def logs(
        self, principal: Calls, replica: str, follow: bool = False, tail: Tail = 200, since: Since = None
    ) -> Response:
        self._view(replica)
        if follow:
            chunks = self._desk.follower.lines(replica, tail, since)
            return stream_answer(chunks, self._desk.still_allowed(principal))
        return page_answer(await self._desk.follower.last_lines(replica, tail, since))

    async def _move(self, call: Call, replica: str, kind: str) -> PlanView:
        view = self._view(replica)
        if not view.managed:
            raise conflict(
                f"{replica} was started by hand: Nebula does not touch it", hint="stop it where it was started"
            )
        name = view.deployment
        reason = f"{kind} asked for by {call.by}"

        def edit(former: Deployment | None) -> Deployment:
            snapshot = self._desk.watcher.snapshot
            if former is None:
                raise conflict(f"{replica} has no deployment any more", hint="it is on its way out already")
            placement = snapshot.placements.get(replica)
            if placement is not None and any(
                one.replica == replica and placement.generation < one.generation for one in former.moves
            ):
                return former
            return changes.move(former, replica, reason, snapshot.placements, by=call.by, at=call.at)

        return await self._desk.actions.deployment(
            call, name, Deed(kind, f"replica/{replica}"), edit, lambda *_: f"replaces {replica}: {reason}"
        )

    def _view(self, replica: str) -> ReplicaView:
        views = self._desk.look().replicas
        if replica not in views:
            raise not_found("replica", replica, views)
        return views[replica]
