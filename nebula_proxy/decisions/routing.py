"""Which replica takes a request: filter (candidates), score, pick.

A strategy is one function from a candidate to a number, lower is better. Equal scores take turns, so that cold
replicas share evenly and no order of names is favoured.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from nebula_proxy.decisions.candidates import SAMPLE_FRESH_SECONDS, Candidate

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


class Choice(NamedTuple):
    candidate: Candidate
    strategy: str
    #: One word, for the metric: `lowest`, `tie`, `only`, `pinned`.
    reason: str
    score: float
    of: int


def pick(candidates: Sequence[Candidate], strategy: str, turn: int) -> Choice:
    """The best of at least one candidate; `turn` counts up with every call and decides between equals."""
    if len(candidates) == 1:
        only = candidates[0]
        return Choice(only, strategy, "only", STRATEGIES[strategy](only), 1)
    score = STRATEGIES[strategy]
    best = float("inf")
    equals: list[Candidate] = []
    for candidate in candidates:
        value = score(candidate)
        if value < best:
            best = value
            equals = [candidate]
        elif value == best:
            equals.append(candidate)
    if len(equals) == 1:
        return Choice(equals[0], strategy, "lowest", best, len(candidates))
    return Choice(equals[turn % len(equals)], strategy, "tie", best, len(candidates))
