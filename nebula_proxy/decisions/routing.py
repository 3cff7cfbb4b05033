"""Which replica takes a request: filter (`field`), score (`strategies`), pick.

Pick: the lowest score. Equals are told apart by rendezvous where the strategy gives a key, so that all processes send
the same prefix to the same place; else two of them are drawn, in turn, and the one with the emptier KV cache is taken
(power of two choices: whoever decides by figures that others see too must not always take the same best one).
"""

from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from math import isinf, isnan
from typing import NamedTuple

from nebula_proxy.decisions.candidates import Standing
from nebula_proxy.decisions.field import Field, Weighed, weighed
from nebula_proxy.decisions.rendezvous import nearest
from nebula_proxy.decisions.strategies import BUILT_IN, FALLBACK_STRATEGY, Ask, Strategy, Verdict

_NOTHING: Mapping[str, int] = {}


class Choice(NamedTuple):
    replica: str
    strategy: str
    #: One word, for the metric: `only`, `lowest`, `tie`, `prefix`, `cold`, `session`, `guard`, `pinned`, `fallback` …
    reason: str
    score: float
    #: How many it was chosen from: those of the best standing, with room.
    of: int
    #: Its place in the field.
    place: int = 0
    #: What it was made with, for whoever asks why; None when an operator pinned the replica.
    verdict: Verdict | None = None
    weighed: Weighed | None = None
    #: Why the strategy that was asked for did not decide.
    problem: str | None = None


class NoChoice(Enum):
    #: No endpoint may be tried.
    NOBODY = "nobody"
    #: All that may be tried are full.
    SATURATED = "saturated"


def choose(
    field: Field,
    strategy: str,
    turn: int,
    *,
    inflight: Mapping[str, int] = _NOTHING,
    unread: Mapping[str, int] = _NOTHING,
    ask: Ask | None = None,
    strategies: Mapping[str, Strategy] = BUILT_IN,
) -> Choice | NoChoice:
    """The replica a strategy scores lowest among those of the best standing that have room.

    `inflight` and `unread` are what this process has open, by replica: requests, and bytes of prompts without a first
    token. `turn` counts up with every call and decides between equals.
    """
    if not field.replicas:
        return NoChoice.NOBODY if field.tier is Standing.OUT else NoChoice.SATURATED
    now = weighed(field, inflight, unread)
    field = now.field
    if not field.replicas:
        return NoChoice.SATURATED
    ask = ask or Ask()
    score = strategies.get(strategy)
    problem = None
    if score is None:
        problem = f"there is no strategy {strategy!r} here"
        verdict = Verdict(BUILT_IN[FALLBACK_STRATEGY](ask, now))  # type: ignore[arg-type] # plain scores
    else:
        try:
            given = score(ask, now)
            verdict = given if type(given) is Verdict else Verdict(given)  # type: ignore[arg-type] # the other one
            if strategies is not BUILT_IN and score not in _TRUSTED:
                problem = _fault(verdict, len(field.replicas))
        except Exception as error:
            # A plug-in of somebody else: its failure must not be the request's.
            problem = f"strategy {strategy!r} failed: {type(error).__name__}"
        if problem is not None:
            verdict = Verdict(BUILT_IN[FALLBACK_STRATEGY](ask, now))  # type: ignore[arg-type] # plain scores
    if problem is not None:
        strategy = FALLBACK_STRATEGY
    scores = verdict.scores
    of = len(scores)
    lowest = min(scores)
    if of == 1:
        place, reason = 0, "only"
    else:
        slack = verdict.slack
        if not slack and scores.count(lowest) == 1:
            place, reason = scores.index(lowest), "lowest"
        else:
            equals = [place for place, value in enumerate(scores) if value <= lowest + slack]
            place, reason = equals[0], "lowest"
            if len(equals) > 1:
                reason = "tie"
                place = _of_equals(equals, verdict, field, turn)
        reason = verdict.reason or reason
    if problem is not None:
        reason = "fallback"
    return Choice(field.replicas[place], strategy, reason, scores[place], of, place, verdict, now, problem)


_TRUSTED = frozenset(BUILT_IN.values())


def _of_equals(equals: list[int], verdict: Verdict, field: Field, turn: int) -> int:
    if verdict.tie is not None:
        return nearest(verdict.tie, field.names, equals)
    count = len(equals)
    first = equals[turn % count]
    if not verdict.drawn:
        return first
    second = equals[(turn + 1 + turn // count % (count - 1)) % count]
    kv = field.kv
    return second if kv[second] < kv[first] else first


def _fault(verdict: Verdict, count: int) -> str | None:
    """What is wrong with the answer of a plug-in."""
    if len(verdict.scores) != count:
        return f"it scored {len(verdict.scores)} of {count}"
    if any(isnan(score) for score in verdict.scores) or isinf(min(verdict.scores)):
        return "it left no replica to be taken"
    return None


def explain(choice: Choice, *, full: bool = True) -> str:
    """A choice in one line, for people: header and log.

    What a strategy keeps private (a known prefix tells of other callers' prompts) is said in `full` alone.
    """
    verdict = choice.verdict
    if verdict is None or not verdict.private or full:
        return _line(choice.strategy, choice.reason, choice.score, choice.of)
    return _line(choice.strategy, "", None, choice.of)


@lru_cache(maxsize=4096)
def _line(strategy: str, reason: str, score: float | None, of: int) -> str:
    """Remembered, because few differ."""
    words = [strategy, reason, "" if score is None else f"score={score:g}", f"of={of}"]
    return "; ".join(word for word in words if word)
