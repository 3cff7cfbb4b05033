"""Whether any proxy of the cluster is alive: what a pod's probes ask beside the health of its engine."""

from nebula_core.errors import StoreUnavailable
from nebula_core.store.store import Store

EVERY_SECONDS = 5.0


class ProxiesHeard:
    """`any` is None until it is known, and while the store is away."""

    def __init__(self, store: Store) -> None:
        self.any: bool | None = None
        self._store = store

    async def iterate(self) -> None:
        try:
            self.any = await self._store.any_proxy()
        except StoreUnavailable:
            self.any = None
