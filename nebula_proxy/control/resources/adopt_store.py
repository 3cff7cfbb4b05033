"""`/adopt/store`: a store that came back empty or older is given its memory anew, from memory, disk and the nodes.

What is written, and what the planner would do next, is shown by `dry_run`; then all of it is written in one step, signed
under an epoch above all that nodes have obeyed. Whoever sends the digest of what was shown gets that written or nothing: a node
that fell silent while somebody read the plan changes what is known. Engines are not touched by it: they get the order they
have, signed anew.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from pydantic import Field
from starlette.responses import Response

from nebula_core.errors import Conflict, Fenced, SignatureRefused
from nebula_core.planning.rebuild import KEPT, Rebuilt, Witnesses, max_credible, rebuilt
from nebula_core.planning.reconcile import reconcile
from nebula_core.records.access import Role
from nebula_core.records.base import Record, frozen_map
from nebula_core.records.event import ChangeKind
from nebula_core.records.placement import HIGHEST_CREDIBLE_REVISION, Placement, SignedPlacement
from nebula_core.records.plan import Plan
from nebula_core.records.store_memory import StoreDoubt
from nebula_core.records.views import AdoptedDeployment, AdoptedKey, AdoptedReplica, AdoptNote, StoreAdoptView
from nebula_core.security.envelope import verify_placement
from nebula_core.store import kept
from nebula_core.store.reports import Breath
from nebula_proxy.control.actions import ATTEMPTS, Deed, Done
from nebula_proxy.control.answers import record_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.operations import Calling, Operation, known_fields
from nebula_proxy.control.refusals import conflict, store_away

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Case:
    """What would be written, and what would follow from it."""

    doubt: StoreDoubt
    rebuilt: Rebuilt
    plan: Plan
    kept_age_seconds: float | None
    notes: tuple[tuple[str, str], ...]
    #: Revision of the store when it was looked at.
    revision: int
    incarnation: str
    above: int


class AdoptStoreOrder(Record):
    #: `digest` of what was looked at; None: whatever is found.
    shown: str | None = Field(default=None, max_length=64)


class AdoptStore:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        what = "Give an emptied or stale store its memory anew, from what runs"
        return (Operation("POST", "/adopt/store", self.adopt, Role.ADMIN, what, StoreAdoptView),)

    async def adopt(self, call: Calling, order: AdoptStoreOrder | None = None) -> Response:
        known_fields(AdoptStoreOrder, call.body)
        expected = None if order is None else order.shown
        if self._desk.watcher.doubt is None:
            words = "nothing to do: the store is not in doubt"
            return record_answer(StoreAdoptView(dry_run=call.dry_run, summary=words, plan=Plan()))
        if not self._desk.watcher.reachable:
            raise store_away(self._desk.watcher.snapshot_age(self._desk.clock.monotonic()))
        if call.dry_run:
            return record_answer(_shown(await self._look(), dry_run=True))
        deed = Deed("adopted", "cluster/store", {"doubt": self._desk.watcher.doubt.value}, severity="warn")

        async def work() -> Done:
            if not self._desk.planner.is_leader:
                holder = self._desk.planner.leader[0] if self._desk.planner.leader else "nobody"
                raise conflict(
                    f"another process leads: {holder}",
                    hint="send this to the Control API there; one that has died leads for ten seconds more",
                )
            for _ in range(ATTEMPTS):
                case = await self._look()
                answer = _shown(case, dry_run=False)
                if expected not in {None, answer.digest}:
                    raise conflict(
                        "what would be written is not what was shown", hint="look again: nebula adopt --store --dry-run"
                    )
                try:
                    revision = await self._write(case)
                except Conflict:
                    continue  # an agent has written its inventory in between
                except Fenced as refusal:
                    raise conflict(str(refusal), hint="another process leads now: send this there") from refusal
                await self._desk.actions.seen(revision)
                return Done(answer, answer.summary, revision)
            raise conflict("the store is being written by others again and again", hint="look who does it, then repeat")

        return record_answer(await self._desk.actions.perform(call, deed, work, StoreAdoptView, in_doubt=True))

    # -- looking ---------------------------------------------------------------------------------------------------

    async def _look(self) -> _Case:
        desk = self._desk
        watcher, store = desk.watcher, desk.store
        revision = await store.revision()
        await desk.actions.seen(revision)
        meta = await store.meta()
        held, notes = await self._verified({node: one.placements for node, one in (await store.read_held()).items()})
        known = await self._kept()
        view, now, doubt = watcher.snapshot, desk.clock.monotonic(), watcher.doubt
        if doubt is None:
            raise conflict("the store is not in doubt any more", hint="nothing has to be adopted")
        found = rebuilt(
            Witnesses(doubt, view, watcher.remembers_more, held, None if known is None else known.snapshot), now
        )
        after = replace(
            view,
            deployments=found.deployments,
            placements=found.placements,
            intents=found.intents,
            nodes=found.nodes,
            keys=found.keys,
        )
        plan = reconcile(after, replace(desk.planner.policy, doubt=None), now)
        said = meta.get("seen", "")
        seen = [int(said) if said.isdecimal() else 0, 0 if watcher.remembered is None else watcher.remembered.revision]
        return _Case(
            doubt=doubt,
            rebuilt=found,
            plan=plan,
            kept_age_seconds=None if known is None or found.base != KEPT else max(0.0, desk.clock.wall() - known.at),
            notes=(*found.notes, *notes),
            revision=revision,
            incarnation=view.incarnation,
            above=max_credible([*seen, found.highest_revision], HIGHEST_CREDIBLE_REVISION),
        )

    async def _verified(
        self, shown: Mapping[str, Sequence[SignedPlacement]]
    ) -> tuple[Mapping[str, Sequence[Placement]], list[tuple[str, str]]]:
        """What nodes show, as far as this control plane has signed it for them."""
        held: dict[str, list[Placement]] = {}
        notes: list[tuple[str, str]] = []
        breath = Breath()
        for node, orders in shown.items():
            for signed in orders:
                await breath()
                try:
                    placement = verify_placement(self._desk.keys.trusted, signed, node=node)
                except SignatureRefused as error:
                    notes.append((f"node/{node}", f"shows an order that is not taken: {error.message}"))
                    log.warning("held_order_refused", node=node, reason=error.message)
                else:
                    held.setdefault(node, []).append(placement)
        return frozen_map(held), notes

    async def _kept(self) -> kept.Kept | None:
        folder: Path | None = self._desk.data_dir
        if folder is None:
            return None
        try:
            return await asyncio.to_thread(kept.read, folder / kept.FILE_NAME)
        except ValueError as error:
            log.warning("snapshot_not_read", error=str(error))
            return None

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _write(self, case: _Case) -> int:
        planner, found = self._desk.planner, case.rebuilt
        epoch, signed = await planner.sign_anew(found.placements, case.above, above_epoch=found.highest_epoch)
        records: dict[ChangeKind, Mapping[str, Record]] = {
            ChangeKind.NODE: found.nodes,
            ChangeKind.DEPLOYMENT: found.deployments,
            ChangeKind.INTENT: found.intents,
            ChangeKind.PLACEMENT: signed,
            ChangeKind.KEY: found.keys,
        }
        return await self._desk.store.rebuild(
            records, incarnation=case.incarnation, at_revision=case.revision, epoch=epoch, above=case.above
        )


def _shown(case: _Case, *, dry_run: bool) -> StoreAdoptView:
    found = case.rebuilt
    next_words = case.plan.summary if case.plan.changes or case.plan.brake else "the planner has nothing to do then"
    verb = "would write" if dry_run else "wrote"
    counts = (
        f"{len(found.deployments)} deployments, {len(found.placements)} placements, {len(found.intents)} intents "
        f"and {len(found.keys)} keys"
    )
    age = "" if case.kept_age_seconds is None else f", {case.kept_age_seconds:.0f} s old"
    silent = f"; silent and not asked: {', '.join(found.silent[:5])}" if found.silent else ""
    view = StoreAdoptView(
        dry_run=dry_run,
        summary=f"{verb} {counts} from {found.base}{age} and the nodes; {next_words}{silent}",
        plan=case.plan,
        doubt=case.doubt,
        base=found.base,
        base_age_seconds=case.kept_age_seconds,
        deployments=tuple(
            AdoptedDeployment(name=name, generation=one.generation, replicas=one.spec.replicas)
            for name, one in sorted(found.deployments.items())
        ),
        replicas=tuple(
            AdoptedReplica(id=replica, node=one.node, deployment=one.deployment, wanted=one.wanted.value)
            for replica, one in found.placements.items()
        ),
        keys=tuple(
            AdoptedKey(id=key.id, name=key.name, role=key.role.value, revoked=key.revoked)
            for _, key in sorted(found.keys.items())
        ),
        intents=tuple(sorted(found.intents)),
        notes=tuple(AdoptNote(object=about, message=words) for about, words in case.notes),
        silent_nodes=found.silent,
    )
    return view.model_copy(update={"digest": _digest(view)})


def _digest(view: StoreAdoptView) -> str:
    """Of what is written and by whose word; not of its age, nor of what follows from it."""
    text = view.model_dump_json(exclude={"dry_run", "summary", "plan", "base_age_seconds", "digest"})
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
