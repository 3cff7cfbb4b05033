"""After a failure: another replica, the same one on a fresh connection, an error, or the end of a stream.

The one place of the project that retries inference calls (reliability 1.3): only before the client got a byte, at
most once, inside a budget of a tenth of the traffic. A refused connection costs no engine anything and is not
charged; neither is a kept connection that turned out to be closed.
"""

from enum import StrEnum
from typing import NamedTuple

from nebula_proxy.decisions.ejection import Evidence


class Trouble(StrEnum):
    """What happened upstream."""

    REFUSED = "refused"
    CONNECT_TIMEOUT = "connect_timeout"
    STALE = "stale"
    LOST = "lost"
    MALFORMED = "malformed"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    GAP_TIMEOUT = "gap_timeout"
    #: 429 or 503, as a status or as the first frame behind a 200.
    BUSY = "busy"
    #: An error frame or `finish_reason` "abort": the engine says that it cannot go on.
    BROKEN = "broken"
    #: The stream ended properly framed but unfinished.
    UNFINISHED = "unfinished"


class Step(StrEnum):
    FRESH = "fresh"
    OTHER = "other"
    #: Answer with an error of ours (or the engine's own, where it sent one).
    ANSWER = "answer"
    END_STREAM = "end_stream"


class Circumstances(NamedTuple):
    trouble: Trouble
    #: The client has got bytes of the answer.
    begun: bool
    #: Retries of this request so far, without those on a fresh connection.
    retried: int
    #: It was on a fresh connection already.
    fresh: bool
    #: Other candidates that may be tried.
    others: int
    budget: bool
    #: Not pinned, not forbidden by the client.
    allowed: bool


_FREE = frozenset({Trouble.REFUSED, Trouble.CONNECT_TIMEOUT})
#: A slow first byte may still be computed there: a second run would double the load when it hurts most.
_NEVER = frozenset({Trouble.FIRST_BYTE_TIMEOUT, Trouble.GAP_TIMEOUT, Trouble.MALFORMED})


def next_step(given: Circumstances) -> Step:
    if given.begun:
        return Step.END_STREAM
    if given.trouble is Trouble.STALE and not given.fresh:
        return Step.FRESH
    if given.trouble in _NEVER or not given.allowed or given.retried > 0 or given.others == 0:
        return Step.ANSWER
    if is_charged(given.trouble) and not given.budget:
        return Step.ANSWER
    return Step.OTHER


def is_charged(trouble: Trouble) -> bool:
    """Whether a retry after this trouble may double an engine's work, so that the budget must bear it."""
    return trouble not in _FREE


def evidence_of(trouble: Trouble) -> Evidence | None:
    """What the trouble says against the endpoint, None when nothing."""
    match trouble:
        case Trouble.REFUSED:
            return Evidence.REFUSED
        case Trouble.CONNECT_TIMEOUT:
            return Evidence.CONNECT_TIMEOUT
        case Trouble.LOST:
            return Evidence.LOST
        case Trouble.MALFORMED | Trouble.BROKEN | Trouble.UNFINISHED:
            return Evidence.ERROR
        case Trouble.FIRST_BYTE_TIMEOUT | Trouble.GAP_TIMEOUT:
            return Evidence.TIMEOUT
        case Trouble.STALE | Trouble.BUSY:
            return None


class Budget(NamedTuple):
    """Retries that may still be made: a reserve, refilled by a tenth of the requests."""

    ratio: float = 0.1
    reserve: float = 20.0
    left: float = 20.0

    def earned(self) -> "Budget":
        return self if self.left >= self.reserve else self._replace(left=min(self.reserve, self.left + self.ratio))

    def spent(self) -> "Budget":
        return self._replace(left=self.left - 1.0)

    @property
    def open(self) -> bool:
        return self.left >= 1.0
