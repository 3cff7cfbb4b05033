"""Who waits for a replica, in which order, and how many may: the line of one model.

**Theory.** A room to wait exists for bursts. It has a bound, so that memory and time are bounded, and an order, so that
waiting is just:

* *Classes first.* A higher priority is served before every lower one. Nobody starves for ever: each waits only until
  its deadline.
* *Fair among keys inside a class.* Start-time fair queueing (Goyal, Vin, Cheng 1996): every key has a tag, the virtual
  time at which its next request may start; the lowest tag is served, and moves its key on by the cost of the request
  (its estimated tokens). Two keys that both wait never get more apart than their largest request each. A key that
  comes back gets no credit for the time it was away.
* *Full means: the one who holds most gives.* An arrival pushes out the newest request of the longest queue in the
  lowest class, if its own class is higher, or the same while its key holds at least two less. Otherwise it is
  turned away itself. So neither a low class nor a greedy key can fill the room against others.

How many may wait follows the drain rate: who would still be here when patience ends is better told at once. Patience
is the whole deadline at first; once the room has not been empty for that long, the queue is no burst but a standing one,
which adds waiting and no throughput (CoDel, Nichols and Jacobson 2012), and patience shrinks to a tenth.

Everything here is a value in memory: deterministic, no clock, no I/O; `now` is an argument.
"""

import heapq
from collections import OrderedDict, deque
from typing import Generic, TypeVar

Holder = TypeVar("Holder")

#: Completions are counted over so many seconds.
DRAIN_WINDOW_SECONDS = 5.0
#: Part of the deadline that a standing queue may cost.
STANDING_PART = 0.1
#: However slow a model drains, so many may wait: else a model that answers once a minute had no room at all.
LEAST_ROOM = 2
#: So many keys that were served ahead of others are remembered in a class; beyond it all begin anew.
REMEMBERED_KEYS = 1024


class Place(Generic[Holder]):
    """One request in line."""

    __slots__ = ("cost", "deadline", "holder", "key", "line", "priority", "queue", "since")

    def __init__(self, holder: Holder, *, key: str, priority: int, cost: float, since: float, deadline: float) -> None:
        self.holder = holder
        self.key = key
        self.priority = priority
        #: What serving it takes from its key's share, above 0; its estimated tokens.
        self.cost = cost
        #: Monotonic seconds.
        self.since = since
        self.deadline = deadline
        #: Where it stands; None before it has joined, and once it has left.
        self.line: Line[Holder] | None = None
        self.queue: _Queue[Holder] | None = None


class _Queue(Generic[Holder]):
    """The waiting requests of one key in one class, in order of arrival."""

    __slots__ = ("key", "places", "tag")

    def __init__(self, key: str, tag: float) -> None:
        self.key = key
        #: Virtual time at which its first request may start.
        self.tag = tag
        self.places: OrderedDict[Place[Holder], None] = OrderedDict()


class _Class(Generic[Holder]):
    """The queues of one priority."""

    __slots__ = ("_arrivals", "_heap", "_past", "_virtual", "queues", "waiting")

    def __init__(self) -> None:
        self.queues: dict[str, _Queue[Holder]] = {}
        self.waiting = 0
        self._virtual = 0.0
        # Every queue stands in the heap once; one that was emptied by leaving goes when it is met.
        self._heap: list[tuple[float, int, _Queue[Holder]]] = []
        self._arrivals = 0
        # Tags of keys that have nothing here any more but were served ahead of the others.
        self._past: dict[str, float] = {}

    def add(self, place: Place[Holder]) -> None:
        queue = self.queues.get(place.key)
        if queue is None:
            tag = max(self._virtual, self._past.pop(place.key, 0.0))
            queue = self.queues[place.key] = _Queue(place.key, tag)
            self._push(queue)
        queue.places[place] = None
        place.queue = queue
        self.waiting += 1

    def first(self) -> Place[Holder] | None:
        heap = self._heap
        while heap:
            queue = heap[0][2]
            if queue.places:
                return next(iter(queue.places))
            heapq.heappop(heap)
        return None

    def remove(self, place: Place[Holder], *, served: bool) -> None:
        queue = place.queue
        if queue is None:
            return
        place.queue = None
        del queue.places[place]
        self.waiting -= 1
        if served:
            self._virtual = max(self._virtual, queue.tag)
            queue.tag += place.cost
            self._replace(queue)
        if not queue.places:
            self._leave(queue)

    def _push(self, queue: _Queue[Holder]) -> None:
        self._arrivals += 1
        heapq.heappush(self._heap, (queue.tag, self._arrivals, queue))

    def _replace(self, queue: _Queue[Holder]) -> None:
        """The queue's tag has changed. It is the first one, unless somebody was served out of turn."""
        heap = self._heap
        if heap[0][2] is queue:
            heapq.heappop(heap)
        else:
            heap[:] = [entry for entry in heap if entry[2] is not queue]
            heapq.heapify(heap)
        self._push(queue)

    def _leave(self, queue: _Queue[Holder]) -> None:
        del self.queues[queue.key]
        if not self.waiting:
            # Nobody competes: whoever comes next begins anew.
            self._heap.clear()
            self._past.clear()
            self._virtual = 0.0
            return
        if queue.tag > self._virtual:
            self._past[queue.key] = queue.tag
            if len(self._past) > REMEMBERED_KEYS:
                self._past.clear()
        if len(self._heap) > 64 + 2 * len(self.queues):
            self._heap = [entry for entry in self._heap if entry[2].places]
            heapq.heapify(self._heap)


class Line(Generic[Holder]):
    """All that waits for one model."""

    __slots__ = ("_classes", "_order", "standing_since")

    def __init__(self) -> None:
        self._classes: dict[int, _Class[Holder]] = {}
        #: Priorities in `_classes`, highest first.
        self._order: list[int] = []
        #: Since when somebody has been waiting without a break; None while nobody does.
        self.standing_since: float | None = None

    def __len__(self) -> int:
        return sum(group.waiting for group in self._classes.values())

    def __bool__(self) -> bool:
        return bool(self._classes)

    def join(self, place: Place[Holder], bound: int) -> Place[Holder] | None:
        """Takes a place among at most `bound`; returns who must go for it: nobody, another one, or `place` itself."""
        out: Place[Holder] | None = None
        if len(self) >= bound:
            out = self._gives_way(place)
            if out is None:
                return place
            self.leave(out)
        group = self._classes.get(place.priority)
        if group is None:
            group = self._classes[place.priority] = _Class()
            self._order = sorted(self._classes, reverse=True)
        if self.standing_since is None:
            self.standing_since = place.since
        group.add(place)
        place.line = self
        return out

    def first(self) -> Place[Holder] | None:
        """Whose turn it is."""
        for priority in self._order:
            found = self._classes[priority].first()
            if found is not None:
                return found
        return None

    def served(self, place: Place[Holder]) -> None:
        """It got its replica: its key has had its turn."""
        self._remove(place, served=True)

    def leave(self, place: Place[Holder]) -> None:
        """It gives up its place, unserved. Leaving twice is harmless."""
        self._remove(place, served=False)

    def expired(self, now: float) -> list[Place[Holder]]:
        """Whose deadline has passed."""
        return [place for place in self.places() if place.deadline <= now]

    def places(self) -> list[Place[Holder]]:
        return [
            place
            for priority in self._order
            for queue in self._classes[priority].queues.values()
            for place in queue.places
        ]

    def ahead(self, priority: int) -> int:
        """How many are served before a newcomer of this priority, at most."""
        return sum(group.waiting for level, group in self._classes.items() if level >= priority)

    def _remove(self, place: Place[Holder], *, served: bool) -> None:
        if place.queue is None:
            return
        group = self._classes[place.priority]
        group.remove(place, served=served)
        place.line = None
        if not group.waiting:
            del self._classes[place.priority]
            self._order = sorted(self._classes, reverse=True)
            if not self._order:
                self.standing_since = None

    def _gives_way(self, place: Place[Holder]) -> Place[Holder] | None:
        if not self._order:
            return None  # a bound of 0
        lowest = self._order[-1]
        if place.priority < lowest:
            return None
        group = self._classes[lowest]
        longest = max(group.queues.values(), key=lambda queue: len(queue.places))
        if place.priority == lowest:
            mine = group.queues.get(place.key)
            if len(longest.places) < (0 if mine is None else len(mine.places)) + 2:
                return None
        return next(reversed(longest.places))


class DrainRate:
    """Completions per second over the last seconds, from a counter that is read now and then."""

    __slots__ = ("_readings",)

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque()

    def read(self, now: float, completed: int) -> None:
        self._readings.append((now, completed))
        while len(self._readings) > 2 and now - self._readings[1][0] >= DRAIN_WINDOW_SECONDS:
            self._readings.popleft()

    @property
    def is_still(self) -> bool:
        """Nothing was completed for the whole window."""
        (began, before), (ended, after) = self._readings[0], self._readings[-1]
        return after == before and ended - began >= DRAIN_WINDOW_SECONDS

    def per_second(self) -> float | None:
        """None is unknown: too few readings, or nothing was completed."""
        if len(self._readings) < 2:
            return None
        (began, before), (ended, after) = self._readings[0], self._readings[-1]
        if after <= before or ended <= began:
            return None
        return (after - before) / (ended - began)


def patience(wait_seconds: float, standing_since: float | None, now: float) -> float:
    """How long a newcomer may be made to wait: the whole deadline in a burst, a tenth of it in a standing queue."""
    if standing_since is None or now - standing_since < wait_seconds:
        return wait_seconds
    return wait_seconds * STANDING_PART


def room_for(bound: int, drain: float | None, patient_seconds: float) -> int:
    """How many may wait: those who will be served in time, as far as is known, and never more than `bound`."""
    if drain is None:
        return bound
    return min(bound, max(LEAST_ROOM, int(drain * patient_seconds)))


def seconds_until_served(ahead: int, drain: float | None) -> float | None:
    """When a request behind `ahead` others is served; None is unknown."""
    return None if drain is None else (ahead + 1) / drain
