"""After a failure: another replica, the same one on a fresh connection, an error, or the end of a stream.

The one place of the project that retries inference calls (reliability 1.3): only before the client got a byte, at
most once, inside a budget of a tenth of the traffic. Deaths come in company, so whoever met one waits a moment first. A
refused connection costs no engine anything and is neither charged nor counted, up to a bound: when a machine with several
engines goes, whoever was on one of them finds the next one gone too. Nor is a kept connection charged that turned out to be closed.

After the first byte a stream may be *resumed* (`decisions/resume`). That has a budget of its own: the retry budget would
refuse most of the 200 streams of one dead engine, and a resume is no second run: it repeats a prefill, mostly
cached, of work that was admitted and half done. What it could do to the engines left is bounded otherwise: by the
streams there are, twice each, by the room of the replicas, and by a reserve that the traffic refills.
"""

import re
from enum import StrEnum
from typing import NamedTuple

from nebula_core.wire.openai import Dialect
from nebula_proxy.decisions.calls import Call
from nebula_proxy.decisions.ejection import Evidence
from nebula_proxy.decisions.resume import MOST_RESUMES


class Trouble(StrEnum):
    """What happened upstream."""

    REFUSED = "refused"
    CONNECT_TIMEOUT = "connect_timeout"
    STALE = "stale"
    LOST = "lost"
    MALFORMED = "malformed"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    GAP_TIMEOUT = "gap_timeout"
    #: Found hanging by what flows through this process (`decisions/progress`).
    HUNG = "hung"
    #: 429 or 503, as a status or as the first frame behind a 200.
    BUSY = "busy"
    #: An error frame or `finish_reason` "abort": the engine says that it cannot go on.
    BROKEN = "broken"
    #: The stream ended properly framed but unfinished.
    UNFINISHED = "unfinished"
    #: A continuation that does not begin with what the client has already.
    DIVERGED = "diverged"


class Step(StrEnum):
    FRESH = "fresh"
    OTHER = "other"
    #: Answer with an error of ours (or the engine's own, where it sent one).
    ANSWER = "answer"
    END_STREAM = "end_stream"
    #: The stream goes on from another replica.
    RESUME = "resume"


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
    #: Its stream can go on elsewhere (`decisions/resume`), how often it did so already, and whether the budget bears it.
    resumable: bool = False
    resumed: int = 0
    resume_budget: bool = True
    #: How many of these attempts reached nobody (`is_unreached`); of the resumes, once it is resumed.
    unreached: int = 0
    #: Its body was in flight at too many deaths of engines (`decisions/quarantine`).
    quarantined: bool = False


#: No work of an engine is doubled: nobody was there, or nothing moves there.
_FREE = frozenset({Trouble.REFUSED, Trouble.CONNECT_TIMEOUT, Trouble.HUNG})
#: Nobody was there at all.
_UNREACHED = frozenset({Trouble.REFUSED, Trouble.CONNECT_TIMEOUT})
#: Each of them puts its replica out, and each may take the time limit of a connect.
MOST_UNREACHED = 4
#: A slow first byte may still be computed there: a second run would double the load when it hurts most.
_NEVER = frozenset({Trouble.FIRST_BYTE_TIMEOUT, Trouble.GAP_TIMEOUT, Trouble.MALFORMED})


def next_step(given: Circumstances) -> Step:
    if given.trouble is Trouble.STALE and not given.fresh:
        return Step.FRESH
    if given.quarantined:
        return Step.END_STREAM if given.begun else Step.ANSWER
    if given.begun:
        return Step.RESUME if _may_resume(given) else Step.END_STREAM
    if given.trouble in _NEVER or not given.allowed or given.others == 0:
        return Step.ANSWER
    if given.retried > given.unreached or given.unreached > MOST_UNREACHED:
        return Step.ANSWER
    if is_charged(given.trouble) and not given.budget:
        return Step.ANSWER
    return Step.OTHER


def _may_resume(given: Circumstances) -> bool:
    return (
        given.resumable
        and given.allowed
        and given.trouble is not Trouble.DIVERGED
        and given.others > 0
        and given.resumed - given.unreached < MOST_RESUMES
        and given.unreached <= MOST_UNREACHED
        and given.resume_budget
    )


#: A response that is kept, or computed behind the client's back, may have been begun where its connection was lost.
_KEPT = re.compile(rb'"(?:store|background)"\s*:\s*true').search


def may_be_repeated(trouble: Trouble, call: Call, body: bytes) -> bool:
    """Whether nothing could happen twice that must happen once (reliability 1.3)."""
    return trouble not in _SENT or call.dialect is not Dialect.RESPONSES or _KEPT(body) is None


#: The engine had the whole request.
_SENT = frozenset({Trouble.LOST, Trouble.BROKEN, Trouble.UNFINISHED, Trouble.HUNG})
#: How vLLM says that its engine process is gone while its HTTP server still answers (captured).
LAST_WORDS = ("EngineCore", "EngineDeadError")


#: Engines die together: with their machine, their Docker, a fault of the driver. By then the other deaths of that moment are
#: known, and nobody is sent from one dying engine to the next: who meets two deaths is suspect (`decisions/quarantine`) and
#: goes nowhere any more. Twice the base interval of Envoy's retries; GOALS R4 gives 300 ms.
DEATH_SECONDS = 0.05


def is_death(trouble: Trouble, detail: str) -> bool:
    """Whether the engine seems to have died with the request in flight on it."""
    return trouble is Trouble.LOST or (trouble is Trouble.BROKEN and any(word in detail for word in LAST_WORDS))


def pause_after(trouble: Trouble, detail: str) -> float:
    """Seconds until the request goes elsewhere."""
    return DEATH_SECONDS if is_death(trouble, detail) else 0.0


def is_unreached(trouble: Trouble) -> bool:
    """Whether no engine had the request, so that another attempt is no second one."""
    return trouble in _UNREACHED


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
        case Trouble.HUNG:
            return Evidence.HANG
        case Trouble.STALE | Trouble.BUSY | Trouble.DIVERGED:
            return None


class Budget(NamedTuple):
    """Retries that may still be made: a reserve, refilled by the requests.

    A little less than a tenth of them, so that reserve and uncharged repeats on closed connections stay within the tenth
    by which a fault may raise what engines are asked (GOALS R16: 1.1).
    """

    ratio: float = 0.09
    reserve: float = 20.0
    left: float = 20.0

    def earned(self) -> "Budget":
        return self if self.left >= self.reserve else self._replace(left=min(self.reserve, self.left + self.ratio))

    def spent(self) -> "Budget":
        return self._replace(left=self.left - 1.0)

    @property
    def open(self) -> bool:
        return self.left >= 1.0


#: Resumes of one process: as many streams as a worker carries, refilled by every second request.
RESUME_BUDGET = Budget(ratio=0.5, reserve=2000.0, left=2000.0)
