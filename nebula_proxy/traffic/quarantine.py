"""Bodies that were in flight when engines died; the rules are in `decisions/quarantine`.

Nothing is done for a request as long as no engine dies. Kept are digests, at most `MOST` of them, the latest: what this process
saw, and what the others tell in their reports (`told`, `follow`). What another process no longer tells it has taken
back; what was told by one that is gone holds until its time is over.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

from nebula_core.records.report import EngineDeath, ProxyReport, SuspectBody
from nebula_core.records.snapshot import ReceivedProxy
from nebula_proxy.decisions.quarantine import MEMORY_SECONDS, Death, refused_until, weight, with_death

MOST = 1024
#: Bodies of one report, and deaths of each.
TOLD, TOLD_DEATHS = 64, 8
#: How long it is told that a body was answered: a report may be lost.
ACQUITTED_SECONDS = 10.0
_NONE: Mapping[str, tuple[Death, ...]] = {}


class _Held(NamedTuple):
    length: int
    #: What this process saw.
    deaths: tuple[Death, ...] = ()
    #: What each other process tells.
    told: Mapping[str, tuple[Death, ...]] = _NONE


class Quarantine:
    """Of one process. `lives` says whether an engine that was taken for dead has answered since.

    Without a `secret` (0) nothing is told: a digest that anybody can make says what was asked.
    """

    def __init__(self, lives: Callable[[Death], bool], secret: int = 0) -> None:
        self._lives = lives
        self._secret = secret.to_bytes(8)
        self._tells = secret != 0
        #: Empty until an engine dies.
        self.held: OrderedDict[bytes, _Held] = OrderedDict()
        #: Set when there is something that the others should know at once.
        self.news = asyncio.Event()
        #: Of the bodies held, so that most others need no digest.
        self._lengths: Counter[int] = Counter()
        #: Digests of bodies that others hold something against and that were answered here, and when.
        self._acquitted: OrderedDict[bytes, float] = OrderedDict()
        #: The latest report of every other process.
        self._heard: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.held)

    def died(self, body: bytes, death: Death) -> None:
        """The body was in flight at this death."""
        digest = self._digest(body)
        held = self.held.get(digest) or _Held(len(body))
        self._keep(digest, held._replace(deaths=with_death(held.deaths, death)))
        self._acquitted.pop(digest, None)
        self.news.set()

    def refuses(self, body: bytes, now: float) -> float | None:
        """Seconds for which the body is refused still; None when it is not."""
        held = self._find(body)
        if held is None:
            return None
        alive = [death for death in held.deaths if self._lives(death)]
        if alive:
            held = held._replace(deaths=tuple(death for death in held.deaths if death not in alive))
            self.held[self._digest(body)] = held
        until = refused_until(_all(held))
        return until - now if until is not None and until > now else None

    def served(self, body: bytes, now: float) -> None:
        """The body was answered: it kills nothing."""
        held = self._find(body)
        if held is None:
            return
        digest = self._digest(body)
        if held.told:
            self._acquitted[digest] = now
            while len(self._acquitted) > TOLD:
                self._acquitted.popitem(last=False)
        self._forget(digest)

    def sweep(self, now: float) -> None:
        """Forgets what no longer counts."""
        for digest, held in list(self.held.items()):
            deaths = _all(held)
            until = refused_until(deaths)
            latest = max((death.at for death in deaths), default=0.0)
            if not deaths or now > max(latest + MEMORY_SECONDS, until or 0.0):
                self._forget(digest)

    # Between processes

    def told(self, now: float) -> tuple[tuple[SuspectBody, ...], tuple[str, ...]]:
        """For this process's report: what it holds against which bodies, and which it saw answered."""
        while self._acquitted and now - next(iter(self._acquitted.values())) > ACQUITTED_SECONDS:
            self._acquitted.popitem(last=False)
        if not self._tells or not self.held:
            return (), tuple(digest.hex() for digest in self._acquitted)
        seen = [
            (digest, held.length, deaths)
            for digest, held in self.held.items()
            if (deaths := tuple(death for death in held.deaths if not self._lives(death)))
        ]
        # Of a crowd those that were there most often, and of these the latest.
        seen.sort(key=lambda each: (weight(each[2]), each[2][-1].at), reverse=True)
        suspects = tuple(
            SuspectBody(
                digest=digest.hex(),
                length=length,
                deaths=tuple(
                    EngineDeath(
                        replica=death.replica,
                        engine_epoch=death.engine_epoch,
                        seconds_ago=round(max(0.0, now - death.at), 3),
                        company=death.company,
                    )
                    for death in deaths[-TOLD_DEATHS:]
                ),
            )
            for digest, length, deaths in seen[:TOLD]
        )
        return suspects, tuple(digest.hex() for digest in self._acquitted)

    def follow(self, own: str, proxies: Iterable[ReceivedProxy]) -> None:
        """Takes what other processes tell, each report once."""
        for seen in proxies:
            report = seen.report
            if report.proxy != own and self._heard.get(report.proxy) != report.sequence:
                if report.proxy not in self._heard and len(self._heard) >= MOST:
                    self._heard.clear()
                self._heard[report.proxy] = report.sequence
                self._take(report, seen.at)

    def _take(self, report: ProxyReport, at: float) -> None:
        told = dict(_read(report, at)) if self._tells else {}
        for digest, held in list(self.held.items()):
            if report.proxy in held.told and digest not in told:
                rest = {proxy: deaths for proxy, deaths in held.told.items() if proxy != report.proxy}
                self._settle(digest, held._replace(told=rest))
        for digest, (length, deaths) in told.items():
            if digest not in self._acquitted:
                held = self.held.get(digest) or _Held(length)
                self._keep(digest, held._replace(told={**held.told, report.proxy: deaths}))
        for name in report.acquitted[:TOLD]:
            acquitted = _bytes(name)
            if acquitted is not None and (found := self.held.get(acquitted)) is not None:
                self._settle(acquitted, found._replace(deaths=()))

    # The books

    def _find(self, body: bytes) -> _Held | None:
        return self.held.get(self._digest(body)) if len(body) in self._lengths else None

    def _keep(self, digest: bytes, held: _Held) -> None:
        if digest not in self.held:
            self._lengths[held.length] += 1
        self.held[digest] = held
        self.held.move_to_end(digest)
        if len(self.held) > MOST:
            self._forget(next(iter(self.held)))

    def _settle(self, digest: bytes, held: _Held) -> None:
        """Less is held against it than before."""
        if held.deaths or held.told:
            self.held[digest] = held
        else:
            self._forget(digest)

    def _forget(self, digest: bytes) -> None:
        length = self.held.pop(digest).length
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]

    def _digest(self, body: bytes) -> bytes:
        return blake2b(body, digest_size=16, key=self._secret, person=b"nebula.suspects").digest()


def _all(held: _Held) -> tuple[Death, ...]:
    """All that is held against it; an engine that several saw die has died once."""
    deaths = held.deaths
    for told in held.told.values():
        for death in told:
            deaths = with_death(deaths, death)
    return deaths


def _read(report: ProxyReport, at: float) -> Iterator[tuple[bytes, tuple[int, tuple[Death, ...]]]]:
    for suspect in report.suspects[:TOLD]:
        digest = _bytes(suspect.digest)
        if digest is None:
            continue
        deaths = tuple(
            Death(each.replica, each.engine_epoch, at - max(0.0, each.seconds_ago), each.company)
            for each in suspect.deaths[-TOLD_DEATHS:]
        )
        if deaths:
            yield digest, (suspect.length, deaths)


def _bytes(name: str) -> bytes | None:
    try:
        return bytes.fromhex(name)
    except ValueError:
        return None
