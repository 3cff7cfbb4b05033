"""The cluster as one process sees it, kept up to date from the store and kept while the store is away.

Theory of operation
-------------------
One task, one connection of its own, one loop:

    resync ──► follow ──► follow ──► …          follow = XREAD BLOCK on `changes` (at most `poll_seconds`),
      ▲           │                                      then one round trip for telemetry and the head of the store
      └── gap, new incarnation, regressed revision, lost connection

*Durable state* is read whole in one MULTI (so that revision and content belong together) and then followed. Every
change has the stream id `{revision}-0`: the next one must be exactly one higher, anything else is a gap (the stream
was trimmed past us) and leads to a resync. After a lost connection the store may have forgotten its last second, so
there is always a resync.

*Telemetry* is read with `Reports`: for the control process everything of it (`reports`), for a data worker what routing
needs (`routing_reports`).

*Absence is no order* (DESIGN, 6). A store that comes back empty has a new incarnation; one that comes back as an older
copy of itself has a lower revision than we have seen. Either way it is in `doubt`: what we had is kept, and what is written
from then on is laid over it. Who notices says so in the store's meta record, for those who remember nothing (a process that
started later sees what the store has, and the doubt). The old view is let go only when somebody says that the store is the
truth again (`Store.rebuild`, `Store.settle`), or when the store is as new as we are.

*Silence is counted only while we can hear.* A node is lost when nothing came of it for ten seconds. While the store is
away, or this process itself was frozen, nothing could come of anybody: those seconds are forgiven, for all nodes
alike (`ClusterSnapshot.forgiving`). Hence losing the store empties no routing table.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

import structlog

from nebula_core.errors import StoreUnavailable, StoreUnfit
from nebula_core.records.base import frozen_map
from nebula_core.records.event import Change, ChangeKind
from nebula_core.records.snapshot import DURABLE_FIELDS, ClusterSnapshot, decode_durable
from nebula_core.records.store_memory import Remembered, StoreDoubt
from nebula_core.runtime.clock import Clock, SystemClock
from nebula_core.store import keys
from nebula_core.store.line import Argument
from nebula_core.store.reports import Breath, Entries, Fetch, Gathered, Reports, SnapshotReports
from nebula_core.store.store import Store

log = structlog.get_logger(__name__)

POLL_SECONDS: Final = 0.1
#: A longer pause between two readings means that we were deaf.
DEAF_AFTER_SECONDS: Final = 1.0
#: A reader that does not block asks so often whether the store is still the one it was.
HEAD_SECONDS: Final = 1.0
#: Entries per read.
BATCH: Final = 250
_LONGEST_TIMEOUT_SECONDS: Final = 3.0
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.25
_OFFENDERS_REMEMBERED: Final = 256

#: Revision, incarnation, whether the store was settled, and the doubt that is said of it.
Head = tuple[str | None, str | None, str | None, str | None]


@dataclass(frozen=True, slots=True)
class Changed:
    """What one batch brought. After `resynced`, look at everything."""

    durable: tuple[Change, ...] = ()
    nodes: frozenset[str] = frozenset()
    proxies: frozenset[str] = frozenset()
    resynced: bool = False

    def __bool__(self) -> bool:
        return self.resynced or bool(self.durable or self.nodes or self.proxies)


Listener = Callable[[ClusterSnapshot, Changed], None]


class _Resync(Exception):
    """What we have can no longer be continued from the stream: back to the beginning of the loop."""


class Watcher:
    """Start it, then read `snapshot`: it is replaced, never edited, and stays when the store goes away."""

    def __init__(
        self,
        store: Store,
        clock: Clock | None = None,
        *,
        poll_seconds: float = POLL_SECONDS,
        reports: Reports | None = None,
        block: bool = True,
    ) -> None:
        """`reports` says what to make of telemetry: by default all of it is in the snapshot.

        `block` waits inside the store, so that a durable change is heard at once; without it a turn is one round trip
        and a change is heard with the next one.
        """
        self.snapshot = ClusterSnapshot()
        #: The store answers and `snapshot` is in step with it.
        self.reachable = False
        #: The store came back without what it held, or without the latest of it; `snapshot` still shows that, if we knew it.
        self.doubt: StoreDoubt | None = None
        self._store = store
        self._clock = clock or SystemClock()
        self._poll_seconds = poll_seconds
        self._line = store.open_line(
            connections=1, timeout_seconds=min(store.settings.socket_timeout_seconds, _LONGEST_TIMEOUT_SECONDS)
        )
        self._reports = reports or SnapshotReports()
        self._fetch = Fetch(self._line, self._offence)
        self._block = block
        self._head_at = float("-inf")
        #: The last batch was full: there is more.
        self._behind = False
        self._listeners: list[Listener] = []
        self._turn = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._telemetry_cursor = "0-0"
        #: Revision the store had when it was last asked, to notice a stream that lost its end.
        self._promised = 0
        #: Monotonic time up to which silence was counted, and of the last true answer.
        self._heard = self._clock.monotonic()
        self._answered: float | None = None
        self._complained = False
        self._offenders: set[str] = set()
        #: The incarnation whose content we took as the whole truth, and the highest revision seen of it.
        self._trusted = ""
        self._peak = 0
        #: The doubt is our own: we remember more than the store has.
        self._noticed: StoreDoubt | None = None
        #: The doubt that stood in the store when it was last read whole.
        self._said: str | None = None

    # --- what others use

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="store-watcher")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self.reachable = False
        await self._line.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def revision(self) -> int:
        return self.snapshot.revision

    @property
    def emptied(self) -> bool:
        """The store came back without what it held."""
        return self.doubt is StoreDoubt.EMPTIED

    @property
    def remembered(self) -> Remembered | None:
        """The store as it was last trusted; None when it never was."""
        return Remembered(incarnation=self._trusted, revision=self._peak) if self._trusted else None

    @property
    def remembers_more(self) -> bool:
        """The store is in doubt and `snapshot` is what we know from before; else it is what the store has."""
        return self._noticed is not None

    def snapshot_age(self, now: float) -> float | None:
        """Seconds since the store last answered; None before the first answer."""
        return None if self._answered is None else max(0.0, now - self._answered)

    def assume(self, snapshot: ClusterSnapshot, age_seconds: float | None) -> None:
        """Begins with what was known `age_seconds` ago (None: nobody knows when); before `start`.

        The store replaces it, an empty or older one does not.
        """
        self.snapshot = snapshot
        self._trusted = snapshot.incarnation
        self._peak = snapshot.revision
        if age_seconds is not None:
            self._answered = self._clock.monotonic() - age_seconds

    def add_listener(self, listener: Listener) -> None:
        """Calls back on this loop after each batch; must be quick. One that raises is logged and kept."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        self._listeners.remove(listener)

    async def wait_for(
        self, predicate: Callable[[ClusterSnapshot], object], timeout: float | None = None
    ) -> ClusterSnapshot:
        """The first snapshot for which the predicate holds. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while not predicate(self.snapshot):
                await self._turn.wait()
            return self.snapshot

    async def synced(self, timeout: float | None = None) -> ClusterSnapshot:
        """The snapshot once it is in step with the store. Raises TimeoutError."""
        return await self.wait_for(lambda _: self.reachable, timeout)

    async def tried(self, timeout: float | None = None) -> bool:
        """Whether the store answers, once that is known. Raises TimeoutError."""
        await self.wait_for(lambda _: self.reachable or self._complained, timeout)
        return self.reachable

    # --- the loop

    async def _run(self) -> None:
        failing = 0
        while True:
            try:
                await self.resync()
                while True:
                    await self.follow()
                    failing = 0
            except _Resync as reason:
                log.info("watch_resync", reason=str(reason), revision=self.revision)
                failing += 1
            except (StoreUnavailable, StoreUnfit) as error:
                failing += 1
                self._lost(error)
            except Exception:
                failing += 1
                log.exception("watch_failed")
                self._lost(None)
            await self._pause(failing)

    async def _pause(self, failing: int) -> None:
        """Waits longer after each failure, in ticks: the seconds without a store are forgiven as they pass."""
        left = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(failing, 10))
        # Spread: all processes of a cluster lose the store at the same moment.
        left *= random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        while left > 0:
            await self._clock.sleep(min(left, _TICK_SECONDS))
            left -= _TICK_SECONDS
            self._forgive()

    def _lost(self, error: StoreUnavailable | StoreUnfit | None) -> None:
        if self.reachable or not self._complained:
            self._complained = True
            log.warning("store_unreachable", error=str(error), revision=self.revision)
        self.reachable = False
        self._forgive()
        self._wake()

    def _forgive(self) -> None:
        now = self._clock.monotonic()
        deaf = now - self._heard
        if deaf >= DEAF_AFTER_SECONDS:
            self.snapshot = self._reports.forgive(self.snapshot, deaf)
            self._heard = now

    # --- durable state

    async def resync(self) -> None:
        """Reads everything anew and replaces the snapshot."""
        meta, revision, *rest = await self._line.ask_all(_HEAD, atomic=True)
        if "incarnation" not in meta:
            await self._store.ensure_meta()
            meta, revision, *rest = await self._line.ask_all(_HEAD, atomic=True)
        *hashes, last = rest
        incarnation = meta.get("incarnation", "")
        fresh: dict[ChangeKind, dict[str, object]] = {}
        for kind, values in zip(keys.DURABLE, hashes, strict=True):
            fresh[kind] = await self._decoded(kind, values if kind in self._reports.kinds else {})
        self._telemetry_cursor = last[0][0] if last else "0-0"
        reports = await self._reports.load(self._fetch, self.snapshot)

        before = self.snapshot
        doubt = self._noticed = self._own_doubt(meta, int(revision or 0), fresh)
        said = meta.get("doubt")
        if doubt is not None:
            remembered = {kind: getattr(before, DURABLE_FIELDS[kind]) for kind in fresh}
            # Of an older copy nothing is news: what was deleted since stands in it as well.
            fresh = {
                kind: {**known, **fresh[kind]} if doubt is StoreDoubt.EMPTIED else dict(known)
                for kind, known in remembered.items()
            }
            await self._store.say_doubt(doubt, incarnation, self._peak)
            said = said or doubt.value
        elif said is not None:
            doubt = _doubt(said)
        self._said = said
        self._forgive()
        now = self._clock.monotonic()
        parts: dict[str, Any] = {DURABLE_FIELDS[kind]: frozen_map(found) for kind, found in fresh.items()}
        self.snapshot = reports.fold(
            replace(self.snapshot, incarnation=incarnation, revision=int(revision or 0), **parts), now
        )
        self._promised = self.revision
        self._answered = self._heard = now
        self._told(doubt)
        self._publish(Changed(resynced=True))

    def _own_doubt(
        self, meta: Mapping[str, str], revision: int, fresh: Mapping[ChangeKind, Mapping[str, object]]
    ) -> StoreDoubt | None:
        """Whether this store lost what we know, and nobody has said yet that this is as it should be."""
        before, incarnation, noticed = self.snapshot, meta.get("incarnation", ""), self._noticed
        had = bool(before.deployments or before.placements or before.keys)
        if not self._trusted or not had:
            return None
        if incarnation == self._trusted:
            # Later changes may have raised it again: then what is said in the store tells.
            still = noticed is StoreDoubt.STALE and "doubt" in meta
            return StoreDoubt.STALE if still or revision < self._peak else None
        if meta.get("settled") == "1":
            return None
        has = bool(fresh[ChangeKind.DEPLOYMENT] or fresh[ChangeKind.PLACEMENT])
        return StoreDoubt.EMPTIED if noticed is StoreDoubt.EMPTIED or not has else None

    def _told(self, doubt: StoreDoubt | None) -> None:
        if doubt is not None and doubt is not self.doubt:
            log.error(
                "store_emptied" if doubt is StoreDoubt.EMPTIED else "store_stale",
                incarnation=self.snapshot.incarnation,
                revision=self.revision,
                seen=self._peak,
                hint="`nebula adopt --store` writes back what runs; until then nothing is stopped and nothing is planned",
            )
        elif self.doubt is not None and doubt is None:
            log.info("store_settled", incarnation=self.snapshot.incarnation)
        if not self.reachable:
            log.info("store_reachable", revision=self.revision, incarnation=self.snapshot.incarnation)
        self.doubt = doubt
        self.reachable = True
        if doubt is None:
            self._trusted = self.snapshot.incarnation
            self._peak = self.revision

    async def _decoded(self, kind: ChangeKind, values: Mapping[str, str]) -> dict[str, object]:
        """The records of one hash; an unreadable one stays as it was known, or out."""
        found: dict[str, object] = {}
        known: Mapping[str, object] = getattr(self.snapshot, DURABLE_FIELDS[kind])
        breath = Breath()
        for record_id, value in values.items():
            try:
                found[record_id] = decode_durable(kind, value)
            except ValueError as error:
                self._offence(f"{kind.value}/{record_id}", error)
                if record_id in known:
                    found[record_id] = known[record_id]
            await breath()
        return found

    async def follow(self) -> None:
        """One turn: what changed, and what was reported, since the last one. Waits at most `poll_seconds`."""
        changes, telemetry, head = await self._news()
        told = self._changes(changes) if changes else ()
        self._forgive()
        now = self._answered = self._heard = self._clock.monotonic()
        reports: Gathered | None = None
        proxies: frozenset[str] = frozenset()
        try:
            if telemetry:
                reports = await self._reports.read(self._fetch, telemetry, self.snapshot)
                # Only now: had the reading failed, the same batch would be read again.
                self._telemetry_cursor = telemetry[-1][0]
                self.snapshot = reports.fold(self.snapshot, self._clock.monotonic())
                proxies = reports.proxies
            quiet = self.snapshot.without_silent(now=now)
            proxies |= self.snapshot.proxies.keys() - quiet.proxies.keys()
            self.snapshot = quiet
        finally:
            # Also when the reports could not be fetched: the durable changes are in the snapshot already.
            nodes = frozenset[str]() if reports is None else reports.nodes
            # And when only the revision moved, by records we pass over: proxies acknowledge it.
            self._publish(Changed(durable=told, nodes=nodes, proxies=proxies), moved=bool(changes))
        if head is not None:
            revision, incarnation, settled, said = head
            self._check_head(int(revision or 0), incarnation, said, settled=settled == "1", idle=not changes)

    async def _news(self) -> tuple[Entries, Entries, Head | None]:
        """Entries of `changes`, entries of `telemetry`, and the head of the store where it was asked for.

        Waits for it at most `poll_seconds`.
        There is no waiting while we are behind: a full batch means that there is more.
        """
        changes: Entries = ()
        read: list[Argument] = ["XREAD", "COUNT", BATCH]
        if self._behind:
            pass
        elif self._block:
            reply = await self._line.ask(
                *read,
                *("BLOCK", max(1, round(self._poll_seconds * 1000))),
                *("STREAMS", keys.CHANGES, f"{self.revision}-0"),
                patience=self._poll_seconds,
            )
            changes = reply[0][1] if reply else ()
        else:
            await self._clock.sleep(self._poll_seconds)
        since: dict[str, Argument] = {}
        if not changes or not self._reports.telemetry:
            since[keys.CHANGES] = f"{self.revision}-0"
        if self._reports.telemetry:
            since[keys.TELEMETRY] = self._telemetry_cursor
        streams: list[Argument] = ["STREAMS", *since, *since.values()]
        head: Head | None = None
        if self._block or self._clock.monotonic() - self._head_at >= HEAD_SECONDS:
            reply, revision, standing = await self._line.ask_all([[*read, *streams], *_STANDING])
            head = (revision, *standing)
            self._head_at = self._clock.monotonic()
        else:
            reply = await self._line.ask(*read, *streams)
        found: dict[str, Entries] = dict(reply or ())
        changes = changes or found.get(keys.CHANGES, ())
        telemetry = found.get(keys.TELEMETRY, ())
        self._behind = len(changes) == BATCH or len(telemetry) == BATCH
        return changes, telemetry, head

    def _changes(self, entries: Entries) -> tuple[Change, ...]:
        """Folds entries of the stream in. Raises _Resync when one is missing."""
        changes: list[Change] = []
        expected = self.revision
        for entry_id, fields in entries:
            expected += 1
            if entry_id != f"{expected}-0":
                raise _Resync(f"change {expected} is missing, the next is {entry_id}")
            try:
                change = Change(
                    revision=expected, kind=ChangeKind(fields["kind"]), id=fields["id"], value=fields.get("value")
                )
            except (KeyError, ValueError) as error:
                # A kind of a newer version: not ours to understand, but its number counts.
                self._offence(f"change/{entry_id}", error)
                continue
            if change.kind in self._reports.kinds:
                changes.append(change)
        try:
            following = self.snapshot.with_changes(changes)
        except ValueError:
            changes = [change for change in changes if self._fits(change)]
            following = self.snapshot.with_changes(changes)
        # Not the last readable change: an unreadable one was seen as well.
        self.snapshot = replace(following, revision=expected)
        if self.doubt is None:
            self._peak = expected
        return tuple(changes)

    def _fits(self, change: Change) -> bool:
        try:
            if change.value is not None:
                decode_durable(change.kind, change.value)
        except ValueError as error:
            self._offence(f"{change.kind.value}/{change.id}", error)
            return False
        return True

    def _check_head(
        self, revision: int, incarnation: str | None, said: str | None, *, settled: bool, idle: bool
    ) -> None:
        if incarnation != self.snapshot.incarnation:
            raise _Resync("the store has a new incarnation")
        if revision < self.revision:
            raise _Resync(f"the store went back to revision {revision}")
        if idle and self._promised > self.revision:
            raise _Resync(f"changes up to {self._promised} are missing from the stream")
        if said != self._said or (self.emptied and settled):
            raise _Resync("the store was settled" if said is None else f"the store is said to be {said}")
        self._promised = revision

    # --- telling

    def _publish(self, changed: Changed, *, moved: bool = False) -> None:
        if not changed and not moved:
            return
        for listener in tuple(self._listeners):
            try:
                listener(self.snapshot, changed)
            except Exception:
                log.exception("watch_listener_failed", listener=repr(listener))
        self._wake()

    def _wake(self) -> None:
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    def _offence(self, what: str, error: Exception) -> None:
        """One line per unreadable thing, not one per second."""
        if what not in self._offenders and len(self._offenders) < _OFFENDERS_REMEMBERED:
            self._offenders.add(what)
            log.warning("store_record_unreadable", record=what, error=type(error).__name__, detail=str(error)[:300])


def _doubt(said: str) -> StoreDoubt:
    """A word of a newer version is a doubt all the same."""
    return StoreDoubt(said) if said in {one.value for one in StoreDoubt} else StoreDoubt.STALE


_STANDING: Final[Sequence[Sequence[str | int]]] = [
    ["GET", keys.REVISION],
    ["HMGET", keys.META, "incarnation", "settled", "doubt"],
]
_HEAD: Final[Sequence[Sequence[str | int]]] = [
    ["HGETALL", keys.META],
    ["GET", keys.REVISION],
    *(["HGETALL", name] for name in keys.DURABLE.values()),
    ["XREVRANGE", keys.TELEMETRY, "+", "-", "COUNT", 1],
]
