"""The planner's leadership: a lease for liveness, an epoch for safety.

Several control processes compete; one leads. The lease is a hint with an end: this side counts its own deadline from
*before* the call that granted it, a margin short of the store's, and stops writing there, whatever it hears later.
Safety does not rest on that. Every write names the epoch that came with the lease, and both the store's script and
each agent refuse an older one, so a leader that was frozen in between writes nothing.

After the death of another leader the new one first waits a little (`lock_delay`), so that a call the dead one had
sent can land before the first of ours. It also raises its epoch above every epoch an agent has ever obeyed: those
outlive a store that has lost its memory.
"""

import asyncio
from dataclasses import dataclass

import structlog

from nebula_core.errors import StoreUnavailable
from nebula_core.records.placement import HIGHEST_CREDIBLE_EPOCH
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.runtime.clock import Clock
from nebula_core.store.store import Store

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    ttl_seconds: float = 10.0
    renew_seconds: float = 2.0
    #: The own deadline ends so long before the store's.
    margin_seconds: float = 1.0
    #: Waited after another leader's death; None is twice `renew_seconds`.
    lock_delay_seconds: float | None = None

    @property
    def lock_delay(self) -> float:
        return 2 * self.renew_seconds if self.lock_delay_seconds is None else self.lock_delay_seconds


class Lease:
    """One candidate's hold on the lease; call `hold` often, ask `may_write` before each write."""

    def __init__(self, store: Store, clock: Clock, holder: str, settings: LeaseSettings | None = None) -> None:
        self.holder = holder
        self.settings = settings or LeaseSettings()
        #: Who leads as last seen, be it this one.
        self.leader: tuple[str, int] | None = None
        self._store = store
        self._clock = clock
        self._epoch: int | None = None
        self._deadline = 0.0
        self._renew_at = 0.0
        self._write_from = 0.0
        self._try_at = 0.0
        self._other_led = False
        self._turn = asyncio.Lock()

    @property
    def epoch(self) -> int | None:
        """The epoch this one leads with; None when it does not, or its time is over."""
        return self._epoch if self._clock.monotonic() < self._deadline else None

    def may_write(self) -> bool:
        return self.epoch is not None and self._clock.monotonic() >= self._write_from

    @property
    def wait_seconds(self) -> float:
        """How long until this one may write, if it keeps the lease; 0 when it may, or when it does not lead."""
        return 0.0 if self.epoch is None else max(0.0, self._write_from - self._clock.monotonic())

    async def hold(self, *, above: int = 0) -> int | None:
        """Renews the lease when that is due, or tries to get it. Raises StoreUnavailable while it holds none.

        One at a time: of two grants the later one is the higher, whoever hears of it first.
        """
        async with self._turn:
            return await self._hold(above)

    async def _hold(self, above: int) -> int | None:
        if self._epoch is not None and self.epoch is None:
            self._lose("its time was over before it was renewed")
        if self._epoch is not None and above > self._epoch:
            # Some agent has obeyed a later leader, of whom the store has lost the memory.
            self._lose(f"an agent has obeyed epoch {above}")
        if self._epoch is not None:
            await self._renew()
        if self._epoch is None:
            await self._acquire(above)
        return self.epoch

    async def _renew(self) -> None:
        began = self._clock.monotonic()
        if self._epoch is None or began < self._renew_at:
            return
        try:
            renewed = await self._store.renew_lease(self.holder, self._epoch, self.settings.ttl_seconds)
        except StoreUnavailable as error:
            # It may have been renewed or not: what counts is the deadline known before.
            log.warning("lease_not_renewed", error=str(error), seconds_left=round(self._deadline - began, 1))
            return
        if renewed:
            self._granted(began)
        else:
            self._lose("somebody else holds it")

    async def _acquire(self, above: int) -> None:
        began = self._clock.monotonic()
        if began < self._try_at:
            return
        epoch = await self._store.acquire_lease(self.holder, self.settings.ttl_seconds, above=above)
        if epoch is None:
            other = await self._store.leader()
            self.leader = None if other is None else (other.holder, other.epoch)
            self._other_led = True
            self._try_at = began + self.settings.renew_seconds / 2
            return
        self._epoch = epoch
        self.leader = (self.holder, epoch)
        self._granted(began)
        delay = self.settings.lock_delay if self._other_led else 0.0
        self._write_from = began + delay
        self._other_led = False
        log.info("leader_elected", holder=self.holder, epoch=epoch, lock_delay_seconds=delay)

    def _granted(self, began: float) -> None:
        self._deadline = began + self.settings.ttl_seconds - self.settings.margin_seconds
        self._renew_at = began + self.settings.renew_seconds

    def fenced(self, reason: str) -> None:
        """A write was refused: a newer leader exists."""
        self._other_led = True
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        log.warning("leader_stepped_down", holder=self.holder, epoch=self._epoch, reason=reason)
        self._epoch = None
        self.leader = None

    async def release(self) -> None:
        """Gives the lease back, so that the next leader need not wait for its end."""
        if self._epoch is None:
            return
        self._epoch = None
        self.leader = None
        try:
            await self._store.release_lease(self.holder)
        except StoreUnavailable as error:
            log.warning("lease_not_released", error=str(error), ends_in_seconds=self.settings.ttl_seconds)


def highest_obeyed_epoch(view: ClusterSnapshot) -> int:
    """The highest epoch any agent says it has obeyed."""
    highest = 0
    for received in view.reports.values():
        obeyed = received.report.max_epoch
        if highest < obeyed < HIGHEST_CREDIBLE_EPOCH:
            highest = obeyed
    return highest
