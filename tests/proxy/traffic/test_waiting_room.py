"""The room by itself: what it tells those it turns away follows how fast the replicas drain."""

import asyncio

import pytest

from nebula_core.records.deployment import Limits as ReplicaLimits
from nebula_proxy.decisions.refusal import Refusal
from nebula_proxy.decisions.waiting import Place
from nebula_proxy.traffic.meters import ModelMeter
from nebula_proxy.traffic.waiting_room import Hold, RoomLimits, Waiting, WaitingRoom


class Request:
    def __init__(self, meter: ModelMeter) -> None:
        self.place: Place[Waiting] | None = None
        self.wait_seconds: float | None = None
        self.body = b"x" * 100
        self.meter = meter
        self.refusal: Refusal | None = None
        self.over = False

    def take_turn(self) -> bool:
        return False

    def end_waiting(self, refusal: Refusal | None) -> None:
        self.refusal = refusal
        self.over = True


def hold(room: WaitingRoom, request: Request, now: float, *, priority: int = 0, wish: float | None = None):
    return room.hold(
        request,
        Hold.SATURATED,
        model="m",
        deployment="m",
        own=ReplicaLimits(),
        starting=0,
        key="k",
        priority=priority,
        cost=1.0,
        wish=wish,
        now=now,
    )


@pytest.fixture
def meter() -> ModelMeter:
    return ModelMeter("m")


def drained(room: WaitingRoom, per_second: int, until: int) -> None:
    for second in range(until + 1):
        room.sweep(float(second))
        for _ in range(per_second):
            room.ended("m", served=True)


async def test_room_and_retry_after_follow_the_drain_rate(meter: ModelMeter) -> None:
    room = WaitingRoom(RoomLimits(places=100, seconds=10.0), lambda: 0.5)
    assert room.retry_after("m") == 2, "unknown"
    drained(room, 2, 6)
    assert room.retry_after("m") == 1
    refused = None
    held = 0
    while refused is None:
        refused = hold(room, Request(meter), 6.0)
        held += refused is None
    assert held == 20, "two a second for ten seconds"
    assert (refused.status, refused.code, refused.retry_after) == (429, "queue_full", 11)
    # Ten seconds later nobody has been served: a standing queue is given a tenth of the patience.
    room.sweep(15.0)
    late = hold(room, Request(meter), 16.5)
    assert late is not None
    assert late.code == "queue_full"


async def test_who_wants_to_wait_less_is_told_sooner(meter: ModelMeter) -> None:
    room = WaitingRoom(RoomLimits(places=100, seconds=10.0), lambda: 0.5)
    drained(room, 2, 6)
    for _ in range(4):
        assert hold(room, Request(meter), 6.0) is None
    refused = hold(room, Request(meter), 6.0, wish=2.0)
    assert refused is not None, "four ahead at two a second: not within two seconds"
    assert hold(room, Request(meter), 6.0) is None


async def test_a_quiet_room_is_forgotten_and_a_waiting_one_is_not(meter: ModelMeter) -> None:
    room = WaitingRoom(RoomLimits(), lambda: 0.5)
    drained(room, 1, 1)
    request = Request(meter)
    assert hold(room, request, 2.0) is None
    for second in range(2, 10):
        room.sweep(float(second))
    assert room.waiting == 1
    assert meter.waiting == 1
    room.sweep(12.5)
    assert request.over
    assert (room.waiting, meter.waiting) == (0, 0)
    assert request.wait_seconds == pytest.approx(10.5)
    for second in range(13, 25):
        room.sweep(float(second))
        await asyncio.sleep(0)
    assert not room._rooms
