"""Whether an engine that has work moves: counters that stand still while requests run mean that it hangs.

`/health` cannot tell (vllm#17972: 200 while nothing was generated for 85 minutes). Which counters count as movement is the
engine's word: tokens, finished requests and, where there is one, steps, which also move during a long prefill.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """The last figures, and since when they have not moved while requests ran."""

    marks: tuple[float, ...] = ()
    still_since: float | None = None

    def seen(self, running: int | None, marks: tuple[float, ...], now: float) -> "Progress":
        """One scrape further. An unknown number of running requests is no evidence of anything."""
        if not running or not marks or marks != self.marks:
            return Progress(marks, None)
        return Progress(marks, now if self.still_since is None else self.still_since)
