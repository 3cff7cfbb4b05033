"""What one worker may spend of a key's limits, beside a store that is only arithmetic here."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nebula_core.records.access import KeyLimits
from nebula_core.records.lease import Claim, Slice
from nebula_proxy.decisions.limits import (
    LEASE_SECONDS,
    NEWS_SECONDS,
    REST_SECONDS,
    TRUSTED_SECONDS,
    Answer,
    Limited,
    Resource,
    Share,
    Taken,
)


def told(share: Share, now: float, **answer: int) -> Claim:
    claim = share.claim(now, 1)
    fields = dict.fromkeys(Slice._fields, 0) | answer
    share.told(Slice(**fields), now)
    return claim


def fresh(now: float = 0.0, **limits: int) -> Share:
    return Share("k", KeyLimits(**limits))


def test_nothing_is_spent_before_the_store_has_answered() -> None:
    share = fresh(requests_per_minute=60)
    assert share.take(0, 0.0, 1, stream=False) is Answer.ASK
    share.need(0, stream=False)
    assert share.is_due(0.0)
    claim = told(share, 0.0, granted_requests=4, requests_left=56)
    share.need(0, stream=False, sign=-1)
    assert claim.requests == (60, 0, 0, 1 + 3), "what waits, and a twentieth at rest"
    for _ in range(4):
        assert isinstance(share.take(0, 0.1, 1, stream=False), Taken)
    assert share.take(0, 0.1, 1, stream=False) is Answer.ASK, "the store has more"


def test_the_store_has_no_more() -> None:
    share = fresh(requests_per_minute=60)
    told(share, 10.0, granted_requests=1, requests_left=0)
    assert isinstance(share.take(0, 10.0, 1, stream=False), Taken)
    found = share.take(0, 10.0, 1, stream=False)
    assert found == Limited(Resource.REQUESTS, 60, pytest.approx(1.0))
    assert share.take(0, 10.0 + NEWS_SECONDS + 0.01, 1, stream=False) is Answer.ASK, "old news are no news"


def test_tokens_are_reserved_and_settled() -> None:
    share = fresh(tokens_per_minute=1000)
    assert share.reserve(5000) == 750, "one larger than the budget goes when most of that is there"
    told(share, 0.0, granted_tokens=1000)
    first = share.take(600, 0.0, 1, stream=False)
    assert isinstance(first, Taken)
    found = share.take(600, 0.0, 1, stream=False)
    assert isinstance(found, Limited)
    assert found.resource is Resource.TOKENS
    assert found.seconds == pytest.approx(200 * 60 / 1000)
    share.settle(first, 100)
    second = share.take(600, 0.0, 1, stream=False)
    assert isinstance(second, Taken)
    share.settle(second, None)
    assert share.claim(0.0, 1).tokens.spent == 100, "an error gives everything back"


def test_streams_are_slots() -> None:
    share = fresh(max_streams=2)
    told(share, 0.0, streams=1, streams_left=0)
    first = share.take(0, 0.0, 1, stream=True)
    assert isinstance(first, Taken)
    assert isinstance(share.take(0, 0.0, 1, stream=False), Taken), "a plain answer is no stream"
    found = share.take(0, 0.0, 1, stream=True)
    assert isinstance(found, Limited)
    assert found.resource is Resource.STREAMS
    assert found.limit == 2
    share.settle(first, 0)
    assert share.is_due(0.0), "others wait for the slot"
    assert isinstance(share.take(0, 0.0, 1, stream=True), Taken)


def test_alone_with_an_even_share() -> None:
    share = fresh(requests_per_minute=60, tokens_per_minute=6000, max_streams=4)
    share.not_told()
    taken = [share.take(100, 0.0, 2, stream=False) for _ in range(31)]
    assert sum(isinstance(one, Taken) for one in taken) == 30
    assert isinstance(taken[30], Limited)
    assert isinstance(share.take(100, 2.0, 2, stream=False), Taken), "refilled with half the rate"
    assert isinstance(share.take(100, 2.0, 2, stream=False), Limited)
    streams = [share.take(100, 60.0, 2, stream=True) for _ in range(3)]
    assert [isinstance(one, Taken) for one in streams] == [True, True, False]
    assert share.claim(60.0, 2).requests.spent == 0, "what was spent alone is not owed"


def test_a_share_below_one_is_one() -> None:
    share = fresh(requests_per_minute=2, max_streams=1)
    share.not_told()
    assert isinstance(share.take(0, 0.0, 8, stream=True), Taken)
    assert isinstance(share.take(0, 0.0, 8, stream=False), Limited)


def test_a_worker_that_was_frozen_spends_nothing_of_an_old_lease() -> None:
    share = fresh(requests_per_minute=60)
    told(share, 0.0, granted_requests=10)
    assert TRUSTED_SECONDS < LEASE_SECONDS
    assert share.take(0, TRUSTED_SECONDS + 0.1, 1, stream=False) is Answer.ASK
    assert share.claim(20.0, 1).requests.kept == 0


def test_a_key_at_rest_gives_everything_back() -> None:
    share = fresh(requests_per_minute=600)
    told(share, 0.0, granted_requests=30)
    assert share.take(0, 0.0, 1, stream=False)
    assert share.is_due(4.0)
    claim = told(share, 4.0, granted_requests=31)
    assert claim.requests == (600, 1, 29, 30)
    assert told(share, REST_SECONDS + 1).requests == (600, 1, 0, 0)
    assert not share.is_due(REST_SECONDS + 20)
    assert share.is_idle(REST_SECONDS * 3)


def test_a_changed_limit_is_followed() -> None:
    share = fresh(requests_per_minute=60)
    told(share, 0.0, granted_requests=5)
    share.take(0, 0.0, 1, stream=False)
    share.follow(KeyLimits(requests_per_minute=10, tokens_per_minute=100))
    claim = share.claim(0.0, 1)
    assert (claim.requests.limit, claim.requests.spent) == (10, 1)
    assert claim.tokens.limit == 100
    share.follow(KeyLimits(max_streams=1))
    assert share.claim(0.0, 1).requests.limit is None


def test_what_is_left_for_the_client() -> None:
    share = fresh(requests_per_minute=60, tokens_per_minute=600)
    told(share, 0.0, granted_requests=3, requests_left=27, granted_tokens=0, tokens_left=-60)
    requests, tokens = share.remaining(0.0)
    assert requests == (60, 30, 30.0)
    assert tokens == (600, 0, 60.0)
    requests, tokens = share.remaining(6.0)
    assert requests == (60, 36, 24.0)


class TwoWorkers(RuleBasedStateMachine):
    """Two shares and the arithmetic of the script: bucket + slices never exceed the limit, whatever gets lost."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.limit = 1
        self.left = 0.0
        self.at = 0.0
        self.granted: dict[int, int] = {}
        self.seen: dict[int, int] = {}
        self.shares: list[Share] = []
        self.open: list[tuple[Share, Taken]] = []
        self.taken = 0
        self.refunded = 0

    @initialize(limit=st.integers(1, 100))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.left = float(limit)
        self.shares = [fresh(requests_per_minute=limit) for _ in range(2)]

    @rule(number=st.integers(0, 1), lost=st.booleans())
    def talk(self, number: int, lost: bool) -> None:
        share = self.shares[number]
        claim = share.claim(self.now, 2).requests
        left = self.left + (self.now - self.at) * self.limit / 60
        if number in self.granted:
            left += self.granted[number] - claim.spent - claim.kept
        others = sum(max(0, self.granted[n] - self.seen[n]) for n in self.granted if n != number)
        left = min(left, self.limit - others - claim.kept)
        grant = max(0, min(claim.wanted - claim.kept, int(left // 1)))
        self.left, self.at = left - grant, self.now
        self.granted[number], self.seen[number] = claim.spent + claim.kept + grant, claim.spent
        if not lost:
            share.told(Slice(self.granted[number], 0, 0, int(self.left // 1), 0, 0), self.now)

    @rule(number=st.integers(0, 1), count=st.integers(1, 30))
    def take(self, number: int, count: int) -> None:
        share = self.shares[number]
        for _ in range(count):
            found = share.take(0, self.now, 2, stream=False)
            if isinstance(found, Taken):
                self.taken += 1
                self.open.append((share, found))
            elif found is Answer.ASK:
                share.need(0, stream=False)
                self.talk(number, lost=False)
                share.need(0, stream=False, sign=-1)

    @precondition(lambda self: self.open)
    @rule(never_ran=st.booleans())
    def end(self, never_ran: bool) -> None:
        share, taken = self.open.pop(0)
        share.settle(taken, None if never_ran else 5)
        self.refunded += never_ran

    @rule(seconds=st.floats(0, 20))
    def later(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def never_more_than_the_limit(self) -> None:
        assert self.taken - self.refunded <= self.limit * (1 + self.now / 60) + 1e-6


TestTwoWorkers = TwoWorkers.TestCase
TestTwoWorkers.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@given(limit=st.integers(1, 10_000), workers=st.integers(1, 64), count=st.integers(0, 300), seconds=st.floats(0, 120))
def test_alone_all_together_keep_the_limit(limit: int, workers: int, count: int, seconds: float) -> None:
    shares = [fresh(requests_per_minute=limit) for _ in range(workers)]
    taken = 0
    for number in range(count):
        share = shares[number % workers]
        share.not_told()
        now = seconds * number / max(count, 1)
        taken += isinstance(share.take(0, now, workers, stream=False), Taken)
    assert taken <= max(limit, workers) * (1 + seconds / 60) + 1e-6
