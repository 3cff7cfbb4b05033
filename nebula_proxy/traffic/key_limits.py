"""The limits of keys in this process: slices leased from the store in the background, spent by requests without it.

`decisions/limits` says what may be spent; here is who waits for the store's word, and the one task that asks it. A
request of a key whose slice is used up is parked until the next answer, a few milliseconds later; all keys that have
something to say go in one call, and calls are spaced, so the store is asked a few dozen times a second at most however
many requests come. When the store does not answer, nobody is parked: each worker goes on with its share.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from nebula_core.errors import NebulaError
from nebula_core.records.access import KeyLimits
from nebula_core.store.store import Store
from nebula_proxy.decisions import refusal as refusals
from nebula_proxy.decisions.limits import LEASE_SECONDS, Answer, Limited, Remaining, Share, Taken
from nebula_proxy.decisions.refusal import Refusal

#: Between two calls to the store; while it is away; and how often is looked when nobody asks.
SPACING_SECONDS = 0.01
AWAY_SECONDS = 1.0
LOOK_SECONDS = 0.25
#: While no key with limits is in use.
IDLE_SECONDS = 10.0
#: Requests that may be parked at once, and how long one may be asked for again.
MOST_PARKED = 4096
LONGEST_PARKED_SECONDS = 2.0
#: Keys in one call: a script must not hold up the store for long.
BATCH = 100


class Claimant(Protocol):
    """A request, as the limits see it."""

    claim: "KeyClaim | None"

    def claim_settled(self, refusal: Refusal | None) -> None:
        """The store has answered: it may go on, or is turned away. Never raises."""


class KeyClaim:
    """What one request asks of its key's limits; `taken` once it has got it."""

    __slots__ = ("at", "claimant", "share", "stream", "taken", "tokens")

    def __init__(self, claimant: Claimant, share: Share, tokens: int, at: float, *, stream: bool) -> None:
        self.claimant = claimant
        self.share = share
        self.tokens = tokens
        self.stream = stream
        self.at = at
        self.taken: Taken | None = None


class KeyLimiter:
    """`workers` says how many data-plane workers share the limits, this one included."""

    def __init__(self, worker: str, workers: Callable[[], int], roll: Callable[[], float]) -> None:
        self._worker = worker
        self._workers = workers
        self._roll = roll
        self._shares: dict[str, Share] = {}
        self._parked: dict[KeyClaim, None] = {}
        self._wanted = asyncio.Event()
        #: A task asks the store; without one (or while it is away) every worker is alone.
        self._attached = False
        self._asked_at = float("-inf")

    # For requests

    def claim(
        self, request: Claimant, key_id: str, limits: KeyLimits, estimate: int, now: float, *, stream: bool
    ) -> Refusal | None:
        """Takes it from the key's limits. None: `request.claim.taken` says whether it has it or must wait for word."""
        share = self._share(key_id, limits)
        claim = request.claim = KeyClaim(request, share, share.reserve(estimate), now, stream=stream)
        found = share.take(claim.tokens, now, self._workers(), stream=stream)
        if isinstance(found, Taken):
            claim.taken = found
            return None
        if isinstance(found, Limited):
            return self._refused(found)
        if len(self._parked) >= MOST_PARKED:
            return refusals.rate_limited("too many requests ask for its limits at once", 1)
        share.need(claim.tokens, stream=stream)
        self._parked[claim] = None
        self._wanted.set()
        return None

    def end(self, claim: KeyClaim, used: int | None) -> None:
        """The request is over; see `Share.settle` for `used`."""
        self._unpark(claim)
        if claim.taken is not None:
            claim.share.settle(claim.taken, used)
            if claim.taken.stream:
                self._wanted.set()

    def headers(self, claim: KeyClaim) -> bytes:
        """`x-ratelimit-…` as OpenAI's clients know them; empty for a key without limits per minute."""
        requests, tokens = claim.share.remaining(time.monotonic())
        return _lines(b"requests", requests) + _lines(b"tokens", tokens)

    def _share(self, key_id: str, limits: KeyLimits) -> Share:
        share = self._shares.get(key_id)
        if share is None:
            share = self._shares[key_id] = Share(key_id, limits)
        elif share.limits is not limits:
            share.follow(limits)
        if not self._attached:
            share.not_told()
        return share

    def _refused(self, limited: Limited) -> Refusal:
        what = f"it may have {limited.limit} {limited.resource.value}"
        # Only later, never sooner: before that time there is nothing to be had.
        return refusals.rate_limited(what, refusals.jittered(limited.seconds, 0.5 + self._roll() / 2))

    def sweep(self, now: float) -> None:
        """Once a second: nobody waits for word of the store for long, whatever has become of the task that asks."""
        late = [claim.share for claim in self._parked if now - claim.at >= LONGEST_PARKED_SECONDS]
        if late:
            for share in late:
                share.not_told()
            self._resume(now)

    # With the store

    async def step(self, store: Store) -> None:
        """One look: waits until somebody asks or a moment has passed, then tells the store what is due."""
        self._attached = True
        try:
            async with asyncio.timeout(LOOK_SECONDS if self._shares else IDLE_SECONDS):
                await self._wanted.wait()
        except TimeoutError:
            pass  # a moment has passed
        self._wanted.clear()
        now = time.monotonic()
        away = any(share.away for share in self._shares.values())
        pause = self._asked_at + (AWAY_SECONDS if away else SPACING_SECONDS) - now
        if pause > 0 and not (away and self._parked):
            await asyncio.sleep(min(pause, LOOK_SECONDS))
            now = time.monotonic()
            if pause > LOOK_SECONDS:
                return
        for key in [key for key, share in self._shares.items() if share.is_idle(now)]:
            del self._shares[key]
        await self._tell(store, [share for share in self._shares.values() if share.is_due(now)], now)
        self._resume(time.monotonic())

    async def give_back(self, store: Store) -> None:
        """The process ends: what it holds is free for others at once."""
        self._attached = False
        shares = [share for share in self._shares.values() if not share.away]
        for share in shares:
            share.used_at = float("-inf")
        await self._tell(store, shares, time.monotonic())

    async def _tell(self, store: Store, shares: list[Share], now: float) -> None:
        workers = self._workers()
        for start in range(0, len(shares), BATCH):
            batch = shares[start : start + BATCH]
            self._asked_at = now
            claims = [share.claim(now, workers) for share in batch]
            try:
                answers = await store.lease_limits(self._worker, claims, LEASE_SECONDS)
            except NebulaError:
                # The watcher says that the store is away.
                for share in self._shares.values():
                    share.not_told()
                return
            for share, answer in zip(batch, answers, strict=True):
                share.told(answer, now)

    def _resume(self, now: float) -> None:
        for claim in list(self._parked):
            if claim not in self._parked:
                continue  # it went while another was resumed
            found = claim.share.take(claim.tokens, now, self._workers(), stream=claim.stream)
            refusal = None
            if isinstance(found, Taken):
                claim.taken = found
            elif isinstance(found, Limited):
                refusal = self._refused(found)
            elif found is Answer.ASK and now - claim.at < LONGEST_PARKED_SECONDS:
                self._wanted.set()
                continue
            else:
                refusal = refusals.rate_limited("its limits are asked for by too many", 1)
            self._unpark(claim)
            claim.claimant.claim_settled(refusal)

    def _unpark(self, claim: KeyClaim) -> None:
        if claim in self._parked:
            del self._parked[claim]
            claim.share.need(claim.tokens, stream=claim.stream, sign=-1)


def _lines(name: bytes, remaining: Remaining | None) -> bytes:
    if remaining is None:
        return b""
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n" % (
        name,
        remaining.limit,
        name,
        remaining.left,
        name,
        duration(remaining.reset_seconds),
    )


def duration(seconds: float) -> bytes:
    """As in OpenAI's headers: `120ms`, `8.64s`, `6m0s`."""
    if seconds < 1:
        return b"%dms" % round(seconds * 1000)
    if seconds < 60:
        return f"{seconds:.4g}s".encode("ascii")
    minutes, rest = divmod(round(seconds), 60)
    return b"%dm%ds" % (minutes, rest)
