"""How far this node's clock is from the store's, and what that means: said, never guessed around.

Commands are the one thing whose age is judged by the wall clock (placements are ordered by epoch and revision). A node
that is off by more than their leeway refuses every command; it goes on serving.
"""

from typing import NamedTuple

from nebula_core.records.report import Problem
from nebula_core.security.commands import LEEWAY_SECONDS

#: Below this nobody need care; NTP keeps clocks within milliseconds.
NOTABLE_SECONDS = 2.0
#: A slower answer says too little.
LONGEST_ROUND_TRIP_SECONDS = 1.0


class ClockReading(NamedTuple):
    """One question to the store for its time."""

    #: Unix seconds here, halfway between question and answer, and there.
    here: float
    there: float
    round_trip_seconds: float

    @property
    def ahead_seconds(self) -> float | None:
        """How far this node is ahead of the store; None when the answer took too long to tell."""
        return None if self.round_trip_seconds > LONGEST_ROUND_TRIP_SECONDS else self.here - self.there


def clock_problem(ahead_seconds: float) -> Problem | None:
    """None when the clocks agree."""
    off = abs(ahead_seconds)
    if off < NOTABLE_SECONDS:
        return None
    which = "ahead of" if ahead_seconds > 0 else "behind"
    message = f"this node's clock is {off:.0f} s {which} the store's"
    if off > LEEWAY_SECONDS:
        message += ": commands are refused until it is set; engines go on"
    return Problem(
        code="clock_skew",
        message=message,
        severity="crit" if off > LEEWAY_SECONDS else "warn",
        hint="Set both by NTP (timedatectl, chronyc tracking)",
    )
