"""Whether a request kills engines: the same body was in flight when several of them died (reliability C7, row 39).

One bad request, retried, resumed and sent again by its client, takes down one engine after another. So a body that was
there at two deaths is neither sent again nor resumed, and for a while it is refused. Only what was in flight at
a death is held against a body, and anything that speaks for it takes that back: the same body was answered, or the engine
turns out to live.

An engine dies with all that is on it, mostly innocent; moved together, the innocent would be there at the second death
too. The smaller the company, the more a death tells: one in company of more than `CROWD` counts two thirds, so that a
crowd must see three deaths, and by then it is scattered over the replicas.

A client that comes again may come to another worker, or another proxy. So each tells the others what it holds against bodies
(by digests, keyed with a secret of theirs), and each judges by all that it knows. Who saw a death says whether it was
one after all: the others have nothing to go by. Who saw the body answered tells that too.
"""

from collections.abc import Sequence
from typing import NamedTuple

ENOUGH = 2.0
CROWD = 16
_IN_CROWD = 2.0 / 3.0
#: A death longer ago is forgotten.
MEMORY_SECONDS = 600.0
#: How long a body is refused after its latest death; each death beyond the second doubles it.
FIRST_SECONDS = 300.0
LONGEST_SECONDS = 3600.0


class Death(NamedTuple):
    """An engine that died while the body was in flight on it."""

    replica: str
    engine_epoch: str | None
    #: Monotonic seconds.
    at: float
    #: Requests that were in flight on it.
    company: int


def with_death(deaths: Sequence[Death], death: Death) -> tuple[Death, ...]:
    """One more; the same engine dies once."""
    kept = tuple(each for each in deaths if death.at - each.at <= LONGEST_SECONDS)
    if any((each.replica, each.engine_epoch) == (death.replica, death.engine_epoch) for each in kept):
        return kept
    return (*kept, death)


def weight(deaths: Sequence[Death]) -> float:
    """How much is held against a body."""
    return sum(1.0 if each.company <= CROWD else _IN_CROWD for each in deaths)


def refused_until(deaths: Sequence[Death]) -> float | None:
    """Until when (monotonic seconds) the body is refused; None while too little is held against it."""
    if not deaths:
        return None
    latest = max(each.at for each in deaths)
    recent = [each for each in deaths if latest - each.at <= MEMORY_SECONDS]
    if len(recent) < 2 or weight(recent) < ENOUGH - 1e-9:
        return None
    return latest + min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** (len(recent) - 2))
