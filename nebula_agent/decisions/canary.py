"""The canary: one token asked of an engine that has had nothing to do for a while, so that a hang does not wait for a user.

`/health` stays 200 over a dead CUDA context (llama-swap#125), and an idle engine's counters stand still by right. Real
traffic is the better witness: while requests run or tokens came, none is asked for. A canary that brings no token takes the
replica out of routing and is followed at once by another; when that fails too the engine hangs.

What a canary costs the engine must not show in its users' figures: it is one token after a prompt shorter than a block
of any prefix cache, and what it added to the counters is taken off again (`Toll`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nebula_agent.decisions.rates import Buckets, Reading
from nebula_core.records.base import frozen_map

#: So many in a row without a token, and the engine hangs.
MOST_FAILURES = 2


@dataclass(frozen=True, slots=True)
class Canary:
    """What is known of an engine's idleness and of the tokens asked of it. Times are monotonic seconds."""

    #: Since when nothing runs and nothing has moved; None: it is busy, or nobody can tell.
    idle_since: float | None = None
    #: The latest answer, and when it came.
    passed: bool | None = None
    answered_at: float | None = None
    failures: int = 0

    def seen(self, *, idle: bool | None, moved: bool, now: float) -> "Canary":
        """One scrape further. Tokens that came for users are a canary that passed."""
        if moved:
            return replace(self, idle_since=None, failures=0)
        if not idle:
            return replace(self, idle_since=None)
        return self if self.idle_since is not None else replace(self, idle_since=now)

    def due(self, now: float, *, after: float) -> bool:
        """Whether to ask for a token now; `after` is for how long an engine must have been idle."""
        if self.failures:
            return True
        if self.idle_since is None:
            return False
        witness = self.idle_since if self.answered_at is None else max(self.idle_since, self.answered_at)
        return now - witness >= after

    def answered(self, now: float, *, passed: bool) -> "Canary":
        return replace(self, passed=passed, answered_at=now, failures=0 if passed else self.failures + 1)


@dataclass(frozen=True, slots=True)
class Toll:
    """What canaries have added to the cumulative figures of one engine epoch."""

    counters: Mapping[str, float] = field(default_factory=frozen_map)
    histograms: Mapping[str, Buckets] = field(default_factory=frozen_map)

    def off(self, reading: Reading) -> Reading:
        """The reading without it."""
        if not self.counters:
            return reading
        counters = {name: max(0.0, value - self.counters.get(name, 0.0)) for name, value in reading.counters.items()}
        histograms = {name: _less(buckets, self.histograms.get(name)) for name, buckets in reading.histograms.items()}
        return Reading(reading.at, frozen_map(counters), frozen_map(histograms))

    def with_canary(self, before: Reading, after: Reading, prompt_tokens: float) -> "Toll":
        """One canary more, between two readings as the engine gave them.

        If nothing else was finished in between, all that grew is the canary's; else only what it is known to have cost.
        """
        grown = {name: after.counters.get(name, value) - value for name, value in before.counters.items()}
        alone = grown.get("finished", grown.get("generation_tokens", 1.0)) <= 1.0
        if not alone:
            known = {"finished": 1.0, "generation_tokens": 1.0, "prompt_tokens": prompt_tokens}
            grown = {name: min(grown[name], cost) for name, cost in known.items() if name in grown}
        counters = dict(self.counters)
        for name, cost in grown.items():
            counters[name] = counters.get(name, 0.0) + max(0.0, cost)
        histograms = dict(self.histograms)
        if alone:
            for name, buckets in after.histograms.items():
                added = _less(buckets, before.histograms.get(name))
                histograms[name] = _more(added, histograms.get(name))
        return Toll(frozen_map(counters), frozen_map(histograms))


def _less(buckets: Buckets, other: Buckets | None) -> Buckets:
    if other is None or len(other) != len(buckets):
        return buckets
    return tuple((bound, max(0.0, count - less)) for (bound, count), (_, less) in zip(buckets, other, strict=True))


def _more(buckets: Buckets, other: Buckets | None) -> Buckets:
    if other is None or len(other) != len(buckets):
        return buckets
    return tuple((bound, count + more) for (bound, count), (_, more) in zip(buckets, other, strict=True))
