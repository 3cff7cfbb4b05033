"""Watches over this process: measures it in the sweep, and holds the verdict that requests and connections look at."""

import structlog

from nebula_core.runtime.memory import free_heap_bytes, give_back_memory
from nebula_proxy.adapters.vitals import MemoryGroup, descriptor_limit, open_descriptors, resident_bytes
from nebula_proxy.decisions.free_memory import Heap, has_grown, is_due, looked
from nebula_proxy.decisions.overload_guard import NO_TROUBLE, Cause, GuardLimits, Vitals, judge, room_for_connections

log = structlog.get_logger(__name__)

#: Up to so many connections descriptors are counted; beyond it that would take milliseconds, and they are estimated.
_COUNTED = 2000


class Guard:
    """`shed` is looked at by every request, `admits` asked by every new connection."""

    def __init__(self, limits: GuardLimits | None = None, *, group: MemoryGroup | None = None) -> None:
        self.limits = limits or GuardLimits()
        self.verdict = NO_TROUBLE
        #: Why new requests are turned away; None lets them in.
        self.shed: Cause | None = None
        self.vitals = Vitals()
        #: Connections closed as soon as they came, by reason.
        self.closed: dict[str, int] = {}
        self._group = group
        self._clients: dict[str, int] = {}
        self._connections = 0
        #: What descriptors allow until the next look.
        self._room: int | None = None
        self._others = 0
        self._due: float | None = None
        self._heap = Heap()

    def look(self, now: float, connections: int, period: float) -> None:
        """Once per `period` seconds; `connections` are those of clients and engines."""
        late = None if self._due is None else max(0.0, now - self._due)
        self._due = now + period
        if connections < _COUNTED:
            descriptors = open_descriptors()
            self._others = max(0, descriptors - connections)
        else:
            descriptors = connections + self._others
        if self.limits.descriptors is not None:
            self.limits = self.limits._replace(descriptors=descriptor_limit())
        self._give_back()
        self.judge(Vitals(descriptors, self._memory(), late))

    def judge(self, vitals: Vitals) -> None:
        before = self.verdict
        self.vitals = vitals
        self.verdict = judge(before, vitals, self.limits)
        self.shed = self.verdict.shed
        self._room = room_for_connections(vitals, self.limits, self._connections)
        if before.shed is not self.shed or before.close is not self.verdict.close:
            told = log.info if self.shed is None else log.error
            told(
                "overload_guard",
                shed=self.shed,
                close=self.verdict.close,
                descriptors=vitals.descriptors,
                memory_bytes=vitals.memory_bytes,
                loop_lag_seconds=vitals.loop_lag_seconds,
            )

    def admits(self, client: str | None) -> bool:
        """Takes a new connection into the books; False when it must be closed at once (and `left` not be called)."""
        limits = self.limits
        reason: str | None = None
        if self.verdict.close is not None:
            reason = str(self.verdict.close)
        elif self._room is not None and self._connections >= self._room:
            reason = str(Cause.DESCRIPTORS)  # between two looks
        elif limits.connections is not None and self._connections >= limits.connections:
            reason = "connections"
        elif (
            limits.connections_per_client is not None
            and client is not None
            and self._clients.get(client, 0) >= limits.connections_per_client
        ):
            reason = "connections_per_client"
        if reason is not None:
            if reason not in self.closed:
                log.warning("connection_closed_at_once", reason=reason, client=client)
            self.closed[reason] = self.closed.get(reason, 0) + 1
            return False
        self._connections += 1
        if client is not None:
            self._clients[client] = self._clients.get(client, 0) + 1
        return True

    def left(self, client: str | None) -> None:
        self._connections -= 1
        if client is not None:
            count = self._clients.get(client, 0) - 1
            if count > 0:
                self._clients[client] = count
            else:
                self._clients.pop(client, None)

    def _give_back(self) -> None:
        """What a burst left free in the heap goes back to the machine."""
        resident = resident_bytes()
        heap = looked(self._heap, resident, free_heap_bytes() if has_grown(self._heap, resident) else None)
        if is_due(heap, short=self.shed is Cause.MEMORY):
            give_back_memory()
            left = resident_bytes()
            heap = looked(Heap(), left, None)
            log.info("memory_given_back", before_bytes=resident, after_bytes=left)
        self._heap = heap

    def _memory(self) -> int:
        """Of the whole control group where that is what is limited, else of this process."""
        used = None if self._group is None else self._group.used_bytes()
        return resident_bytes() if used is None else used
