"""The way of a mutating call: preview, audit, write, tell.

    call ─► idempotent? ─► dry run: the plan, and nothing else
                        └► audit intent ─► read, edit, compare-and-set ─► audit result ─► event ─► until we see it too

The intent is written before anything is done and the call is refused when it cannot be, so the audit never lacks an
act; an intent without a result is an act of which this process did not live to see the end. The edit is a pure
function of the record; when somebody else changes the record in between it is read and edited again, unless the
caller said which generation it means (`If-Match`).
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog

from nebula_core.errors import Conflict, NebulaError, StoreUnavailable
from nebula_core.planning.preview import preview
from nebula_core.records.access import Principal
from nebula_core.records.base import Record, frozen_map
from nebula_core.records.deployment import Deployment
from nebula_core.records.event import Audit, ChangeKind, Event, Severity
from nebula_core.records.node import NodeIntent
from nebula_core.records.plan import Plan
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.records.views import PlanView
from nebula_core.runtime.clock import Clock
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher
from nebula_proxy.control.answers import as_refusal
from nebula_proxy.control.changes import expect_generation
from nebula_proxy.control.consequences import consequences
from nebula_proxy.control.planner import PlannerLoop
from nebula_proxy.control.refusals import conflict, store_away, store_in_doubt
from nebula_proxy.control.repeats import Repeats
from nebula_proxy.control.views import Look

log = structlog.get_logger(__name__)

#: How often a record that others keep changing is read again.
ATTEMPTS = 5
#: Longest wait until our own view has what we wrote.
SEEN_SECONDS = 2.0

Answer = TypeVar("Answer", bound=Record)


@dataclass(frozen=True, slots=True)
class Call:
    """One mutating call, after its key and its role were checked."""

    principal: Principal
    request_id: str
    #: Method and path, as the audit has it.
    what: str
    fingerprint: str
    dry_run: bool = False
    idempotency_key: str | None = None
    #: The generation the caller has read; 0 says there is none.
    expected: int | None = None
    body: bytes = b""
    #: Unix seconds.
    at: float = 0.0

    @property
    def by(self) -> str:
        return self.principal.name


@dataclass(frozen=True, slots=True)
class Deed:
    """What is done to which object; `kind` is the event's word for it."""

    kind: str
    object: str
    detail: Mapping[str, Any] = field(default_factory=frozen_map)
    severity: Severity = "info"


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it. An empty `message` says that nothing had to be changed."""

    answer: Record
    message: str = ""
    revision: int = 0


DeploymentEdit = Callable[[Deployment | None], Deployment | None]
IntentEdit = Callable[[NodeIntent | None], NodeIntent]


class Actions:
    def __init__(self, store: Store, watcher: Watcher, planner: PlannerLoop, clock: Clock) -> None:
        self._store = store
        self._watcher = watcher
        self._planner = planner
        self._clock = clock
        self._repeats = Repeats(clock)

    # -- what resources use ----------------------------------------------------------------------------------------

    async def deployment(
        self,
        call: Call,
        name: str,
        deed: Deed,
        edit: DeploymentEdit,
        words: Callable[[Deployment | None, Deployment | None], str],
    ) -> PlanView:
        """Changes a deployment by `edit` (None: removes it); `words` says the change in one line."""

        def shown(former: Deployment | None, following: Deployment | None) -> PlanView:
            headline = words(former, following) if following is not former else f"nothing to do for {name}"
            return self._consequences(call, {name}, headline, deployments={name: following})

        if call.dry_run:
            former = self._watcher.snapshot.deployments.get(name)
            expect_generation(f"deployment {name}", call.expected, _generation(former))
            following = edit(former)
            return self._with_deployment(shown(former, following), following)

        async def work() -> Done:
            former, following, revision = await self._update(
                call, ChangeKind.DEPLOYMENT, name, Deployment, edit, f"deployment {name}"
            )
            answer = shown(former, following)
            message = words(former, following) if following is not former else ""
            await self.seen(revision)
            return Done(self._with_deployment(answer, following), message, revision)

        return await self.perform(call, deed, work, PlanView)

    async def intent(self, call: Call, node: str, deed: Deed, edit: IntentEdit, headline: str) -> PlanView:
        """Changes what operators want of a node."""
        concerned = {one.deployment for one in self._watcher.snapshot.placements.values() if one.node == node}

        def shown(former: NodeIntent | None, following: NodeIntent) -> PlanView:
            words = headline if following is not former else f"nothing to do for {node}"
            return self._consequences(call, concerned, words, intents={node: following})

        if call.dry_run:
            former = self._watcher.snapshot.intents.get(node)
            expect_generation(f"the intent for {node}", call.expected, _generation(former))
            return shown(former, edit(former))

        async def work() -> Done:
            former, following, revision = await self._update(
                call, ChangeKind.INTENT, node, NodeIntent, edit, f"the intent for {node}"
            )
            if following is None:
                raise TypeError("an intent is changed, never removed")
            answer = shown(former, following)
            await self.seen(revision)
            return Done(answer, headline if following is not former else "", revision)

        return await self.perform(call, deed, work, PlanView)

    async def remove_node(self, call: Call, node: str, deed: Deed, headline: str) -> PlanView:
        """Forgets a node for good."""
        before = self._watcher.snapshot
        concerned = {one.deployment for one in before.placements.values() if one.node == node}
        after = replace(
            before,
            nodes=frozen_map({name: one for name, one in before.nodes.items() if name != node}),
            reports=frozen_map({name: one for name, one in before.reports.items() if name != node}),
        )
        answer = self._consequences(call, concerned, headline, after=after)
        if call.dry_run:
            return answer

        async def work() -> Done:
            await self._store.remove(ChangeKind.INTENT, node)
            revision = await self._store.remove(ChangeKind.NODE, node)
            await self.seen(revision)
            return Done(answer, headline, revision)

        return await self.perform(call, deed, work, PlanView)

    async def perform(
        self,
        call: Call,
        deed: Deed,
        work: Callable[[], Awaitable[Done]],
        _kind: type[Answer],
        *,
        in_doubt: bool = False,
    ) -> Answer:
        """Does `work` once, between its intent and its result; the event follows. `_kind` is what it answers.

        `in_doubt`: also while the store is in doubt, because it is the doubt that is settled.
        """

        async def audited() -> Answer:
            if not self._watcher.reachable:
                raise store_away(self._watcher.snapshot_age(self._clock.monotonic()))
            if self._watcher.doubt is not None and not in_doubt:
                raise store_in_doubt(self._watcher.doubt)
            await self._store.append_audit(self._audit(call, deed, "intent", None))
            try:
                done = await work()
            except Exception as error:
                await self._result(call, deed, f"refused: {as_refusal(error).code}")
                raise
            await self._result(call, deed, "done" if done.message else "unchanged")
            if done.message:
                await self._tell(call, deed, done.message)
                self._planner.wake()
            answer: Answer = done.answer  # type: ignore[assignment]
            return answer

        return await self._repeats.once(call.principal.key_id, call.idempotency_key, call.fingerprint, audited)

    # -- preview ---------------------------------------------------------------------------------------------------

    def _consequences(
        self,
        call: Call,
        concerned: Iterable[str],
        headline: str,
        *,
        after: ClusterSnapshot | None = None,
        **overlay: Mapping[str, Any],
    ) -> PlanView:
        view, policy, now = self._watcher.snapshot, self._planner.policy, self._clock.monotonic()
        without = preview(view, policy, now)
        planned = preview(view if after is None else after, policy, now, **overlay)
        return consequences(view, without, planned, concerned, headline, dry_run=call.dry_run)

    def _with_deployment(self, answer: PlanView, following: Deployment | None) -> PlanView:
        """With the deployment as it is from now on, or would be."""
        if following is None:
            return answer
        view = self._watcher.snapshot
        if view.deployments.get(following.name) != following:
            view = replace(view, deployments=frozen_map({**view.deployments, following.name: following}))
        look = Look(view, self._clock.monotonic(), plan=self._planner.latest)
        return answer.model_copy(update={"deployment": look.deployments[following.name]})

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _update(
        self,
        call: Call,
        kind: ChangeKind,
        record_id: str,
        record: type[Any],
        edit: Callable[[Any], Any],
        what: str,
    ) -> tuple[Any, Any, int]:
        """Former, following (None: removed) and the revision at which that stands."""
        for _ in range(ATTEMPTS):
            raw = await self._store.get(kind, record_id)
            former = None if raw is None else record.from_json(raw)
            found = _generation(former)
            expect_generation(what, call.expected, found)
            following = edit(former)
            try:
                if following is former:
                    return former, former, 0
                if following is None:
                    revision = await self._store.remove(kind, record_id, expected_generation=found)
                else:
                    revision = await self._store.put(kind, record_id, following, expected_generation=found)
            except Conflict:
                continue
            return former, following, revision
        raise conflict(f"{what} is being changed by others again and again", hint="look who does it, then repeat")

    async def seen(self, revision: int) -> None:
        """Waits until our own view has it, so that the caller's next question does."""
        try:
            await self._watcher.wait_for(lambda view: view.revision >= revision, SEEN_SECONDS)
        except TimeoutError:
            log.warning("write_not_seen_yet", revision=revision, seen=self._watcher.revision)

    # -- telling ---------------------------------------------------------------------------------------------------

    def _audit(self, call: Call, deed: Deed, stage: Any, result: str | None) -> Audit:
        return Audit(
            stage=stage,
            call=call.what,
            actor=call.by,
            role=call.principal.role.value,
            object=deed.object,
            detail={"key_id": call.principal.key_id, **deed.detail},
            result=result,
            request_id=call.request_id,
            at=self._clock.wall(),
        )

    async def _result(self, call: Call, deed: Deed, result: str) -> None:
        log.info(
            "call",
            call=call.what,
            actor=call.by,
            key_id=call.principal.key_id,
            object=deed.object,
            result=result,
            request_id=call.request_id,
        )
        try:
            await self._store.append_audit(self._audit(call, deed, "result", result))
        except NebulaError as error:
            # What was done stays done; that its result is not in the audit stands in the log.
            log.error("audit_result_not_written", request_id=call.request_id, error=str(error))

    async def _tell(self, call: Call, deed: Deed, message: str) -> None:
        event = Event(
            kind=deed.kind,
            object=deed.object,
            message=message,
            severity=deed.severity,
            actor=call.by,
            result="ok",
            at=self._clock.wall(),
        )
        try:
            await self._store.append_event(event)
        except StoreUnavailable as error:
            log.warning("event_not_written", event_kind=event.kind, object=event.object, error=str(error))


def _generation(record: Deployment | NodeIntent | None) -> int:
    return 0 if record is None else record.generation


def plan_view(call: Call, summary: str) -> PlanView:
    """The answer to a call that concerns no placement."""
    return PlanView(dry_run=call.dry_run, summary=summary, plan=Plan())
