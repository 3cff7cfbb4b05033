"""The planner's loop: look, plan, and, as the leader, sign and write; one iteration is `step`.

    watcher ─ wakes ─► step: lease ─► observe ─► reconcile ─► sign ─► apply (fenced) ─► tell

The plan itself is `nebula_core.planning`; here is only what has effects. A process that does not lead plans as well
and writes nothing, so that every Control API can say why a replica is missing. After a write the leader plans again
only once its own view has that write: it never acts twice on one observation.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

import structlog

from nebula_core.errors import Fenced, StoreUnavailable
from nebula_core.planning.brake import allowed_yet, braked_nodes
from nebula_core.planning.index import ClusterIndex, build_index
from nebula_core.planning.memory import observe
from nebula_core.planning.policy import PlanPolicy
from nebula_core.planning.reconcile import reconcile
from nebula_core.planning.story import node_states, tell_changes, tell_nodes, tell_plan, tell_reports
from nebula_core.records.event import ChangeKind, Event
from nebula_core.records.placement import Placement, SignedPlacement
from nebula_core.records.plan import PlacementChange, Plan
from nebula_core.records.snapshot import ClusterSnapshot, NodeState
from nebula_core.runtime.clock import Clock
from nebula_core.security.envelope import SigningKey, VerifyKeys, sign_placement
from nebula_core.store.store import Store
from nebula_core.store.watcher import Changed, Watcher
from nebula_proxy.control import resigning
from nebula_proxy.control.leader import Lease, LeaseSettings, highest_obeyed_epoch
from nebula_proxy.control.resigning import Looked

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
    #: A leader takes nothing away in its first seconds: it may have begun on an older copy of the store.
    listen_seconds: float = 3.0


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
        trusted: VerifyKeys | None = None,
    ) -> None:
        """`trusted` recognises what `signing_key` and the keys before it have signed; without it, that key alone."""
        self.settings = settings or PlannerSettings()
        #: The plan of the latest pass.
        self.latest: Plan | None = None
        #: Settings and memory of the latest pass: what `preview` should judge by.
        self.policy = PlanPolicy(
            surge=self.settings.surge,
            brake_window_seconds=self.settings.brake_window_seconds,
            listen_seconds=self.settings.listen_seconds,
        )
        #: Changes written by this process, by what they ask for (`run`, `drain`, `stop`, `remove`).
        self.actions: Counter[str] = Counter()
        self._store = store
        self._watcher = watcher
        self._key = signing_key
        self._trusted = trusted or VerifyKeys([signing_key.public])
        #: The leadership in which placements of former keys were last signed anew.
        self._resigned_in: int | None = None
        #: Placements in the store that were named as not ours.
        self._foreign: frozenset[str] = frozenset()
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

    async def sign_anew(
        self, placements: Mapping[str, Placement], revision: int, *, above_epoch: int
    ) -> tuple[int, dict[str, SignedPlacement]]:
        """The same orders under an epoch of ours above `above_epoch`, for a store that is rebuilt. Raises Fenced."""
        await self._lease.hold(above=above_epoch)
        while (seconds := self._lease.wait_seconds) > 0:
            # Timers of a loop may fire a millisecond early.
            await self._clock.sleep(seconds + 0.005)
        if not self._lease.may_write() or (epoch := self._lease.epoch) is None:
            raise Fenced("this process does not lead, or not yet")
        signed: dict[str, SignedPlacement] = {}
        for number, (replica, placement) in enumerate(placements.items(), 1):
            order = placement.model_copy(update={"epoch": epoch, "revision": revision})
            signed[replica] = sign_placement(self._key, order)
            if number % BATCH == 0:
                await asyncio.sleep(0)
        return epoch, signed

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
        base = replace(self.policy, epoch=epoch or 0, doubt=self._watcher.doubt)
        self.policy = observe(base, view, now, self._index)
        plan = self.latest = reconcile(view, self.policy, now, self._index)
        if epoch is None:
            self._told = None
            return plan
        if plan.brake is None:
            await self._resign(epoch)
        changes = await self._apply(epoch, view, allowed_yet(plan.changes, self.policy, now))
        await self._tell(view, plan, changes, now)
        return plan

    async def _apply(
        self, epoch: int, view: ClusterSnapshot, changes: Sequence[PlacementChange]
    ) -> list[PlacementChange]:
        """Signs and writes what was planned of `view`, as long as this one leads with `epoch`; answers what was written."""
        written: list[PlacementChange] = []
        for start in range(0, len(changes), BATCH):
            if start and await self._lease.hold() != epoch:
                break
            if not self._lease.may_write():
                break
            batch = await self._without_foreign(view, changes[start : start + BATCH])
            signed = [(change.replica, self._signed(change)) for change in batch]
            if not self._lease.may_write():
                break  # signing took its time
            try:
                self._written = await self._store.apply_placements(epoch, signed, holder=self.holder)
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

    async def _without_foreign(self, view: ClusterSnapshot, batch: Sequence[PlacementChange]) -> list[PlacementChange]:
        """Without those that would sign what somebody else has put into the store; a removal signs nothing.

        The plan was made of what we heard, and that has to be what the store holds under our signature: a forged order may
        have been there for a moment only.
        """
        known = view.placements
        rest = [change.replica for change in batch if change.placement is not None and change.replica in known]
        looked = await resigning.look(self._store, self._key, self._trusted, rest)
        news = Looked((), {name: why for name, why in looked.foreign.items() if name not in self._foreign})
        if news.foreign:
            self._foreign |= news.foreign.keys()
            await self._append(resigning.warned(news, self._clock.wall()))
        unlike = {name for name in rest if looked.ours.get(name) != known[name]}
        return [change for change in batch if change.placement is None or change.replica not in unlike]

    async def _resign(self, epoch: int) -> None:
        """Signs anew what former keys have signed, once in this leadership, and says so."""
        if self._resigned_in == epoch or len(self._trusted.key_ids) == 1:
            return
        looked = await resigning.look(self._store, self._key, self._trusted)
        if looked.anew and not await self._sign_former(epoch, looked):
            return
        if not looked.anew and looked.foreign:
            await self._append(resigning.warned(looked, self._clock.wall()))
        self._foreign |= looked.foreign.keys()
        self._resigned_in = epoch

    async def _sign_former(self, epoch: int, looked: Looked) -> bool:
        """Whether all of them were written; what was written before a leadership ended stays."""
        request_id = f"resign-{uuid4().hex[:16]}"
        await self._store.append_audit(resigning.audit("intent", looked, self._key, request_id, self._clock.wall()))
        for start in range(0, len(looked.anew), BATCH):
            if await self._lease.hold() != epoch or not self._lease.may_write():
                return False
            try:
                await self._store.apply_placements(epoch, looked.anew[start : start + BATCH], holder=self.holder)
            except Fenced as refusal:
                self._lease.fenced(str(refusal))
                return False
        at = self._clock.wall()
        await self._store.append_audit(resigning.audit("result", looked, self._key, request_id, at, "done"))
        await self._append(resigning.told(looked, self._key, at))
        log.info(
            "placements_signed_anew", count=len(looked.anew), key=self._key.key_id, not_ours=sorted(looked.foreign)
        )
        return True

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
        await self._append(_bounded(events, at))

    async def _append(self, events: Sequence[Event]) -> None:
        for event in events:
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
