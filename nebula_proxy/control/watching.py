"""The watch: what all watchers are told, worked out once for all of them.

Watchers that ask for the same scope and interval form a group. A group remembers the views it has told; when its
interval is over the hub takes one look (shared by all groups that are due), cuts it to the scope, encodes the
difference once and hands the same bytes to every member. A newcomer gets a snapshot of what its group was told last,
so the next difference fits him as well.

Figures wait for the interval. A durable change or an event is told at once, at most every `RUSH_SECONDS`.

A member that takes nothing for too long has its queue thrown away and gets a fresh snapshot when it reads again: its
backlog is bounded, and it is never wrong, only late.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog

from nebula_core.errors import NebulaError
from nebula_core.records.event import Event
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.runtime.clock import Clock
from nebula_core.store.store import Store
from nebula_core.store.watcher import Changed
from nebula_proxy.control.answers import KEEPALIVE, KEEPALIVE_SECONDS, sse
from nebula_proxy.control.refusals import CallRefused
from nebula_proxy.control.scopes import Scope, concerns, cut, difference, snapshot_of
from nebula_proxy.control.views import Views

log = structlog.get_logger(__name__)

SHORTEST_INTERVAL_MS: Final = 100
LONGEST_INTERVAL_MS: Final = 60_000
RUSH_SECONDS: Final = 0.1
#: Deltas one watcher may leave unread.
BACKLOG: Final = 8
EVENTS_KEPT: Final = 200
MOST_STREAMS: Final = 512
#: Clocks closer than this count as one.
SKEW_SEEN_SECONDS: Final = 0.5
#: Nodes and replicas above which a look takes longer than the loop should stand still.
LARGE: Final = 200


@dataclass(eq=False, slots=True)
class Member:
    """One open watch."""

    queue: deque[bytes] = field(default_factory=deque)
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    #: Needs a snapshot before anything else: it is new, or it fell behind.
    stale: bool = True

    def offer(self, message: bytes) -> None:
        if self.stale:
            return
        if len(self.queue) >= BACKLOG:
            self.queue.clear()
            self.stale = True
        else:
            self.queue.append(message)
        self.turn.set()


@dataclass(eq=False, slots=True)
class Group:
    scope: Scope
    interval: float
    told: Views
    #: Position in the hub's count of events up to which they were told.
    events_told: int
    last: float
    members: set[Member] = field(default_factory=set)
    #: The encoded snapshot of `told`, made when somebody needs it.
    snapshot: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """A group that is due, and the events it has not heard."""

    group: Group
    events: list[Event]
    events_told: int


@dataclass(frozen=True, slots=True)
class _News:
    """What a group is told."""

    group: Group
    seen: Views
    events_told: int
    message: bytes | None


class WatchHub:
    """`look` takes one look at the cluster, with ages in steps."""

    def __init__(self, store: Store, clock: Clock, look: Callable[[], Views]) -> None:
        self.open_streams = 0
        #: Clock of each node minus ours where it is worth a word.
        self.clock_skews: dict[str, float] = {}
        self.closed = asyncio.Event()
        self._store = store
        self._clock = clock
        self._look = look
        self._groups: dict[tuple[Scope, float], Group] = {}
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._event_count = 0
        self._last_event: str | None = None
        self._event_turn = asyncio.Event()
        self._rush = asyncio.Event()
        self._reports: dict[str, float] = {}
        self._size = 0

    # -- for clients -----------------------------------------------------------------------------------------------

    async def watch(self, scope: Scope, interval_ms: int) -> AsyncGenerator[bytes]:
        """Server-sent events until the client leaves or the process ends."""
        interval = max(SHORTEST_INTERVAL_MS, min(LONGEST_INTERVAL_MS, interval_ms)) / 1000
        member = Member()
        with self.stream():
            group = self._join(member, scope, interval)
            try:
                while not self.closed.is_set():
                    if member.stale:
                        member.stale = False
                        member.queue.clear()
                        yield self._snapshot(group)
                    while member.queue:
                        yield member.queue.popleft()
                    if member.stale:
                        continue
                    member.turn.clear()
                    try:
                        async with asyncio.timeout(KEEPALIVE_SECONDS):
                            await member.turn.wait()
                    except TimeoutError:
                        yield KEEPALIVE
            finally:
                self._leave(member, group)

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Counts an open stream. Raises CallRefused when there are too many."""
        if self.open_streams >= MOST_STREAMS:
            raise CallRefused(
                503,
                "too_many_streams",
                f"{MOST_STREAMS} streams are open",
                hint="close some",
                headers={"retry-after": "5"},
            )
        self.open_streams += 1
        try:
            yield
        finally:
            self.open_streams -= 1

    @property
    def recent_events(self) -> tuple[Event, ...]:
        return tuple(self._events)

    async def event_turn(self, seconds: float) -> None:
        """Waits for the next event, at most so long."""
        turn = self._event_turn
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await turn.wait()

    def close(self) -> None:
        """Ends every stream."""
        self.closed.set()
        for group in self._groups.values():
            for member in group.members:
                member.turn.set()
        self._event_turn.set()

    def _join(self, member: Member, scope: Scope, interval: float) -> Group:
        key = (scope, interval)
        group = self._groups.get(key)
        if group is None:
            views = cut(self._look(), scope)
            group = self._groups[key] = Group(scope, interval, views, self._event_count, self._clock.monotonic())
            self._rush.set()
        group.members.add(member)
        return group

    def _leave(self, member: Member, group: Group) -> None:
        group.members.discard(member)
        if not group.members:
            self._groups.pop((group.scope, group.interval), None)

    def _snapshot(self, group: Group) -> bytes:
        if group.snapshot is None:
            # Events told after `told` would come twice: only those up to there.
            late = self._event_count - group.events_told
            known = list(self._events)[: max(0, len(self._events) - late)]
            events = [event for event in known if concerns(group.scope, group.told, event)]
            group.snapshot = sse("snapshot", snapshot_of(group.told, events).to_json())
        return group.snapshot

    # -- for the process -------------------------------------------------------------------------------------------

    def heard(self, snapshot: ClusterSnapshot, changed: Changed) -> None:
        """The watcher's listener."""
        if changed.durable or changed.resynced:
            self._rush.set()
        for name in changed.nodes:
            received = snapshot.reports.get(name)
            if received is not None and self._reports.get(name) != received.report.at:
                self._reports[name] = received.report.at
                self._measure(name, received.report.at - self._clock.wall())

    def _measure(self, node: str, skew: float) -> None:
        if abs(skew) < SKEW_SEEN_SECONDS:
            self.clock_skews.pop(node, None)
        else:
            self.clock_skews[node] = round(skew, 1)

    async def turn(self) -> None:
        """Waits until a group is due and tells it what is new."""
        now = self._clock.monotonic()
        due = min((group.last + group.interval for group in self._groups.values()), default=now + KEEPALIVE_SECONDS)
        rushed = False
        try:
            async with asyncio.timeout(max(0.0, due - now)):
                await self._rush.wait()
            rushed = True
        except TimeoutError:
            pass
        if rushed:
            latest = max((group.last for group in self._groups.values()), default=0.0)
            await asyncio.sleep(max(0.0, latest + RUSH_SECONDS - self._clock.monotonic()))
            self._rush.clear()
        jobs = self._jobs(everybody=rushed)
        if not jobs:
            return
        if self._size > LARGE:
            # Snapshots are immutable, so another thread may read them; lease and calls go on meanwhile.
            news = await asyncio.to_thread(self._work, jobs)
        else:
            news = self._work(jobs)
        self._apply(news)

    def tell(self, *, everybody: bool = False) -> None:
        """Tells the groups whose time has come (or all) what differs from what they know."""
        self._apply(self._work(self._jobs(everybody=everybody)))

    def _jobs(self, *, everybody: bool) -> list[_Job]:
        now = self._clock.monotonic()
        jobs: list[_Job] = []
        for group in self._groups.values():
            if everybody or now >= group.last + group.interval:
                group.last = now
                count = self._event_count - group.events_told
                jobs.append(_Job(group, list(self._events)[-count:] if count else [], self._event_count))
        return jobs

    def _work(self, jobs: list[_Job]) -> list[_News]:
        """Touches nothing that changes: it may run beside the loop."""
        if not jobs:
            return []
        views = self._look()
        cuts: dict[Scope, Views] = {}
        news: list[_News] = []
        for job in jobs:
            scope = job.group.scope
            seen = cuts.get(scope)
            if seen is None:
                seen = cuts[scope] = cut(views, scope)
            delta = difference(job.group.told, seen, [event for event in job.events if concerns(scope, seen, event)])
            message = None if delta is None else sse("delta", delta.to_json())
            news.append(_News(job.group, seen, job.events_told, message))
        self._size = len(views.nodes) + len(views.replicas)
        return news

    def _apply(self, news: list[_News]) -> None:
        for one in news:
            group = one.group
            group.told, group.events_told, group.snapshot = one.seen, one.events_told, None
            if one.message is not None:
                for member in group.members:
                    member.offer(one.message)

    async def follow_events(self) -> None:
        """Takes in every event of the store; does not end. Raises StoreUnavailable; go on by calling again."""
        if self._last_event is None:
            for event in await self._store.read_events(count=EVENTS_KEPT):
                self._take(event)
        async for event in self._store.follow_events(self._last_event or "0-0"):
            self._take(event)

    def _take(self, event: Event) -> None:
        self._events.append(event)
        self._event_count += 1
        self._last_event = event.id
        turn, self._event_turn = self._event_turn, asyncio.Event()
        turn.set()
        self._rush.set()

    async def follow_events_quietly(self) -> None:
        """As `follow_events`, for a supervisor: a store that is away is told by the watcher already."""
        try:
            await self.follow_events()
        except NebulaError as error:
            log.info("events_not_followed", error=str(error))
            await self._clock.sleep(1.0)
