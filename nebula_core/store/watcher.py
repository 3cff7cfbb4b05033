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

*Telemetry* is a hint what to look at: full reports are fetched by MGET in slices, compact records stand in the
stream itself. In one batch, compact records that stand before a full report of the same node are older than it and
are dropped: they may even be of the agent before a restart.

*Absence is no order* (DESIGN, 6). A store that comes back empty has a new incarnation: what we had is kept, `emptied`
is set, and what is written from then on is laid over it. The old view is let go only when somebody says that the
store is the truth again (`Store.settle`, after adopt or restore).

*Silence is counted only while we can hear.* A node is lost when nothing came of it for ten seconds. While the store is
away, or this process itself was frozen, nothing could come of anybody: those seconds are forgiven, for all nodes
alike (`ClusterSnapshot.forgiving`). Hence losing the store empties no routing table.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import structlog

from nebula_core.errors import StoreUnavailable, StoreUnfit
from nebula_core.records.base import frozen_map
from nebula_core.records.event import Change, ChangeKind
from nebula_core.records.report import NodeDelta, NodeReport, ProxyReport
from nebula_core.records.snapshot import DURABLE_FIELDS, ClusterSnapshot, decode_durable
from nebula_core.runtime.clock import Clock, SystemClock
from nebula_core.store import keys
from nebula_core.store.store import Store
from nebula_core.store.telemetry import DELTA, FULL, PROXY

log = structlog.get_logger(__name__)

POLL_SECONDS: Final = 0.1
#: A longer pause between two readings means that we were deaf.
DEAF_AFTER_SECONDS: Final = 1.0
#: Entries per read and keys per MGET: what an event loop digests without a stall.
BATCH: Final = 250
SLICE: Final = 50
_LONGEST_TIMEOUT_SECONDS: Final = 3.0
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.25
_OFFENDERS_REMEMBERED: Final = 256

Report = TypeVar("Report", NodeReport, ProxyReport)
Fields = Mapping[str, str]


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

    def __init__(self, store: Store, clock: Clock | None = None, *, poll_seconds: float = POLL_SECONDS) -> None:
        self.snapshot = ClusterSnapshot()
        #: The store answers and `snapshot` is in step with it.
        self.reachable = False
        #: The store came back without what it held; `snapshot` still shows that.
        self.emptied = False
        self._store = store
        self._clock = clock or SystemClock()
        self._poll_seconds = poll_seconds
        self._line = store.open_line(
            connections=1, timeout_seconds=min(store.settings.socket_timeout_seconds, _LONGEST_TIMEOUT_SECONDS)
        )
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
        #: The incarnation whose content we took as the whole truth.
        self._trusted = ""

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

    def snapshot_age(self, now: float) -> float | None:
        """Seconds since the store last answered; None before the first answer."""
        return None if self._answered is None else max(0.0, now - self._answered)

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
            self.snapshot = self.snapshot.forgiving(deaf)
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
            fresh[kind] = await self._decoded(kind, values)
        self._telemetry_cursor = last[0][0] if last else "0-0"
        nodes, proxies = await self._all_reports()

        before = self.snapshot
        emptied = self._is_emptied(incarnation, fresh, settled=meta.get("settled") == "1")
        if emptied:
            fresh = {kind: {**getattr(before, DURABLE_FIELDS[kind]), **found} for kind, found in fresh.items()}
        self._forgive()
        now = self._clock.monotonic()
        parts: dict[str, Any] = {DURABLE_FIELDS[kind]: frozen_map(found) for kind, found in fresh.items()}
        self.snapshot = replace(
            self.snapshot, incarnation=incarnation, revision=int(revision or 0), **parts
        ).with_reports(_news(nodes, before), _proxy_news(proxies, before), at=now)
        self._promised = self.revision
        self._answered = self._heard = now
        self._told(emptied=emptied)
        self._publish(Changed(resynced=True))

    def _is_emptied(self, incarnation: str, fresh: Mapping[ChangeKind, Mapping[str, object]], *, settled: bool) -> bool:
        """Whether this is a store that lost what we know, and nobody has said yet that this is as it should be."""
        before = self.snapshot
        if settled or not self._trusted or incarnation == self._trusted:
            return False
        had = bool(before.deployments or before.placements or before.keys)
        has = bool(fresh[ChangeKind.DEPLOYMENT] or fresh[ChangeKind.PLACEMENT])
        return self.emptied or (had and not has)

    def _told(self, *, emptied: bool) -> None:
        if emptied and not self.emptied:
            log.error(
                "store_emptied", incarnation=self.snapshot.incarnation, hint="adopt or restore; nothing is stopped"
            )
        elif self.emptied and not emptied:
            log.info("store_settled", incarnation=self.snapshot.incarnation)
        if not self.reachable:
            log.info("store_reachable", revision=self.revision, incarnation=self.snapshot.incarnation)
        self.emptied = emptied
        self.reachable = True
        if not emptied:
            self._trusted = self.snapshot.incarnation

    async def _decoded(self, kind: ChangeKind, values: Mapping[str, str]) -> dict[str, object]:
        """The records of one hash; an unreadable one stays as it was known, or out."""
        found: dict[str, object] = {}
        known: Mapping[str, object] = getattr(self.snapshot, DURABLE_FIELDS[kind])
        for count, (record_id, value) in enumerate(values.items(), 1):
            try:
                found[record_id] = decode_durable(kind, value)
            except ValueError as error:
                self._offence(f"{kind.value}/{record_id}", error)
                if record_id in known:
                    found[record_id] = known[record_id]
            if count % SLICE == 0:
                await asyncio.sleep(0)
        return found

    async def follow(self) -> None:
        """One turn: what changed, and what was reported, since the last one. Waits at most `poll_seconds`."""
        reply = await self._line.ask(
            "XREAD",
            *("COUNT", BATCH, "BLOCK", max(1, round(self._poll_seconds * 1000))),
            *("STREAMS", keys.CHANGES, f"{self.revision}-0"),
            patience=self._poll_seconds,
        )
        changes = self._changes(reply[0][1]) if reply else ()
        telemetry, revision, incarnation, settled = await self._line.ask_all(
            [
                ["XREAD", "COUNT", BATCH, "STREAMS", keys.TELEMETRY, self._telemetry_cursor],
                ["GET", keys.REVISION],
                ["HGET", keys.META, "incarnation"],
                ["HGET", keys.META, "settled"],
            ]
        )
        self._forgive()
        now = self._answered = self._heard = self._clock.monotonic()
        nodes: frozenset[str] = frozenset()
        proxies: frozenset[str] = frozenset()
        try:
            if telemetry:
                nodes, proxies = await self._reported(telemetry[0][1])
            quiet = self.snapshot.without_silent(now=now)
            proxies |= self.snapshot.proxies.keys() - quiet.proxies.keys()
            self.snapshot = quiet
        finally:
            # Also when the reports could not be fetched: the durable changes are in the snapshot already.
            self._publish(Changed(durable=changes, nodes=nodes, proxies=proxies))
        self._check_head(int(revision or 0), incarnation, settled=settled == "1", idle=not changes)

    def _changes(self, entries: Sequence[tuple[str, Fields]]) -> tuple[Change, ...]:
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
            changes.append(change)
        try:
            following = self.snapshot.with_changes(changes)
        except ValueError:
            changes = [change for change in changes if self._fits(change)]
            following = self.snapshot.with_changes(changes)
        # Not the last readable change: an unreadable one was seen as well.
        self.snapshot = replace(following, revision=expected)
        return tuple(changes)

    def _fits(self, change: Change) -> bool:
        try:
            if change.value is not None:
                decode_durable(change.kind, change.value)
        except ValueError as error:
            self._offence(f"{change.kind.value}/{change.id}", error)
            return False
        return True

    def _check_head(self, revision: int, incarnation: str | None, *, settled: bool, idle: bool) -> None:
        if incarnation != self.snapshot.incarnation:
            raise _Resync("the store has a new incarnation")
        if revision < self.revision:
            raise _Resync(f"the store went back to revision {revision}")
        if idle and self._promised > self.revision:
            raise _Resync(f"changes up to {self._promised} are missing from the stream")
        if self.emptied and settled:
            raise _Resync("the store was settled")
        self._promised = revision

    # --- telemetry

    async def _reported(self, entries: Sequence[tuple[str, Fields]]) -> tuple[frozenset[str], frozenset[str]]:
        """Folds one batch of the telemetry stream in; the nodes and proxies it brought news of."""
        notes: set[str] = set()
        proxy_notes: set[str] = set()
        deltas: dict[str, list[NodeDelta]] = {}
        for _, fields in entries:
            if (node := fields.get(FULL)) is not None:
                notes.add(node)
                deltas.pop(node, None)
            elif (raw := fields.get(DELTA)) is not None:
                try:
                    delta = NodeDelta.from_json(raw)
                except ValueError as error:
                    self._offence("telemetry", error)
                else:
                    deltas.setdefault(delta.node, []).append(delta)
            elif (proxy := fields.get(PROXY)) is not None:
                proxy_notes.add(proxy)
        # A node whose compact records come while its full report is unknown to us.
        notes |= deltas.keys() - self.snapshot.reports.keys()
        reports = await self._reports(NodeReport, [keys.report(node) for node in sorted(notes)])
        proxies = await self._reports(ProxyReport, [keys.proxy(name) for name in sorted(proxy_notes)])
        # Only now: had the fetch failed, the same batch would be read again.
        self._telemetry_cursor = entries[-1][0]
        now = self._clock.monotonic()
        self.snapshot = self.snapshot.with_reports(reports, proxies, at=now).with_deltas(
            (delta for found in deltas.values() for delta in found), at=now
        )
        withdrawn = proxy_notes - {proxy.proxy for proxy in proxies}
        if withdrawn & self.snapshot.proxies.keys():
            left = {name: seen for name, seen in self.snapshot.proxies.items() if name not in withdrawn}
            self.snapshot = replace(self.snapshot, proxies=frozen_map(left))
        return frozenset(notes | deltas.keys()), frozenset(proxy_notes)

    async def _all_reports(self) -> tuple[list[NodeReport], list[ProxyReport]]:
        nodes = await self._reports(NodeReport, await self._scan(keys.REPORT))
        return nodes, await self._reports(ProxyReport, await self._scan(keys.PROXY))

    async def _scan(self, prefix: str) -> list[str]:
        found: set[str] = set()
        cursor = 0
        while True:
            cursor, page = await self._line.ask("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", 1000)
            found.update(page)
            if int(cursor) == 0:
                return sorted(found)

    async def _reports(self, kind: type[Report], names: Sequence[str]) -> list[Report]:
        found: list[Report] = []
        for start in range(0, len(names), SLICE):
            some = names[start : start + SLICE]
            for name, raw in zip(some, await self._line.ask("MGET", *some), strict=True):
                if raw is None:
                    continue
                try:
                    found.append(kind.from_json(raw))
                except ValueError as error:
                    self._offence(name, error)
        return found

    # --- telling

    def _publish(self, changed: Changed) -> None:
        if not changed:
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


_HEAD: Final[Sequence[Sequence[str | int]]] = [
    ["HGETALL", keys.META],
    ["GET", keys.REVISION],
    *(["HGETALL", name] for name in keys.DURABLE.values()),
    ["XREVRANGE", keys.TELEMETRY, "+", "-", "COUNT", 1],
]


def _news(reports: Iterable[NodeReport], known: ClusterSnapshot) -> list[NodeReport]:
    """Those we have not seen: reading a report again after a resync is no sign of life."""
    return [
        report
        for report in reports
        if (got := known.reports.get(report.node)) is None or _stamp(report) != _stamp(got.report)
    ]


def _stamp(report: NodeReport) -> tuple[str, int, float]:
    # Not the sequence: compact figures raise that of the report they are folded into.
    return (report.boot_id, report.agent_pid, report.at)


def _proxy_news(reports: Iterable[ProxyReport], known: ClusterSnapshot) -> list[ProxyReport]:
    return [
        report
        for report in reports
        if (got := known.proxies.get(report.proxy)) is None
        or (report.started_at, report.sequence) != (got.report.started_at, got.report.sequence)
    ]
