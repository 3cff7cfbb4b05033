"""What every operation works with: the store, our view of the cluster, the planner, and the tools made of them."""

import os
from collections.abc import Callable
from pathlib import Path

from nebula_core.records.access import Principal
from nebula_core.runtime.clock import Clock
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher
from nebula_proxy.control.actions import Actions
from nebula_proxy.control.commands import Commander
from nebula_proxy.control.following import Follower
from nebula_proxy.control.live import LiveRequests
from nebula_proxy.control.planner import PlannerLoop
from nebula_proxy.control.signing import SigningKeys
from nebula_proxy.control.views import Age, Look, Process, Views, exactly, in_steps
from nebula_proxy.control.watching import WatchHub


class Desk:
    def __init__(
        self,
        store: Store,
        watcher: Watcher,
        planner: PlannerLoop,
        clock: Clock,
        keys: SigningKeys,
        *,
        public_url: str | None = None,
        data_dir: Path | None = None,
    ) -> None:
        self.store = store
        self.watcher = watcher
        self.planner = planner
        self.clock = clock
        self.keys = keys
        #: The folder shared with the workers of this machine, if there is one.
        self.data_dir = data_dir
        self.hub = WatchHub(store, clock, self._views_in_steps)
        self.live = LiveRequests(store, watcher, clock)
        self.actions = Actions(store, watcher, planner, clock)
        self.commander = Commander(store, keys.current, clock)
        self.follower = Follower(store, watcher, self.hub, clock)
        self._openai_base_url = openai_base_url(public_url)

    def look(self, age: Age = exactly) -> Look:
        """The cluster now."""
        now = self.clock.monotonic()
        process = Process(
            store_reachable=self.watcher.reachable,
            store_doubt=self.watcher.doubt,
            snapshot_age_seconds=self.watcher.snapshot_age(now) or 0.0,
            leader=self.planner.leader,
            pid=os.getpid(),
            openai_base_url=self._openai_base_url,
            clock_skews=self.hub.clock_skews,
        )
        return Look(self.watcher.snapshot, now, plan=self.planner.latest, process=process, age=age)

    def still_allowed(self, principal: Principal) -> Callable[[], bool]:
        """Asks whether the caller's key is as good as it was: what is open ends with it."""

        def allowed() -> bool:
            key = self.watcher.snapshot.keys.get(principal.key_id)
            if key is None or key.revoked or not key.role.includes(principal.role):
                return False
            return key.expires_at is None or key.expires_at > self.clock.wall()

        return allowed

    @property
    def knows_nothing(self) -> bool:
        """The store has never answered: not even the API keys are known."""
        return self.watcher.snapshot_age(self.clock.monotonic()) is None

    def _views_in_steps(self) -> Views:
        return self.look(in_steps).views()


def openai_base_url(public_url: str | None) -> str | None:
    """The address for OpenAI clients: with `/v1`, however the setting was written."""
    if not public_url:
        return None
    bare = public_url.rstrip("/")
    return bare if bare.endswith("/v1") else f"{bare}/v1"
