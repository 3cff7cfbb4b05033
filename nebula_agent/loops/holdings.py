"""The orders this node obeys, shown while the store is in doubt: with them an operator can have the store written anew.

Shown is what lies on this node's disk, signed as it came. Nobody obeys it from there: it is evidence for the control
plane, which verifies its own signature and signs anew.
"""

import structlog

from nebula_agent.loops.replicas import Replicas
from nebula_core.errors import StoreUnavailable
from nebula_core.records.store_memory import HeldOrders
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher

log = structlog.get_logger(__name__)

EVERY_SECONDS = 2.0


class Holdings:
    def __init__(self, node: str, store: Store, watcher: Watcher, replicas: Replicas) -> None:
        #: Another agent has this node's name: this one shows nothing.
        self.suspended = False
        self._node = node
        self._store = store
        self._watcher = watcher
        self._replicas = replicas
        self._told = False

    async def iterate(self) -> None:
        if self._watcher.doubt is None or not self._watcher.reachable or self.suspended:
            self._told = False
            return
        orders = tuple(owner.signed for _, owner in sorted(self._replicas.owners.items()))
        try:
            await self._store.show_held(HeldOrders(node=self._node, placements=orders))
        except StoreUnavailable:
            return  # shown again in a moment
        if not self._told:
            self._told = True
            log.warning("orders_shown", doubt=self._watcher.doubt.value, replicas=len(orders))
