"""The waiting line: its order and its bounds are laws."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nebula_proxy.decisions.waiting import (
    DRAIN_WINDOW_SECONDS,
    LEAST_ROOM,
    REMEMBERED_KEYS,
    DrainRate,
    Line,
    Place,
    patience,
    room_for,
    seconds_until_served,
)

KEYS = st.sampled_from(["a", "b", "c", "d"])
PRIORITIES = st.integers(-2, 2)
COSTS = st.integers(1, 50).map(float)


def place(name: int, key: str = "a", priority: int = 0, cost: float = 1.0, since: float = 0.0, wait: float = 10.0):
    return Place(name, key=key, priority=priority, cost=cost, since=since, deadline=since + wait)


class TheLine(RuleBasedStateMachine):
    """Beside a model that knows only sets: who waits, and what each was promised."""

    def __init__(self) -> None:
        super().__init__()
        self.line: Line[int] = Line()
        self.inside: dict[int, Place[int]] = {}
        self.names = 0
        self.now = 0.0
        self.bound = 1

    @initialize(bound=st.integers(0, 8))
    def begin(self, bound: int) -> None:
        self.bound = bound

    @rule(key=KEYS, priority=PRIORITIES, cost=COSTS, wait=st.integers(0, 9))
    def join(self, key: str, priority: int, cost: float, wait: int) -> None:
        self.names += 1
        mine = place(self.names, key, priority, cost, self.now, wait)
        before = dict(self.inside)
        out = self.line.join(mine, self.bound)
        full = len(before) >= self.bound
        assert (out is None) == (not full)
        if out is not mine:
            self.inside[self.names] = mine
        if out is None or out is mine:
            if out is mine and before:
                # Turned away only where nobody lower waits, and nobody of its class who holds clearly more.
                assert priority <= min(one.priority for one in before.values())
                held = Counter(one.key for one in before.values() if one.priority == priority)
                assert all(count < held[key] + 2 for count in held.values())
            return
        del self.inside[out.holder]
        lowest = min(one.priority for one in before.values())
        assert out.priority == lowest <= priority
        assert out.queue is None
        held = Counter(one.key for one in before.values() if one.priority == lowest)
        assert held[out.key] == max(held.values())
        assert not any(
            one.since > out.since for one in before.values() if (one.key, one.priority) == (out.key, out.priority)
        )

    @precondition(lambda self: self.inside)
    @rule()
    def serve(self) -> None:
        first = self.line.first()
        assert first is not None
        assert first.priority == max(one.priority for one in self.inside.values())
        older = [
            one.holder
            for one in self.inside.values()
            if (one.key, one.priority) == (first.key, first.priority) and one.holder < first.holder
        ]
        assert not older, "inside one key and class the order of arrival is kept"
        self.line.served(first)
        del self.inside[first.holder]

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.inside)))
        gone = self.inside.pop(name)
        self.line.leave(gone)
        self.line.leave(gone)
        self.line.served(gone)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def serve_out_of_turn(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.inside)))
        self.line.served(self.inside.pop(name))

    @rule(seconds=st.integers(0, 5))
    def later(self, seconds: int) -> None:
        self.now += seconds
        due = {one.holder for one in self.inside.values() if one.deadline <= self.now}
        expired = self.line.expired(self.now)
        assert {one.holder for one in expired} == due
        for one in expired:
            self.line.leave(one)
            del self.inside[one.holder]

    @invariant()
    def same(self) -> None:
        assert len(self.line) == len(self.inside) <= self.bound
        assert {one.holder for one in self.line.places()} == set(self.inside)
        assert (self.line.first() is None) == (not self.inside)
        assert (self.line.standing_since is None) == (not self.inside)


TestTheLine = TheLine.TestCase
TestTheLine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(
    work=st.lists(st.tuples(KEYS, COSTS), min_size=2, max_size=80),
    late=st.lists(st.tuples(KEYS, COSTS), max_size=20),
    served=st.integers(0, 60),
)
def test_keys_that_both_wait_stay_within_their_largest_requests(
    work: list[tuple[str, float]], late: list[tuple[str, float]], served: int
) -> None:
    line: Line[int] = Line()
    for number, (key, cost) in enumerate(work):
        line.join(place(number, key, cost=cost), 1000)
    for number, (key, cost) in enumerate(late):
        if number < served and (first := line.first()) is not None:
            line.served(first)
        line.join(place(1000 + number, key, cost=cost), 1000)
    largest = max(cost for _, cost in [*work, *late])
    got: Counter[str] = Counter()
    waiting = {one.key for one in line.places()}
    while len(waiting) > 1:
        first = line.first()
        assert first is not None
        line.served(first)
        got[first.key] += first.cost
        waiting &= {one.key for one in line.places()}
        if len(waiting) > 1:
            shares = [got[key] for key in waiting]
            # Goyal 1996, theorem 1, counted from any moment at which both wait: once at each end of the interval.
            assert max(shares) - min(shares) <= 2 * 2 * largest


def test_a_greedy_key_shares_with_one_that_comes_late() -> None:
    line: Line[int] = Line()
    for number in range(10):
        line.join(place(number, "greedy"), 100)
    for _ in range(4):
        line.served(line.first())  # type: ignore[arg-type]
    for number in range(20, 23):
        line.join(place(number, "late"), 100)
    order = []
    while (first := line.first()) is not None:
        line.served(first)
        order.append(first.key)
    assert order[:6].count("late") == 3, "no credit for the time away, and no debt either"


def test_a_full_room_is_not_one_keys() -> None:
    line: Line[int] = Line()
    for number in range(4):
        assert line.join(place(number, "greedy"), 4) is None
    pushed = line.join(place(10, "other"), 4)
    assert pushed is not None
    assert (pushed.key, pushed.holder) == ("greedy", 3), "its newest gives way"
    assert line.join(place(11, "other"), 4) is not None
    last = place(12, "greedy")
    assert line.join(last, 4) is last


def test_a_higher_class_is_served_first_and_pushes_out() -> None:
    line: Line[int] = Line()
    line.join(place(1, priority=-5), 2)
    line.join(place(2, priority=0), 2)
    pushed = line.join(place(3, priority=7), 2)
    assert pushed is not None
    assert pushed.holder == 1
    assert [one.holder for one in line.places()] == [3, 2]
    low = place(4, priority=-1)
    assert line.join(low, 2) is low


def test_nobody_waits_where_there_is_no_room() -> None:
    line: Line[int] = Line()
    only = place(1)
    assert line.join(only, 0) is only
    assert line.first() is None


def test_a_key_that_is_forgotten_costs_no_memory() -> None:
    line: Line[int] = Line()
    line.join(place(0, "stays", cost=1e9), 10)
    for number in range(5000):
        line.join(place(number, f"key{number}", cost=5.0), 10)
        one = line.first()
        assert one is not None
        line.served(one)
    group = next(iter(line._classes.values()))
    assert len(group._past) <= REMEMBERED_KEYS
    assert len(group._heap) < 200


def test_the_drain_rate_is_that_of_the_last_seconds() -> None:
    drain = DrainRate()
    assert drain.per_second() is None
    drain.read(0.0, 0)
    assert drain.per_second() is None
    for second in range(1, 30):
        drain.read(float(second), second * 4)
    assert drain.per_second() == pytest.approx(4.0)
    for second in range(30, 30 + int(DRAIN_WINDOW_SECONDS) + 1):
        drain.read(float(second), 29 * 4)
    assert drain.per_second() is None, "nothing completed: unknown, not for ever"


def test_patience_is_short_in_a_standing_queue_only() -> None:
    assert patience(10.0, None, 100.0) == 10.0
    assert patience(10.0, 95.0, 100.0) == 10.0
    assert patience(10.0, 90.0, 100.0) == pytest.approx(1.0)


@given(bound=st.integers(0, 500), drain=st.none() | st.floats(0.001, 1e4), seconds=st.floats(0, 600))
def test_room_is_never_above_its_bound(bound: int, drain: float | None, seconds: float) -> None:
    room = room_for(bound, drain, seconds)
    assert 0 <= room <= bound
    if drain is not None:
        assert room <= max(LEAST_ROOM, drain * seconds)


def test_who_would_wait_too_long_is_told_at_once() -> None:
    assert room_for(128, 20.0, 10.0) == 128
    assert room_for(128, 2.0, 10.0) == 20
    assert room_for(128, 0.01, 10.0) == LEAST_ROOM
    assert room_for(0, 20.0, 10.0) == 0
    assert seconds_until_served(9, 2.0) == 5.0
    assert seconds_until_served(9, None) is None
