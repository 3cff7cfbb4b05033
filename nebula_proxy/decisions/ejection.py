"""Direct evidence about an endpoint: one refused connection drops it at once, one answer brings it back.

    sound ──strike──► out until T ──T passed──► due: one request may probe ──answer──► sound
                          ▲                                  │
                          └────────── failure, T doubled ◄───┘

Connection trouble strikes at once; slow or failing answers only when two come within ten seconds. 4xx and 429 never
count (control_plane, 4.26), and neither does a client that left. What a client can cause (errors, lost connections)
never takes the last endpoint away.
"""

from enum import StrEnum
from typing import NamedTuple

BASE_SECONDS = 1.0
LONGEST_SECONDS = 30.0
WINDOW_SECONDS = 10.0


class Evidence(StrEnum):
    """What was seen against an endpoint."""

    REFUSED = "refused"
    CONNECT_TIMEOUT = "connect_timeout"
    LOST = "lost"
    #: Nothing moves on it though it has work (`decisions/progress`).
    HANG = "hang"
    MALFORMED = "malformed"
    #: These need two within the window.
    ERROR = "error"
    TIMEOUT = "timeout"


#: Nobody is there. After anything else it is put out only as long as another endpoint stands.
UNREACHABLE = frozenset({Evidence.REFUSED, Evidence.CONNECT_TIMEOUT})
_AT_ONCE = frozenset({Evidence.REFUSED, Evidence.CONNECT_TIMEOUT, Evidence.LOST, Evidence.HANG})
#: To ask a closed port again costs nobody anything, and whoever was alone there is missed.
_REFUSED_SECONDS = 5.0
#: A hung engine accepts a probe and lets it wait; a restart makes it another one before long.
_HANG_SECONDS = 15.0


class Health(NamedTuple):
    """What is held against one endpoint; a sound one has no Health at all."""

    engine_epoch: str | None
    evidence: Evidence
    #: Monotonic seconds. Out until then; 0 while there was only a first soft strike.
    out_until: float
    struck_at: float
    #: How often it was put out in a row.
    times: int
    #: A request is trying it now.
    probing: bool = False

    def is_out(self, now: float) -> bool:
        return self.times > 0 and (now < self.out_until or self.probing)

    def is_due(self, now: float) -> bool:
        return self.times > 0 and now >= self.out_until and not self.probing


def struck(health: Health | None, evidence: Evidence, engine_epoch: str | None, now: float) -> Health:
    """After one failure. Failures of requests sent before it was put out do not prolong the time.

    That nobody is there is said all the same: an engine that died breaks its streams first, and its port refuses then. Who
    only failed a moment ago is tried again where nothing better stands; who is gone is not.
    """
    if health is not None and health.engine_epoch != engine_epoch:
        health = None
    if health is not None and now < health.out_until:
        worse = evidence in UNREACHABLE and health.evidence not in UNREACHABLE
        return health._replace(evidence=evidence) if worse else health
    if evidence not in _AT_ONCE and (health is None or not health.probing):
        first = health is None or (health.times == 0 and now - health.struck_at > WINDOW_SECONDS)
        if first:
            return Health(engine_epoch, evidence, 0.0, now, 0)
    times = (health.times if health is not None else 0) + 1
    longest = _REFUSED_SECONDS if evidence is Evidence.REFUSED else LONGEST_SECONDS
    base = _HANG_SECONDS if evidence is Evidence.HANG else BASE_SECONDS
    seconds = min(longest, base * 2 ** (times - 1))
    return Health(engine_epoch, evidence, now + seconds, now, times)


def probing(health: Health) -> Health:
    """One request goes to an endpoint that is due."""
    return health._replace(probing=True)


def probe_over(health: Health) -> Health:
    """The probe ended without saying anything (its client left): the next request may probe."""
    return health._replace(probing=False)
