"""What a watcher makes of telemetry.

Two kinds of reader want two things of the same stream. The control process shows everything (`SnapshotReports`, here):
every full report is fetched and every figure folded into the snapshot. A data worker wants only what routing needs
(`routing_reports`), a thousand nodes a second for a few percent of a core.

Either way it goes in two steps. *Reading* asks the store and changes nothing, so it can fail at any point and the same
batch is read again. *Folding* is done in one go, once silence that was nobody's fault is forgiven.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from nebula_core.records.base import Record, frozen_map
from nebula_core.records.compact import NodeDelta
from nebula_core.records.event import ChangeKind
from nebula_core.records.report import NodeReport, ProxyReport
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.store import keys
from nebula_core.store.line import Line
from nebula_core.store.telemetry import DELTA, FULL, PROXY

#: Keys per MGET.
SLICE: Final = 50
#: What a loop may be held at a time. Work that takes longer lets others in between.
BREATH_SECONDS: Final = 0.002

Fields = Mapping[str, str]
Entries = Sequence[tuple[str, Fields]]
R = TypeVar("R", bound=Record)


class Gathered(Protocol):
    """What was read of one batch."""

    @property
    def nodes(self) -> frozenset[str]:
        """Those whose news listeners should look at; complete once it is folded."""

    @property
    def proxies(self) -> frozenset[str]: ...

    def fold(self, snapshot: ClusterSnapshot, at: float) -> ClusterSnapshot:
        """Takes it over, as received at monotonic `at`."""


class Reports(Protocol):
    #: Durable records that are of use beside the reports; others are counted and passed over.
    kinds: frozenset[ChangeKind]
    #: Whether the stream of telemetry is read at all.
    telemetry: bool

    async def load(self, fetch: "Fetch", known: ClusterSnapshot) -> Gathered:
        """Every report there is."""

    async def read(self, fetch: "Fetch", entries: Entries, known: ClusterSnapshot) -> Gathered:
        """What one batch of the telemetry stream says."""

    def forgive(self, snapshot: ClusterSnapshot, seconds: float) -> ClusterSnapshot:
        """Moves every time of receipt later."""


class Breath:
    """Lets the loop do other things when a piece of work has held it for long enough."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def __call__(self) -> None:
        if time.perf_counter() - self._since > BREATH_SECONDS:
            await asyncio.sleep(0)
            self._since = time.perf_counter()


class Fetch:
    """Reports by their keys. `offence` is told of each that cannot be read."""

    def __init__(self, line: Line, offence: Callable[[str, Exception], None]) -> None:
        self._line = line
        self.offence = offence

    async def records(self, kind: type[R], names: Sequence[str]) -> list[R]:
        """Those that are there and readable."""
        found: list[R] = []
        breath = Breath()
        for start in range(0, len(names), SLICE):
            some = names[start : start + SLICE]
            for name, raw in zip(some, await self._line.ask("MGET", *some), strict=True):
                if raw is None:
                    continue
                try:
                    found.append(kind.from_json(raw))
                except ValueError as error:
                    self.offence(name, error)
                await breath()
        return found

    async def every(self, kind: type[R], prefix: str) -> list[R]:
        names: set[str] = set()
        cursor = 0
        while True:
            cursor, page = await self._line.ask("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", 1000)
            names.update(page)
            if int(cursor) == 0:
                return await self.records(kind, sorted(names))


@dataclass(frozen=True, slots=True)
class ProxyNews:
    """What was said of proxies: reports, and those that left."""

    reports: tuple[ProxyReport, ...] = ()
    withdrawn: frozenset[str] = frozenset()

    def fold(self, snapshot: ClusterSnapshot, at: float) -> ClusterSnapshot:
        if self.reports:
            snapshot = snapshot.with_reports((), self.reports, at=at)
        if self.withdrawn & snapshot.proxies.keys():
            left = {name: seen for name, seen in snapshot.proxies.items() if name not in self.withdrawn}
            snapshot = replace(snapshot, proxies=frozen_map(left))
        return snapshot


async def proxy_news(fetch: Fetch, names: Iterable[str]) -> ProxyNews:
    """What these proxies say now; one that says nothing has left."""
    noted = sorted(names)
    if not noted:
        return ProxyNews()
    found = await fetch.records(ProxyReport, [keys.proxy(name) for name in noted])
    return ProxyNews(tuple(found), frozenset(noted) - {report.proxy for report in found})


async def all_proxies(fetch: Fetch, known: ClusterSnapshot) -> ProxyNews:
    """Those we have not seen: reading a report again after a resync is no sign of life."""
    found = await fetch.every(ProxyReport, keys.PROXY)
    return ProxyNews(
        tuple(
            report
            for report in found
            if (got := known.proxies.get(report.proxy)) is None
            or (report.started_at, report.sequence) != (got.report.started_at, got.report.sequence)
        )
    )


@dataclass(frozen=True, slots=True)
class _Whole:
    reports: tuple[NodeReport, ...]
    deltas: tuple[NodeDelta, ...]
    news: ProxyNews
    nodes: frozenset[str]
    proxies: frozenset[str]

    def fold(self, snapshot: ClusterSnapshot, at: float) -> ClusterSnapshot:
        if self.reports:
            snapshot = snapshot.with_reports(self.reports, at=at)
        if self.deltas:
            snapshot = snapshot.with_deltas(self.deltas, at=at)
        return self.news.fold(snapshot, at)


class NoReports:
    """Durable records alone: what an agent needs of a cluster of a thousand others."""

    kinds = frozenset({ChangeKind.NODE, ChangeKind.PLACEMENT})
    telemetry = False

    async def load(self, fetch: Fetch, known: ClusterSnapshot) -> Gathered:
        del fetch, known
        return _Whole((), (), ProxyNews(), frozenset(), frozenset())

    async def read(self, fetch: Fetch, entries: Entries, known: ClusterSnapshot) -> Gathered:
        del entries
        return await self.load(fetch, known)

    def forgive(self, snapshot: ClusterSnapshot, seconds: float) -> ClusterSnapshot:
        return snapshot.forgiving(seconds)


class SnapshotReports:
    """Everything, in the snapshot itself."""

    kinds = frozenset(ChangeKind)
    telemetry = True

    async def load(self, fetch: Fetch, known: ClusterSnapshot) -> Gathered:
        found = await fetch.every(NodeReport, keys.REPORT)
        fresh = tuple(
            report
            for report in found
            if (got := known.reports.get(report.node)) is None or _stamp(report) != _stamp(got.report)
        )
        return _Whole(fresh, (), await all_proxies(fetch, known), frozenset(), frozenset())

    async def read(self, fetch: Fetch, entries: Entries, known: ClusterSnapshot) -> Gathered:
        notes: set[str] = set()
        proxy_notes: set[str] = set()
        deltas: dict[str, list[NodeDelta]] = {}
        breath = Breath()
        for _, fields in entries:
            if (node := fields.get(FULL)) is not None:
                notes.add(node)
                # Those before a full report are older than it: they may even be of the agent before a restart.
                deltas.pop(node, None)
            elif (raw := fields.get(DELTA)) is not None:
                try:
                    delta = NodeDelta.from_json(raw)
                except ValueError as error:
                    fetch.offence("telemetry", error)
                else:
                    deltas.setdefault(delta.node, []).append(delta)
            elif (proxy := fields.get(PROXY)) is not None:
                proxy_notes.add(proxy)
            await breath()
        # A node whose compact records come while its full report is unknown to us.
        notes |= deltas.keys() - known.reports.keys()
        return _Whole(
            tuple(await fetch.records(NodeReport, [keys.report(node) for node in sorted(notes)])),
            tuple(delta for found in deltas.values() for delta in found),
            await proxy_news(fetch, proxy_notes),
            frozenset(notes | deltas.keys()),
            frozenset(proxy_notes),
        )

    def forgive(self, snapshot: ClusterSnapshot, seconds: float) -> ClusterSnapshot:
        return snapshot.forgiving(seconds)


def _stamp(report: NodeReport) -> tuple[str, int, float]:
    # Not the sequence: compact figures raise that of the report they are folded into.
    return (report.boot_id, report.agent_pid, report.at)
