"""Which replica takes a request: filter (candidates), score, pick.

A strategy is one function from a candidate to a number, lower is better. Equal scores take turns, so that cold
replicas share evenly and no order of names is favoured.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from nebula_proxy.decisions.candidates import SAMPLE_FRESH_SECONDS, Candidate, Standing

Score = Callable[[Candidate], float]


def least_pending(candidate: Candidate) -> float:
    """Open requests of all proxies, and what waits inside the engine while that figure is fresh."""
    pending = candidate.inflight + candidate.elsewhere
    if candidate.waiting is not None and candidate.sample_age <= SAMPLE_FRESH_SECONDS:
        return pending + candidate.waiting
    return pending


def least_kv_cache(candidate: Candidate) -> float:
    """Fill of the KV cache while fresh, else as if half full; open requests count a little, so that a burst between
    two samples does not fall on one replica.
    """
    usage = candidate.kv_cache_usage if candidate.sample_age <= SAMPLE_FRESH_SECONDS else None
    pending = candidate.inflight + candidate.elsewhere
    return (0.5 if usage is None else usage) + pending / candidate.max_inflight


def round_robin(candidate: Candidate) -> float:  # noqa: ARG001 - a score for everyone
    """All are equal, and equals take turns. For comparison in benchmarks only."""
    return 0.0


STRATEGIES: Mapping[str, Score] = MappingProxyType(
    {"least_pending": least_pending, "least_kv_cache": least_kv_cache, "round_robin": round_robin}
)
DEFAULT_STRATEGY = "least_pending"

#: Members of an enumeration cost an attribute lookup each time; the loop below looks at them for every candidate.
_SOUND, _PROBE, _OUT = Standing.SOUND, Standing.PROBE, Standing.OUT


class Choice(NamedTuple):
    candidate: Candidate
    strategy: str
    #: One word, for the metric: `only`, `lowest`, `tie`, `pinned`, `fallback`.
    reason: str
    score: float
    #: How many it was chosen from: those of the best standing, with room.
    of: int


class NoChoice(Enum):
    #: No endpoint may be tried.
    NOBODY = "nobody"
    #: All that may be tried are full.
    SATURATED = "saturated"


def choose(
    candidates: Sequence[Candidate], strategy: str, turn: int, *, without: str | None = None
) -> Choice | NoChoice:
    """The candidate with the lowest score among those of the best standing that have room.

    `turn` counts up with every call and decides between equals; `without` is a replica that was tried already. One
    that is due for a probe counts as sound, so that it gets its chance while others stand. One loop for filter,
    admission and score: with 64 candidates every pass counts.
    """
    score = STRATEGIES.get(strategy)
    fallback = score is None
    if score is None:
        # A strategy of the deployment that this proxy does not know: said, not guessed.
        score, strategy = STRATEGIES[DEFAULT_STRATEGY], DEFAULT_STRATEGY
    tier = _OUT
    best = float("inf")
    roomy = 0
    equals: list[Candidate] = []
    for candidate in candidates:
        standing = candidate.standing
        if standing:
            if standing is _PROBE:
                standing = _SOUND
            elif standing is _OUT:
                continue
        if standing > tier or candidate.replica == without:
            continue
        if standing < tier:
            tier = standing
            best = float("inf")
            roomy = 0
            equals = []
        # `saturation(candidate) >= 1`, written out: a call per candidate would cost as much as all the rest.
        if candidate.inflight + candidate.elsewhere >= candidate.max_inflight:
            continue
        if candidate.sample_age <= SAMPLE_FRESH_SECONDS:
            waiting, usage = candidate.waiting, candidate.kv_cache_usage
            if (waiting and waiting >= candidate.max_waiting) or (usage and usage >= candidate.max_kv_cache_usage):
                continue
        roomy += 1
        value = score(candidate)
        if value < best:
            best = value
            equals = [candidate]
        elif value == best:
            equals.append(candidate)
    if not equals:
        return NoChoice.NOBODY if tier is _OUT else NoChoice.SATURATED
    if len(equals) == 1:
        chosen, reason = equals[0], "only" if roomy == 1 else "lowest"
    else:
        chosen, reason = equals[turn % len(equals)], "tie"
    return Choice(chosen, strategy, "fallback" if fallback else reason, best, roomy)


@lru_cache(maxsize=4096)
def explain(strategy: str, reason: str, score: float, of: int) -> str:
    """A choice in one line, for people: header and log. Remembered, because few differ."""
    return f"{strategy}; {reason}; score={score:g}; of={of}"
