"""The planner's loop: look, plan, and, as the leader, sign and write; one iteration is `step`.

    watcher ─ wakes ─► step: lease ─► observe ─► reconcile ─► sign ─► apply (fenced) ─► tell

The plan itself is `nebula_core.planning`; here is only what has effects. A process that does not lead plans as well
and writes nothing, so that every Control API can say why a replica is missing. After a write the leader plans again
only once its own view has that write: it never acts twice on one observation.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

import structlog

from nebula_core.errors import Fenced, StoreUnavailable
from nebula_core.planning.brake import braked_nodes
from nebula_core.planning.index import ClusterIndex, build_index
from nebula_core.planning.memory import observe
from nebula_core.planning.policy import PlanPolicy
from nebula_core.planning.reconcile import reconcile
from nebula_core.planning.story import node_states, tell_changes, tell_nodes, tell_plan, tell_reports
from nebula_core.records.event import ChangeKind, Event
from nebula_core.records.placement import SignedPlacement
from nebula_core.records.plan import PlacementChange, Plan
from nebula_core.records.snapshot import ClusterSnapshot, NodeState
from nebula_core.runtime.clock import Clock
from nebula_core.security.envelope import SigningKey, sign_placement
from nebula_core.store.store import Store
from nebula_core.store.watcher import Changed, Watcher
from nebula_proxy.control.leader import Lease, LeaseSettings, highest_obeyed_epoch

log = structlog.get_logger(__name__)

#: Placements signed and written at a time: about 10 ms of signing, then the loop and the lease get their turn.
BATCH = 100
#: A write that the view does not show for so long is not waited for any more: the store may have lost it.
UNSEEN_SECONDS = 5.0
#: Events one pass may write; a mass move tells the rest in one line.
MOST_EVENTS = 100


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    lease: LeaseSettings = field(default_factory=LeaseSettings)
    #: A pass at least so often, woken or not: time itself makes nodes lost and graces end.
    pass_seconds: float = 1.0
    #: After a wake-up, what else comes at the same moment is taken along.
    coalesce_seconds: float = 0.05
    surge: int = 1
    brake_window_seconds: float = 60.0


class PlannerLoop:
    """Plans for ever in `run`; tests and other loops call `step`."""

    def __init__(
        self,
        store: Store,
        watcher: Watcher,
        signing_key: SigningKey,
        clock: Clock,
        settings: PlannerSettings | None = None,
        *,
        holder: str | None = None,
    ) -> None:
        self.settings = settings or PlannerSettings()
        #: The plan of the latest pass.
        self.latest: Plan | None = None
        #: Settings and memory of the latest pass: what `preview` should judge by.
        self.policy = PlanPolicy(surge=self.settings.surge, brake_window_seconds=self.settings.brake_window_seconds)
        #: Changes written by this process, by what they ask for (`run`, `drain`, `stop`, `remove`).
        self.actions: Counter[str] = Counter()
        self._store = store
        self._watcher = watcher
        self._key = signing_key
        self._clock = clock
        self._lease = Lease(store, clock, holder or uuid4().hex, self.settings.lease)
        self._index = ClusterIndex()
        self._woken = asyncio.Event()
        #: Revision of our last write: until the view has it, planning would be acting twice.
        self._written = 0
        self._written_at = 0.0
        #: The view, the states of nodes and the plan that operators were told of; None before leading.
        self._told: tuple[ClusterSnapshot, dict[str, NodeState], Plan | None] | None = None
        self._heard_view = watcher.snapshot

    # -- what others use -------------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        return self._lease.epoch is not None

    @property
    def leader(self) -> tuple[str, int] | None:
        """(holder, epoch) of the leader as last seen."""
        return self._lease.leader

    @property
    def holder(self) -> str:
        return self._lease.holder

    def wake(self) -> None:
        """Asks for a pass soon."""
        self._woken.set()

    def release_brake(self) -> frozenset[str]:
        """An operator accepts what vanished: the nodes and deployments whose absence no longer holds the planner."""
        view = self._watcher.snapshot
        index = build_index(view, self.policy, self._clock.monotonic())
        nodes = braked_nodes(view, index, self.policy, self._clock.monotonic())
        gone = frozenset(name for name in index.deployments() if name not in view.deployments)
        accepted = nodes | gone
        self._remember(released=self.policy.memory.released | accepted)
        self.wake()
        return accepted

    def _remember(self, **changes: object) -> None:
        self.policy = replace(self.policy, memory=replace(self.policy.memory, **changes))  # type: ignore[arg-type]

    # -- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Plans until it is cancelled; then gives the lease back."""
        self._watcher.add_listener(self._heard)
        try:
            while True:
                try:
                    await self.step()
                except StoreUnavailable as error:
                    log.warning("plan_without_store", error=str(error))
                except Exception:
                    log.exception("plan_failed")
                await self._wait()
        finally:
            self._watcher.remove_listener(self._heard)
            await self._lease.release()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.pass_seconds):
                await self._woken.wait()
                await asyncio.sleep(self.settings.coalesce_seconds)
        self._woken.clear()

    def _heard(self, view: ClusterSnapshot, changed: Changed) -> None:
        """Wakes the loop for what a plan depends on; figures that come each second are looked at each second."""
        before, self._heard_view = self._heard_view, view
        deleted = {one.id for one in changed.durable if one.kind is ChangeKind.DEPLOYMENT and one.value is None}
        if deleted:
            self._remember(deleted=self.policy.memory.deleted | deleted)
        draining = bool(self.policy.memory.drains) and bool(changed.nodes or changed.proxies)
        if changed.resynced or changed.durable or draining or _phases_moved(before, view, changed.nodes):
            self.wake()

    # -- one iteration ---------------------------------------------------------------------------------------------

    async def step(self) -> Plan | None:
        """One pass; answers its plan, or None when there was nothing to look at yet.

        Raises StoreUnavailable when the store does not answer; what was written by then stays written.
        """
        if not self._watcher.reachable:
            return None
        epoch = await self._lease.hold(above=highest_obeyed_epoch(self._watcher.snapshot))
        view, now = self._watcher.snapshot, self._clock.monotonic()
        if view.revision < self._written and now - self._written_at < UNSEEN_SECONDS:
            return None
        self._written = 0
        base = replace(self.policy, epoch=epoch or 0, emptied=self._watcher.emptied)
        self.policy = observe(base, view, now, self._index)
        plan = self.latest = reconcile(view, self.policy, now, self._index)
        if epoch is None:
            self._told = None
            return plan
        changes = await self._apply(epoch, plan.changes)
        await self._tell(view, plan, changes, now)
        return plan

    async def _apply(self, epoch: int, changes: Sequence[PlacementChange]) -> list[PlacementChange]:
        """Signs and writes as long as this one leads with `epoch`; answers what was written."""
        written: list[PlacementChange] = []
        for start in range(0, len(changes), BATCH):
            if start and await self._lease.hold() != epoch:
                break
            if not self._lease.may_write():
                break
            batch = changes[start : start + BATCH]
            signed = [(change.replica, self._signed(change)) for change in batch]
            if not self._lease.may_write():
                break  # signing took its time
            try:
                self._written = await self._store.apply_placements(epoch, signed)
            except Fenced as refusal:
                self._lease.fenced(str(refusal))
                break
            self._written_at = self._clock.monotonic()
            written.extend(batch)
            self.actions.update(_action(change) for change in batch)
            await asyncio.sleep(0)
        for change in written:
            log.info(
                "placement_written", action=_action(change), replica=change.replica, why=change.reason, epoch=epoch
            )
        return written

    def _signed(self, change: PlacementChange) -> SignedPlacement | None:
        return None if change.placement is None else sign_placement(self._key, change.placement)

    async def _tell(self, view: ClusterSnapshot, plan: Plan, changes: Sequence[PlacementChange], now: float) -> None:
        at = self._clock.wall()
        states = node_states(view, self.policy, now)
        events: list[Event] = []
        if self._told is not None:
            known_view, known_states, known_plan = self._told
            events += tell_nodes(known_states, states, view, at)
            events += tell_reports(known_view, view, at)
            events += tell_plan(known_plan, plan, at)
        else:
            events += tell_plan(None, plan, at)
        events += tell_changes(view, changes, at)
        self._told = (view, states, plan)
        for event in _bounded(events, at):
            try:
                await self._store.append_event(event)
            except StoreUnavailable as error:
                log.warning("event_not_written", event_kind=event.kind, object=event.object, error=str(error))
                return


def _bounded(events: list[Event], at: float) -> list[Event]:
    if len(events) <= MOST_EVENTS:
        return events
    left = Counter(event.kind for event in events[MOST_EVENTS:])
    words = ", ".join(f"{count} × {kind}" for kind, count in sorted(left.items()))
    more = Event(kind="more", object="cluster/planner", message=f"in the same moment: {words}", actor="planner", at=at)
    return [*events[:MOST_EVENTS], more]


def _action(change: PlacementChange) -> str:
    return "remove" if change.placement is None else change.placement.wanted.value


def _phases_moved(before: ClusterSnapshot, view: ClusterSnapshot, nodes: frozenset[str]) -> bool:
    for name in nodes:
        received, known = view.reports.get(name), before.reports.get(name)
        if received is None or known is None:
            return True
        if received.report.replicas is known.report.replicas:
            continue
        if [(status.id, status.phase) for status in received.report.replicas] != [
            (status.id, status.phase) for status in known.report.replicas
        ]:
            return True
    return False
