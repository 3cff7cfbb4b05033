"""Whether this process itself is near the end of what it has: descriptors, memory, connections, time on its own loop.

Judged once a second in the sweep; what a request pays is a look at one attribute. Two steps, each with a lower bound at which
it is taken back, so that it does not flicker:

- *shed*: new requests are turned away (503, `Retry-After`); what is open goes on, health and metrics are answered, and
  connections that are idle are closed. Descriptors at 80 % of the limit, memory at 85 %, or a loop that was late for a while;
- *close*: connections beyond that are closed as soon as they are accepted. Descriptors at 95 % (never the last 16:
  engines, files and those who look after us need some), memory at 95 %, or the bound on connections.

Accepting and closing keeps the queue of the kernel empty; not accepting would leave clients in it until they time out,
and a loop that tries to accept without a free descriptor spins.

Source of the ratios: reliability, rows 42 and 43, and Envoy's overload manager (section 1).
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

SHED_DESCRIPTORS, CLOSE_DESCRIPTORS = 0.80, 0.95
SHED_MEMORY, CLOSE_MEMORY = 0.85, 0.95
#: A step is taken back when it has fallen by so much.
SLACK = 0.05
#: Descriptors that are never given to clients.
RESERVE = 16
#: So many late sweeps in a row make a late loop, and so many in time an end of it.
LATE_TIMES = 3


class Cause(StrEnum):
    """As said to clients and in metrics: what it is short of."""

    DESCRIPTORS = "descriptors"
    MEMORY = "memory"
    LOOP = "time"


class GuardLimits(NamedTuple):
    """None sets no limit."""

    descriptors: int | None = None
    memory_bytes: int | None = None
    connections: int | None = None
    connections_per_client: int | None = None
    loop_lag_seconds: float | None = 0.25


class Vitals(NamedTuple):
    """One look at the process; None is unknown, and never a reason."""

    descriptors: int | None = None
    memory_bytes: int | None = None
    #: How late the sweep came.
    loop_lag_seconds: float | None = None


class Verdict(NamedTuple):
    shed: Cause | None = None
    close: Cause | None = None
    #: Sweeps in a row that came late; below 0, in time after a loop that was late.
    late: int = 0


NO_TROUBLE = Verdict()


def judge(before: Verdict, vitals: Vitals, limits: GuardLimits) -> Verdict:
    late = _late(before, vitals, limits)
    shed: Cause | None = None
    close: Cause | None = None
    for cause, ratio, shed_at, close_at in _ratios(vitals, limits):
        if ratio >= shed_at - (SLACK if before.shed is cause else 0.0):
            shed = shed or cause
        if ratio >= close_at - (SLACK if before.close is cause else 0.0):
            close = close or cause
    if shed is None and (late >= LATE_TIMES or (before.shed is Cause.LOOP and late < 0)):
        shed = Cause.LOOP
    return Verdict(shed, close, late)


def _ratios(vitals: Vitals, limits: GuardLimits) -> Iterator[tuple[Cause, float, float, float]]:
    if vitals.descriptors is not None and limits.descriptors:
        most = limits.descriptors
        close_at = _close_descriptors(most)
        yield Cause.DESCRIPTORS, vitals.descriptors / most, min(SHED_DESCRIPTORS, close_at), close_at
    if vitals.memory_bytes is not None and limits.memory_bytes:
        yield Cause.MEMORY, vitals.memory_bytes / limits.memory_bytes, SHED_MEMORY, CLOSE_MEMORY


def room_for_connections(vitals: Vitals, limits: GuardLimits, connections: int) -> int | None:
    """How many of clients there may be until the next look, beside all else that is open; None is no limit."""
    if limits.descriptors is None or vitals.descriptors is None:
        return None
    others = vitals.descriptors - connections
    return max(0, int(limits.descriptors * _close_descriptors(limits.descriptors)) - others)


def _close_descriptors(most: int) -> float:
    return max(0.0, min(CLOSE_DESCRIPTORS, 1 - RESERVE / most))


def _late(before: Verdict, vitals: Vitals, limits: GuardLimits) -> int:
    """Counts up while sweeps come late; a loop that was late must come in time as often again."""
    lag, most = vitals.loop_lag_seconds, limits.loop_lag_seconds
    if lag is None or most is None:
        return 0
    if lag > most:
        return max(1, before.late + 1)
    if before.shed is not Cause.LOOP:
        return 0
    following = before.late - 1 if before.late < 0 else -1
    return 0 if following <= -LATE_TIMES else following
