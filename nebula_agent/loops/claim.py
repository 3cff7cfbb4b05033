"""The name of this node belongs to one agent: claimed at the start, renewed while it runs, given back at the end.

The folder's lock keeps two agents of one machine apart; this claim keeps apart two machines that were given one name (an
image that was cloned). A claim of this very boot whose process is dead is taken over at once, so that a killed agent need
not wait for its own shadow.
"""

import os
from collections.abc import Callable

import psutil
import structlog

from nebula_agent.adapters.node_files import NodeTaken
from nebula_core.errors import StoreUnavailable
from nebula_core.records.report import Problem
from nebula_core.runtime.clock import Clock
from nebula_core.store.claims import CLAIM_SECONDS, Claim
from nebula_core.store.store import Store

log = structlog.get_logger(__name__)

RENEW_SECONDS = 3.0
_TRY_SECONDS = 0.5


class NodeClaim:
    def __init__(
        self,
        *,
        node: str,
        boot_id: str,
        store: Store,
        clock: Clock,
        on_lost: Callable[[Problem], None],
        on_regained: Callable[[], None],
    ) -> None:
        self._node = node
        self._boot_id = boot_id
        self._store = store
        self._clock = clock
        self._on_lost = on_lost
        self._on_regained = on_regained
        self._lost = False

    async def acquire(self) -> None:
        """Claims the name, waiting until a dead holder's claim has run out. Raises NodeTaken.

        While the store is away the agent starts all the same: it has engines to look after.
        """
        deadline = self._clock.monotonic() + CLAIM_SECONDS + 2 * _TRY_SECONDS
        told = False
        while True:
            try:
                if await self._claim():
                    return
                holder = await self._store.node_holder(self._node)
            except StoreUnavailable as error:
                log.warning("node_not_claimed", error=str(error))
                return
            if holder is not None and self._lives_here(holder):
                raise self._taken(holder)
            if self._clock.monotonic() >= deadline:
                raise self._taken(holder)
            if not told:
                told = True
                log.info("node_claim_waits", node=self._node, holder=_shown(holder))
            await self._clock.sleep(_TRY_SECONDS)

    async def renew(self) -> None:
        """One renewal; tells when the name was lost to another agent and when it is back."""
        try:
            mine = await self._claim()
            holder = None if mine else await self._store.node_holder(self._node)
        except StoreUnavailable:
            return
        if mine and self._lost:
            self._lost = False
            log.info("node_claimed_again", node=self._node)
            self._on_regained()
        elif not mine and not self._lost:
            self._lost = True
            error = self._taken(holder)
            log.error("node_claim_lost", node=self._node, holder=_shown(holder))
            self._on_lost(Problem(code=error.code, message=error.message, severity="crit", hint=error.hint))

    async def release(self) -> None:
        try:
            await self._store.release_node(self._node, self._boot_id, os.getpid())
        except StoreUnavailable:
            return  # it runs out by itself

    async def _claim(self) -> bool:
        if await self._store.claim_node(self._node, self._boot_id, os.getpid()):
            return True
        holder = await self._store.node_holder(self._node)
        if holder is None or holder.boot_id != self._boot_id or self._lives_here(holder):
            return False
        return await self._store.claim_node(self._node, self._boot_id, os.getpid(), replacing=holder)

    def _lives_here(self, holder: Claim) -> bool:
        """Whether the holder is a living agent of this very machine."""
        if holder.boot_id != self._boot_id:
            return False
        try:
            process = psutil.Process(holder.pid)
            words = process.cmdline()
            return process.status() != psutil.STATUS_ZOMBIE and any("nebula" in word for word in words)
        except psutil.AccessDenied:
            return True
        except psutil.Error:
            return False

    def _taken(self, holder: Claim | None) -> NodeTaken:
        where = "this machine" if holder is not None and holder.boot_id == self._boot_id else "another machine"
        return NodeTaken(
            f"node {self._node!r} has an agent already: {_shown(holder)} on {where}",
            hint="Stop that agent, or give this node another name (setting `node`)",
        )


def _shown(holder: Claim | None) -> str:
    return "an agent" if holder is None else f"pid {holder.pid}"
