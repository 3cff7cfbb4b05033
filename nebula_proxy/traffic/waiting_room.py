"""The waiting room: requests for which no replica has room right now, one line per deployment.

Who waits costs a place in a line: no task, no timer, no future. A line moves when something *changes* for its replicas: a
request ends, a sample or an endpoint arrives. Then the first in line is asked to take its turn, which is the same
picking every request goes through; who finds no replica stays first, and the rest need not be asked. Changes that
nothing announces (a sample grows old, an ejected endpoint becomes due) are found by the sweep, which also ends what
has waited too long. While a line stands, newcomers join it, so that nobody overtakes.

The order and how many may wait are decided in `decisions/waiting`; here is the state of this process.
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple, Protocol

from nebula_core.records.deployment import Limits as ReplicaLimits
from nebula_proxy.decisions import refusal as refusals
from nebula_proxy.decisions.refusal import Refusal
from nebula_proxy.decisions.waiting import DrainRate, Line, Place, patience, room_for, seconds_until_served
from nebula_proxy.traffic.meters import ModelMeter

#: Turns taken in one go; then the loop gets to breathe.
TURNS = 64


class Hold(StrEnum):
    """Why a request cannot go on yet; one word, for the metric."""

    #: All replicas that may be tried are full.
    SATURATED = "saturated"
    #: None is ready, but one is starting.
    STARTING = "starting"


class RoomLimits(NamedTuple):
    """Bounds of the room, per deployment and process unless said otherwise; a deployment may have its own."""

    #: Requests; 0 is no room at all.
    places: int = 128
    #: Bytes of bodies, over all models.
    held_bytes: int = 64 * 1024 * 1024
    #: Longest wait for a full replica, and for the first one that starts.
    seconds: float = 10.0
    starting_seconds: float = 5.0


class Waiting(Protocol):
    """A request, as the room sees it."""

    place: "Place[Waiting] | None"
    #: In the room, altogether; None before it has been there.
    wait_seconds: float | None
    body: bytes
    meter: ModelMeter

    def take_turn(self) -> bool:
        """Tries to go on; False when it must go on waiting. Never raises."""

    def end_waiting(self, refusal: Refusal | None) -> None:
        """It must leave the room unserved; None: because its time there is over."""


class _Room:
    """Of one deployment: its adapters share its replicas, so they stand in its line."""

    __slots__ = ("drain", "line", "scheduled", "served")

    def __init__(self) -> None:
        self.line: Line[Waiting] = Line()
        self.drain = DrainRate()
        #: Requests that have ended after an engine had them.
        self.served = 0
        #: A round of turns will be held as soon as the loop is free.
        self.scheduled = False


class WaitingRoom:
    def __init__(self, limits: RoomLimits, roll: Callable[[], float]) -> None:
        self.limits = limits
        #: Who waits, over all models: what a request that ends looks at.
        self.waiting = 0
        self._roll = roll
        self._rooms: dict[str, _Room] = {}
        self._held_bytes = 0

    # In and out

    def stands(self, deployment: str) -> bool:
        """Whether somebody waits for its replicas: then nobody may go past."""
        room = self._rooms.get(deployment)
        return room is not None and len(room.line) > 0

    def hold(
        self,
        holder: Waiting,
        why: Hold,
        *,
        model: str,
        deployment: str,
        own: ReplicaLimits,
        starting: int,
        key: str,
        priority: int,
        cost: float,
        wish: float | None,
        now: float,
    ) -> Refusal | None:
        """Lets a request wait, or says why it may not. `own` are the limits of the model's deployment.

        `wish` is the longest its client wants to wait, `starting` how many replicas are on their way.
        """
        limits = self.limits
        places = limits.places if own.room is None else own.room
        seconds = limits.seconds if own.wait_seconds is None else own.wait_seconds
        if why is Hold.STARTING:
            seconds = min(seconds, limits.starting_seconds)
        longest = seconds if wish is None else min(wish, seconds)
        room = self._room(deployment)
        if places == 0 or longest <= 0:
            return self._no_room(why, model, room, starting)
        line = room.line
        drain = room.drain.per_second() if why is Hold.SATURATED else None
        bound = room_for(places, drain, min(longest, patience(seconds, line.standing_since, now)))
        place = Place(holder, key=key, priority=priority, cost=cost, since=now, deadline=now + longest)
        if self._held_bytes + len(holder.body) > limits.held_bytes:
            return self._full(why, model, room, priority, starting)
        out = line.join(place, bound)
        if out is place:
            return self._full(why, model, room, priority, starting)
        self._enter(place, why)
        if out is not None:
            self._left(out, now)
            out.holder.end_waiting(self._full(why, model, room, out.priority, starting))
        return None

    def served(self, place: Place[Waiting], now: float) -> None:
        """Who stands there has got its replica."""
        if place.line is not None:
            place.line.served(place)
        place.holder.meter.admission("admit", "waited")
        self._left(place, now)

    def leave(self, place: Place[Waiting], now: float) -> None:
        """Who stands there waits no more, whatever the reason."""
        if place.line is not None:
            place.line.leave(place)
        self._left(place, now)

    # What moves the lines

    def ended(self, deployment: str, *, served: bool) -> None:
        """A request has left its replica; `served` is one that an engine had."""
        room = self._rooms.get(deployment)
        if room is None:
            room = self._room(deployment)
        room.served += served
        if room.line and not room.scheduled:
            self._schedule(room)

    def _schedule(self, room: _Room) -> None:
        room.scheduled = True
        # Not at once: whoever says this is often in the middle of ending its own request.
        asyncio.get_running_loop().call_soon(self._turns, room)

    def all_changed(self) -> None:
        """There is a new table: anything may have come for any model."""
        if self.waiting:
            for room in self._rooms.values():
                if room.line and not room.scheduled:
                    self._schedule(room)

    def sweep(self, now: float) -> None:
        """Once a second: drain rates, deadlines, and the changes that nothing announces."""
        for deployment, room in list(self._rooms.items()):
            room.drain.read(now, room.served)
            if room.drain.is_still and not room.line and not room.scheduled:
                del self._rooms[deployment]  # quiet, or gone
        if not self.waiting:
            return
        for room in self._rooms.values():
            for place in room.line.expired(now):
                room.line.leave(place)
                self._left(place, now)
                place.holder.end_waiting(None)
        self.all_changed()

    def _turns(self, room: _Room) -> None:
        room.scheduled = False
        line = room.line
        for _ in range(TURNS):
            place = line.first()
            if place is None or not place.holder.take_turn():
                return
        self._schedule(room)

    def _room(self, deployment: str) -> _Room:
        room = self._rooms.get(deployment)
        if room is None:
            room = self._rooms[deployment] = _Room()
        return room

    # To be seen

    def retry_after(self, deployment: str) -> int:
        """Seconds until a newcomer would be served, as its replicas drain now; jittered, 1..60."""
        return self._retry_after(self._rooms.get(deployment), 0)

    def _retry_after(self, room: _Room | None, priority: int) -> int:
        seconds = None if room is None else seconds_until_served(room.line.ahead(priority), room.drain.per_second())
        return refusals.jittered(2.0 if seconds is None else seconds, self._roll())

    def _no_room(self, why: Hold, model: str, room: _Room, starting: int) -> Refusal:
        if why is Hold.STARTING:
            return refusals.model_starting(model, starting, self._roll())
        return refusals.overloaded(model, self._retry_after(room, 0))

    def _full(self, why: Hold, model: str, room: _Room, priority: int, starting: int) -> Refusal:
        if why is Hold.STARTING:
            return refusals.model_starting(model, starting, self._roll())
        return refusals.queue_full(model, len(room.line), self._retry_after(room, priority))

    def _enter(self, place: Place[Waiting], why: Hold) -> None:
        holder = place.holder
        holder.place = place
        holder.meter.admission("wait", why)
        holder.meter.waiting += 1
        self.waiting += 1
        self._held_bytes += len(holder.body)

    def _left(self, place: Place[Waiting], now: float) -> None:
        holder = place.holder
        holder.place = None
        seconds = now - place.since
        holder.wait_seconds = seconds + (holder.wait_seconds or 0.0)
        holder.meter.wait.observe(seconds)
        holder.meter.waiting -= 1
        self.waiting -= 1
        self._held_bytes -= len(holder.body)
