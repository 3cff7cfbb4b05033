"""What is open in the proxies, for whoever asks here: the data plane is reached through the store, never directly.

    GET /requests ──► `show` into every inbox (at most every 5 s) ──► each proxy publishes once a second ──► read here
    why, cancel   ──► the command into every inbox ──► each proxy answers whether it has the request

Nobody knows which worker has a request, so all are asked; a proxy that is frozen or gone is not waited for longer than
`PATIENCE_SECONDS`, and is named. However many people look, the store is read a few times a second.
"""

import asyncio
import secrets
from dataclasses import dataclass

from nebula_core.records.decision import DecisionRecord
from nebula_core.records.inflight import SHOWN_SECONDS, CommandAnswer, InflightReport, ProxyCommand
from nebula_core.runtime.clock import Clock
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher

#: A proxy that was not heard for so long is not asked: it is gone or cannot answer.
PROXY_FRESH_SECONDS = 5.0
RENEW_SECONDS = 5.0
#: Two questions in this time get the same answer.
REMEMBERED_SECONDS = 0.25
#: How long proxies may take to answer; they are waiting for the command, so milliseconds are usual.
PATIENCE_SECONDS = 0.8
LOOK_AGAIN_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Seen:
    """What the proxies showed; `silent` did not show anything."""

    reports: tuple[InflightReport, ...] = ()
    silent: tuple[str, ...] = ()


class LiveRequests:
    def __init__(self, store: Store, watcher: Watcher, clock: Clock) -> None:
        self._store = store
        self._watcher = watcher
        self._clock = clock
        self._turn = asyncio.Lock()
        self._seen = Seen()
        self._seen_at = float("-inf")
        #: When each proxy was last told to show what it has.
        self._told: dict[str, float] = {}

    def proxies(self) -> list[str]:
        """Those that can be asked."""
        now = self._clock.monotonic()
        received = self._watcher.snapshot.proxies
        return sorted(name for name, seen in received.items() if now - seen.at < PROXY_FRESH_SECONDS)

    async def look(self, by: str) -> Seen:
        """What is open now, at most a second old. Raises StoreUnavailable."""
        async with self._turn:
            now = self._clock.monotonic()
            if now - self._seen_at < REMEMBERED_SECONDS:
                return self._seen
            names = self.proxies()
            cold = [name for name in names if now - self._told.get(name, float("-inf")) >= SHOWN_SECONDS]
            if cold or any(now - self._told[name] >= RENEW_SECONDS for name in names):
                await self._store.command_proxies(names, ProxyCommand(id=_mint(), kind="show", by=by))
                self._told = dict.fromkeys(names, now)
            found = await self._store.read_inflight(names)
            while any(name not in found for name in cold) and self._clock.monotonic() - now < PATIENCE_SECONDS:
                await self._clock.sleep(LOOK_AGAIN_SECONDS)
                found = await self._store.read_inflight(names)
            self._seen = Seen(
                tuple(found[name] for name in names if name in found),
                tuple(name for name in names if name not in found),
            )
            self._seen_at = self._clock.monotonic()
            return self._seen

    async def explain(self, request: str, by: str) -> DecisionRecord | None:
        """An open request as it stands; None when no proxy has it. Raises StoreUnavailable."""
        answer = await self._ask(ProxyCommand(id=_mint(), kind="explain", request=request, by=by))
        return None if answer is None else answer.record

    async def cancel(self, request: str, by: str) -> DecisionRecord | None:
        """Ends an open request; how it stood, or None when no proxy has it. Raises StoreUnavailable."""
        answer = await self._ask(ProxyCommand(id=_mint(), kind="cancel", request=request, by=by))
        return None if answer is None else answer.record

    async def _ask(self, command: ProxyCommand) -> CommandAnswer | None:
        names = set(self.proxies())
        if not names:
            return None
        await self._store.command_proxies(sorted(names), command)
        deadline = self._clock.monotonic() + PATIENCE_SECONDS
        while True:
            answers = await self._store.command_answers(command.id)
            for answer in answers:
                if answer.found:
                    return answer
            if {answer.proxy for answer in answers} >= names or self._clock.monotonic() >= deadline:
                return None
            await self._clock.sleep(LOOK_AGAIN_SECONDS)


def _mint() -> str:
    return f"cmd-{secrets.token_hex(8)}"
