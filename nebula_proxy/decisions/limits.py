"""What one worker may spend of a key's limits: its slice of the shared budget, and what to do when that is used up.

**Theory.** The budget itself lies in the store (`nebula_core/store/limits`): a bucket per minute limit, slots for
streams. A worker leases slices of it and spends them without asking anybody. Four cases, for each request:

    slice has enough ──────────────────────► taken
    slice has not, the store may have more ─► ask: the request waits for the next answer, once
    slice has not, the store has no more ───► limited, with the time until it has
    the store is away ─────────────────────► a bucket of our own with an even share: limit / known workers

What this guarantees, for all workers together and any T seconds:

* The store answers: requests (and reserved tokens) taken <= limit * (1 + T / 60), exactly; open streams <= limit.
* Tokens are reserved by an estimate and settled with what was counted; what was used beyond the reservation is owed and
  taken from the budget before anybody gets more, so only requests that are open at the same time can overshoot.
* The store is away: limit * (1 + T / 60) again, if as many workers run as were known, or one request per worker where
  the share is below one. Each time it goes or comes back a budget may be had twice, once from either side.
* Too little instead: at rest a worker keeps a twentieth of a limit for the next request; one that died takes its slice
  with it until the lease ends.

Deterministic: `now` is an argument (monotonic seconds), nothing is read from anywhere.
"""

from enum import Enum
from typing import NamedTuple

from nebula_core.records.access import KeyLimits
from nebula_core.records.lease import Budget, Claim, Slice

#: How long the store keeps a slice for a worker that says nothing, and when the worker stops believing in it.
LEASE_SECONDS = 10.0
TRUSTED_SECONDS = 8.0
#: A slice in use is renewed so often, and what was spent of it is told so often.
RENEW_SECONDS = 3.0
SETTLE_SECONDS = 1.0
#: What the store said of the rest of a budget is believed for so long when it was "nothing".
NEWS_SECONDS = 0.25
#: A key that was not used for so long gives everything back.
REST_SECONDS = 30.0
#: At rest a worker keeps this part of a limit at most; all workers together a quarter.
REST_PART = 20
REST_PART_OF_ALL = 4


class Resource(Enum):
    """What a key can run out of."""

    REQUESTS = "requests per minute"
    TOKENS = "tokens per minute"
    STREAMS = "open streams"


class Limited(NamedTuple):
    """No: which limit, how much it is, and when there may be room again."""

    resource: Resource
    limit: int
    seconds: float


class Answer(Enum):
    TAKEN = "taken"
    #: The store may have more: the request waits for its next word.
    ASK = "ask"


class Remaining(NamedTuple):
    """For a client: the limit, what is left of it, and seconds until all of it is there again."""

    limit: int
    left: int
    reset_seconds: float


class Taken(NamedTuple):
    """What a request holds."""

    tokens: int
    stream: bool
    #: From our own bucket, while the store was away.
    alone: bool


class _Bucket:
    """One minute limit as this worker sees it."""

    __slots__ = ("alone", "alone_at", "granted", "left", "limit", "needed", "recent", "spent")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: Counted from the worker's start, as the store knows them.
        self.spent = 0
        self.granted = 0
        #: What nobody held when the store last answered.
        self.left = 0
        #: Asked for by requests that wait for the store's word.
        self.needed = 0
        #: Spent since then.
        self.recent = 0
        #: Our own bucket, None while the store answers.
        self.alone: float | None = None
        self.alone_at = 0.0

    @property
    def held(self) -> int:
        return self.granted - self.spent

    def spend(self, amount: int) -> None:
        self.spent += amount
        self.recent += amount

    def more(self, age: float) -> float:
        """What the store may have beside our slice by now."""
        return self.left + age * self.limit / 60

    def rest(self, workers: int) -> int:
        return self.limit // max(REST_PART, REST_PART_OF_ALL * workers)

    def wanted(self, interval: float, workers: int) -> int:
        """What waits, and what the next second will take if it is like the last one."""
        expected = int(self.recent / max(interval, 0.05) + 0.5)
        return min(self.limit, self.needed + max(self.rest(workers), min(expected, self.limit // 2)))

    def share(self, workers: int) -> float:
        return max(1.0, self.limit / workers)

    def refill_alone(self, now: float, workers: int) -> float:
        share = self.share(workers)
        if self.alone is None:
            self.alone = share
        else:
            self.alone = min(share, self.alone + (now - self.alone_at) * share / 60)
        self.alone_at = now
        return self.alone


class Share:
    """What one worker holds of one key's limits."""

    def __init__(self, key: str, limits: KeyLimits) -> None:
        self.key = key
        self.requests: _Bucket | None = None
        self.tokens: _Bucket | None = None
        self.follow(limits)
        self.open_streams = 0
        self.slots = 0
        self.slots_left = 0
        self.streams_needed = 0
        #: When the store was last asked with success; None before, and while it is away.
        self.told_at: float | None = None
        self.used_at = 0.0
        #: How many share the limits, as it was when the store was last told.
        self._workers = 1
        self.away = False
        #: Something was spent or opened or closed since the store was told.
        self.changed = False

    def follow(self, limits: KeyLimits) -> None:
        """The key's limits, as they are from now on."""
        self.limits = limits
        self.requests = _followed(self.requests, limits.requests_per_minute)
        self.tokens = _followed(self.tokens, limits.tokens_per_minute)

    # For a request

    def reserve(self, estimate: int) -> int:
        """Tokens to be reserved. A request that is larger than the budget may go when three quarters of it are there:
        the last quarter may be held by workers at rest, and what it uses beyond is owed.
        """
        if self.tokens is None:
            return 0
        return min(estimate, self.tokens.limit - self.tokens.limit // REST_PART_OF_ALL)

    def take(self, tokens: int, now: float, workers: int, *, stream: bool) -> Taken | Limited | Answer:
        """`tokens` are those of `reserve`; `workers` is how many share the limit, this one included."""
        self.used_at = now
        if self.away:
            return self._take_alone(tokens, now, workers, stream=stream)
        age = None if self.told_at is None else now - self.told_at
        if age is None or age > TRUSTED_SECONDS:
            self._drop()
            return Answer.ASK
        limited = self._lacks(tokens, age, stream=stream)
        if limited is not None:
            return limited
        if self.requests is not None:
            self.requests.spend(1)
        if self.tokens is not None:
            self.tokens.spend(tokens)
        if stream:
            self.open_streams += 1
        self.changed = True
        return Taken(tokens, stream, alone=False)

    def settle(self, taken: Taken, used: int | None) -> None:
        """The request has ended: `used` tokens were counted; None when it never ran, and then nothing was taken."""
        if taken.stream:
            self.open_streams -= 1
        self.changed = True
        difference = (0 if used is None else used) - taken.tokens
        if taken.alone:
            for budget, back in ((self.requests, 1 if used is None else 0), (self.tokens, -difference)):
                if budget is not None and budget.alone is not None:
                    budget.alone += back
            return
        if self.tokens is not None:
            self.tokens.spent += difference
        if self.requests is not None and used is None:
            self.requests.spent -= 1

    def _lacks(self, tokens: int, age: float, *, stream: bool) -> Limited | Answer | None:
        for budget, need, resource in (
            (self.requests, 1, Resource.REQUESTS),
            (self.tokens, tokens, Resource.TOKENS),
        ):
            if budget is None or budget.held >= need:
                continue
            missing = need - max(0, budget.held) - budget.more(age)
            if missing <= 0 or age > NEWS_SECONDS:
                return Answer.ASK
            return Limited(resource, budget.limit, missing * 60 / budget.limit)
        most = self.limits.max_streams
        if stream and most is not None and self.open_streams >= self.slots:
            if self.slots_left > 0 or age > NEWS_SECONDS:
                return Answer.ASK
            return Limited(Resource.STREAMS, most, 1.0)
        return None

    def _take_alone(self, tokens: int, now: float, workers: int, *, stream: bool) -> Taken | Limited:
        asked = ((self.requests, 1.0, Resource.REQUESTS), (self.tokens, float(tokens), Resource.TOKENS))
        for budget, need, resource in asked:
            if budget is None:
                continue
            have, share = budget.refill_alone(now, workers), budget.share(workers)
            missing = min(need, share) - have
            if missing > 0:
                return Limited(resource, budget.limit, missing * 60 / share)
        most = self.limits.max_streams
        if stream and most is not None and self.open_streams >= max(1, most // workers):
            return Limited(Resource.STREAMS, most, 1.0)
        for budget, need, _resource in asked:
            if budget is not None and budget.alone is not None:
                budget.alone -= min(need, budget.share(workers))
        if stream:
            self.open_streams += 1
        return Taken(tokens, stream, alone=True)

    # With the store

    def need(self, tokens: int, *, stream: bool, sign: int = 1) -> None:
        """A request waits for the store's word (or, with -1, no longer)."""
        # Never below 0: a limit may have come while the request waited.
        if self.requests is not None:
            self.requests.needed = max(0, self.requests.needed + sign)
        if self.tokens is not None:
            self.tokens.needed = max(0, self.tokens.needed + sign * tokens)
        if stream:
            self.streams_needed += sign

    def is_due(self, now: float) -> bool:
        """Whether the store should hear of this key now."""
        if self.away or self._is_needed():
            return True
        if self.told_at is None:
            return self.open_streams > 0
        age = now - self.told_at
        if self.changed and (age >= SETTLE_SECONDS or self._runs_low() or self._keeps_others_out()):
            return True
        return age >= RENEW_SECONDS and self._holds()

    def claim(self, now: float, workers: int) -> Claim:
        """What to tell the store. What is not kept is given up from this moment on, whatever comes of the call."""
        interval = SETTLE_SECONDS if self.told_at is None else now - self.told_at
        resting = now - self.used_at > REST_SECONDS
        self._workers = workers
        wanted_streams = self._slots_wanted()
        self.slots = max(self.open_streams, min(self.slots, wanted_streams))
        self.changed = False
        return Claim(
            self.key,
            _claimed(self.requests, interval, workers, resting=resting),
            _claimed(self.tokens, interval, workers, resting=resting),
            self.limits.max_streams,
            self.open_streams,
            wanted_streams,
        )

    def told(self, answer: Slice, asked_at: float) -> None:
        """The store's answer to the claim of `asked_at`."""
        self.away = False
        self.told_at = asked_at
        if self.requests is not None:
            self.requests.granted = answer.granted_requests
            self.requests.left = answer.requests_left
            self.requests.alone = None
        if self.tokens is not None:
            self.tokens.granted = answer.granted_tokens
            self.tokens.left = answer.tokens_left
            self.tokens.alone = None
        self.slots = answer.streams
        self.slots_left = answer.streams_left

    def not_told(self) -> None:
        """The store did not answer: from now on with our own share."""
        if not self.away:
            self.away = True
            self._drop()

    def is_idle(self, now: float) -> bool:
        """Nothing of it is open or waited for, and the store has forgotten our slice: so may we."""
        return (
            now - self.used_at > REST_SECONDS + 3 * LEASE_SECONDS and not self._is_needed() and self.open_streams == 0
        )

    def remaining(self, now: float) -> tuple[Remaining | None, Remaining | None]:
        """Requests and tokens that are left, as far as this worker knows."""
        return self._remaining(self.requests, now), self._remaining(self.tokens, now)

    def _remaining(self, budget: _Bucket | None, now: float) -> Remaining | None:
        if budget is None:
            return None
        limit = budget.limit
        if budget.alone is not None:
            left = budget.alone
        elif self.told_at is None:
            left = float(limit)
        else:
            left = budget.held + budget.more(now - self.told_at)
        left = min(float(limit), max(0.0, left))
        return Remaining(limit, int(left), (limit - left) * 60 / limit)

    def _slots_wanted(self) -> int:
        if self.limits.max_streams is None:
            return 0
        # Slots to spare only while there are plenty for everybody: the last ones are had by whoever needs them.
        spare = min(self.open_streams, self.slots_left // (2 * self._workers))
        return min(self.limits.max_streams, self.open_streams + max(spare, self.streams_needed))

    def _is_needed(self) -> bool:
        return (
            self.streams_needed > 0
            or (self.requests is not None and self.requests.needed > 0)
            or (self.tokens is not None and self.tokens.needed > 0)
        )

    def _runs_low(self) -> bool:
        return any(
            budget is not None and budget.recent > budget.held and budget.left > 0
            for budget in (self.requests, self.tokens)
        )

    def _keeps_others_out(self) -> bool:
        """It holds a slot that it no longer needs, and nobody else can get one."""
        return self.slots > self._slots_wanted() and self.slots_left == 0

    def _holds(self) -> bool:
        return (
            self.slots > 0
            or self.open_streams > 0
            or any(budget is not None and budget.held > 0 for budget in (self.requests, self.tokens))
        )

    def _drop(self) -> None:
        """What is leased is no longer ours to spend; what was spent beyond it stays owed."""
        self.told_at = None
        for budget in (self.requests, self.tokens):
            if budget is not None and budget.held > 0:
                budget.granted = budget.spent
        self.slots = min(self.slots, self.open_streams)
        self.slots_left = 0


def _claimed(bucket: _Bucket | None, interval: float, workers: int, *, resting: bool) -> Budget:
    if bucket is None:
        return Budget()
    wanted = bucket.needed if resting else bucket.wanted(interval, workers)
    kept = max(0, min(bucket.held, wanted))
    if bucket.held > 0:
        bucket.granted = bucket.spent + kept
    bucket.recent = 0
    return Budget(bucket.limit, bucket.spent, kept, wanted)


def _followed(bucket: _Bucket | None, limit: int | None) -> _Bucket | None:
    """The same bucket under a limit that was changed."""
    if bucket is None or limit is None:
        return None if limit is None else _Bucket(limit)
    bucket.limit = limit
    return bucket
