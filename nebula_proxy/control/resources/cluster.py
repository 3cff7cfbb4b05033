"""`/whoami`, `/cluster`, `/leader` and `/watch`: the whole at a glance, and kept up to date."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from nebula_core.records.access import Role
from nebula_core.records.views import ClusterView, LeaderView, PlanView, WatchDelta, WatchSnapshot, WhoAmI
from nebula_proxy.control.actions import Deed, Done, plan_view
from nebula_proxy.control.answers import record_answer, stream_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.operations import Calling, Calls, Operation
from nebula_proxy.control.refusals import conflict
from nebula_proxy.control.scopes import parse_scope
from nebula_proxy.control.watching import LONGEST_INTERVAL_MS, SHORTEST_INTERVAL_MS

Interval = Annotated[int, Query(ge=SHORTEST_INTERVAL_MS, le=LONGEST_INTERVAL_MS)]


class Cluster:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        watch: Any = WatchSnapshot | WatchDelta
        return (
            Operation("GET", "/whoami", self.whoami, Role.CLIENT, "Name and role of the key in use", WhoAmI),
            Operation("GET", "/cluster", self.cluster, Role.VIEWER, "The cluster at a glance", ClusterView),
            Operation("GET", "/leader", self.leader, Role.VIEWER, "Who plans", LeaderView),
            Operation(
                "POST",
                "/leader/release-brake",
                self.release_brake,
                Role.OPERATOR,
                "Accept what vanished, so that the planner goes on",
                PlanView,
            ),
            Operation(
                "GET",
                "/watch",
                self.watch,
                Role.VIEWER,
                "A snapshot (event `snapshot`), then what changes (event `delta`)",
                watch,
                media_type="text/event-stream",
            ),
        )

    async def whoami(self, principal: Calls) -> Response:
        return record_answer(WhoAmI(name=principal.name, role=principal.role.value, key_id=principal.key_id))

    async def cluster(self) -> Response:
        return record_answer(self._desk.look().cluster())

    async def leader(self) -> Response:
        planner = self._desk.planner
        holder, epoch = planner.leader or (None, None)
        brake = None if planner.latest is None else planner.latest.brake
        return record_answer(LeaderView(holder=holder, epoch=epoch, here=planner.is_leader, brake=brake))

    async def release_brake(self, call: Calling) -> Response:
        planner = self._desk.planner
        brake = None if planner.latest is None else planner.latest.brake
        words = "releases the brake" if brake else "nothing to do: the planner is not held"
        if call.dry_run:
            return record_answer(plan_view(call, words))

        async def work() -> Done:
            if brake is None:
                return Done(plan_view(call, words))
            if not planner.is_leader:
                holder = planner.leader[0] if planner.leader else "nobody"
                raise conflict(f"another process leads: {holder}", hint="send this to the Control API there")
            accepted = planner.release_brake()
            message = f"accepted the loss of {', '.join(sorted(accepted)) or 'nothing'}"
            return Done(plan_view(call, message), message)

        deed = Deed("brake_released", "cluster/planner", severity="warn")
        return record_answer(await self._desk.actions.perform(call, deed, work, PlanView))

    async def watch(self, principal: Calls, scope: str = "overview", interval_ms: Interval = 1000) -> Response:
        chunks = self._desk.hub.watch(parse_scope(scope), interval_ms)
        return stream_answer(chunks, self._desk.still_allowed(principal))
