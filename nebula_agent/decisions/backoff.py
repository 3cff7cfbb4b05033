"""When a failed engine may be started again, and when to stop trying: 1, 2, 4 … 300 s; five times in ten minutes is enough.

Times are monotonic seconds of the agent. A run that stayed ready for a minute forgives what was before: an engine that
falls over once a day is restarted at once each time.
"""

from dataclasses import dataclass, replace
from math import inf

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 300.0
STABLE_SECONDS = 60.0
WINDOW_SECONDS = 600.0
MOST_IN_WINDOW = 5


@dataclass(frozen=True, slots=True)
class Failures:
    """The failures of one replica: those of the last ten minutes, and how many followed each other."""

    times: tuple[float, ...] = ()
    in_a_row: int = 0

    def failed(self, now: float, *, ready_for: float | None) -> "Failures":
        """One more; `ready_for` is how long this start had been ready, None when it never was."""
        recent = tuple(at for at in self.times if now - at < WINDOW_SECONDS)
        stable = ready_for is not None and ready_for >= STABLE_SECONDS
        return Failures((*recent, now), 1 if stable else self.in_a_row + 1)

    def due(self) -> float | None:
        """When the next start may be made; None: at once."""
        if not self.times:
            return None
        return self.times[-1] + min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self.in_a_row - 1, 20))

    def spent(self, now: float) -> bool:
        """Whether to give up: asked when one has just been added."""
        return sum(now - at < WINDOW_SECONDS for at in self.times) >= MOST_IN_WINDOW

    def shifted(self, seconds: float, *, latest: float = inf) -> "Failures":
        """The same on a clock that began elsewhere (an agent that restarted).

        None is later than `latest`: a wall clock that was set back meanwhile must not put a failure into the future, and
        with it the next start.
        """
        return replace(self, times=tuple(min(at + seconds, latest) for at in self.times))
