"""From the store to the owners: which placements are for this node, and may they be obeyed?

The store is transport, not authority. The watcher tells *that* a placement changed; what is obeyed are the signed bytes
themselves, verified here (key, signature, node, replica, order). A placement that vanished is no order: its replica is
forgotten only once it has been stopped. Who may not be obeyed is named in the report, with the reason.
"""

import asyncio

import structlog

from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.node_files import NodeFiles
from nebula_agent.decisions.obedience import Orders
from nebula_agent.loops.context import Problems
from nebula_agent.loops.replicas import Replicas
from nebula_core.errors import SignatureRefused, StoreUnavailable
from nebula_core.records.event import ChangeKind
from nebula_core.records.placement import SignedPlacement
from nebula_core.records.report import Problem
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.records.store_memory import Remembered
from nebula_core.security.envelope import VerifyKeys, verify_placement
from nebula_core.store.store import Store
from nebula_core.store.watcher import Changed, Watcher

log = structlog.get_logger(__name__)

_AGAIN_SECONDS = 1.0


class Obedience:
    """Fed by the watcher (`heard`), works in its own task (`iterate`)."""

    def __init__(
        self,
        *,
        node: str,
        store: Store,
        watcher: Watcher,
        keys: VerifyKeys,
        files: NodeFiles,
        orders: Orders,
        replicas: Replicas,
        problems: Problems,
        disk: DiskThreads,
    ) -> None:
        self.orders = orders
        #: Another agent has this node's name: nothing is obeyed meanwhile.
        self.suspended = False
        self._node = node
        self._store = store
        self._watcher = watcher
        self._keys = keys
        self._files = files
        self._replicas = replicas
        self._problems = problems
        self._disk = disk
        self._pending: dict[str, str | None] = {}
        self._remembered: Remembered | None = None
        self._resync = False
        self._woken = asyncio.Event()

    def heard(self, snapshot: ClusterSnapshot, changed: Changed) -> None:
        """The watcher's listener: notes what concerns this node."""
        if changed.resynced:
            self._resync = True
            self._woken.set()
        for change in changed.durable:
            if change.kind is not ChangeKind.PLACEMENT:
                continue
            placement = snapshot.placements.get(change.id)
            if change.id in self._replicas.owners or (placement is not None and placement.node == self._node):
                self._pending[change.id] = change.value
                self._woken.set()

    async def iterate(self) -> None:
        """Waits for news and obeys it."""
        await self._woken.wait()
        self._woken.clear()
        if self.suspended:
            self._resync = True
            return
        if self._resync:
            try:
                await self._read_all()
            except StoreUnavailable:
                self._woken.set()
                await asyncio.sleep(_AGAIN_SECONDS)
                return
        pending, self._pending = self._pending, {}
        floor = self.orders.max_epoch
        before = self.orders
        for replica, raw in pending.items():
            if raw is None:
                await self._replicas.forget(replica)
                self._problems.set(f"placement:{replica}", None)
            else:
                await self._obey(replica, raw, floor)
        if self.orders is not before:
            await self._disk.do("orders", self._files.keep_orders, self.orders)
        await self._remember(anew=self.orders is not before)

    async def _remember(self, *, anew: bool) -> None:
        """Which store it was, and how far it was: an agent that starts later can tell when that has lost its memory."""
        known, seen = self._remembered, self._watcher.remembered
        if seen is not None and (anew or known is None or known.incarnation != seen.incarnation) and seen != known:
            self._remembered = seen
            await self._disk.do("store", self._files.remember_store, seen)

    def resume(self) -> None:
        self.suspended = False
        self._resync = True
        self._woken.set()

    def look_again(self) -> None:
        """A replica may have become ready to be forgotten."""
        gone = [
            replica
            for replica in self._replicas.owners
            if replica not in self._watcher.snapshot.placements and replica not in self._pending
        ]
        if gone and self._watcher.reachable and self._watcher.doubt is None:
            self._pending.update(dict.fromkeys(gone))
            self._woken.set()

    async def _read_all(self) -> None:
        """The signed form of every placement of this node."""
        self._resync = False
        snapshot = self._watcher.snapshot
        try:
            for replica, placement in snapshot.placements.items():
                if placement.node == self._node:
                    raw = await self._store.get(ChangeKind.PLACEMENT, replica)
                    if raw is not None:
                        self._pending.setdefault(replica, raw)
        except BaseException:
            self._resync = True
            raise
        self.look_again()

    async def _obey(self, replica: str, raw: str, floor: int) -> None:
        try:
            signed = SignedPlacement.from_json(raw)
            placement = verify_placement(
                self._keys, signed, node=self._node, not_before=self.orders.not_before(replica, floor), replica=replica
            )
        except SignatureRefused as error:
            self._refuse(replica, error.message, error.hint)
            return
        except ValueError:
            self._refuse(replica, "it cannot be read", "Agent and control plane differ in version: update")
            return
        self._problems.set(f"placement:{replica}", None)
        owner = self._replicas.owners.get(replica)
        # Signed anew by another key it says the same, and is kept all the same: the old key will be gone one day.
        if owner is not None and owner.placement == placement and owner.signed == signed:
            return
        self.orders = self.orders.obeyed(placement)
        log.info(
            "placement_obeyed",
            replica=replica,
            wanted=placement.wanted.value,
            epoch=placement.epoch,
            revision=placement.revision,
            reason=placement.reason,
        )
        await self._replicas.obey(placement, signed)

    def _refuse(self, replica: str, reason: str, hint: str | None) -> None:
        problem = Problem(
            code="placement_refused",
            message=f"the placement of {replica} is not obeyed: {reason}",
            severity="crit",
            hint=hint or "If nobody restored an old store, look who writes to it",
        )
        if self._problems.set(f"placement:{replica}", problem):
            log.error("placement_refused", replica=replica, reason=reason)
