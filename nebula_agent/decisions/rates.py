"""From cumulative counters and histograms to rates and quantiles, over the time between scrapes.

Rates are taken between the last two scrapes, quantiles over the scrapes of the last ten seconds (one second of a quiet
engine holds no observation). A counter that dropped means a restart: all before it is forgotten and the interval skipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nebula_core.records.base import frozen_map

WINDOW_SECONDS = 10.0

#: (upper bound, cumulative count), rising, the last bound is +Inf.
Buckets = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """The cumulative figures of one scrape, under our own names."""

    at: float
    counters: Mapping[str, float] = field(default_factory=frozen_map)
    histograms: Mapping[str, Buckets] = field(default_factory=frozen_map)


@dataclass(frozen=True, slots=True)
class History:
    """The scrapes of the window, oldest first, all of one start of the engine."""

    readings: tuple[Reading, ...] = ()

    def with_reading(self, reading: Reading) -> "History":
        if self.readings and dropped(self.readings[-1], reading):
            return History((reading,))
        kept = [former for former in self.readings if reading.at - former.at <= WINDOW_SECONDS]
        if not kept and self.readings:
            kept = [self.readings[-1]]  # a long pause: the rate over it is still a rate
        return History((*kept, reading))

    def rate(self, name: str) -> float | None:
        """Per second between the last two scrapes."""
        return self._rate(self.readings[-2:], name)

    def ratio(self, part: str, whole: str) -> float | None:
        """The growth of one counter over that of another, over the window; None when the whole did not grow."""
        grown, all_of_it = self._growth(part), self._growth(whole)
        if grown is None or not all_of_it:
            return None
        return min(1.0, max(0.0, grown / all_of_it))

    def quantile(self, name: str, q: float) -> float | None:
        """Over the window; None without an observation in it."""
        if len(self.readings) < 2:
            return None
        first, last = self.readings[0].histograms.get(name), self.readings[-1].histograms.get(name)
        if first is None or last is None or len(first) != len(last):
            return None
        grown = tuple((bound, max(0.0, now - then)) for (bound, now), (_, then) in zip(last, first, strict=True))
        return quantile(grown, q)

    def _growth(self, name: str) -> float | None:
        if len(self.readings) < 2:
            return None
        first, last = self.readings[0].counters.get(name), self.readings[-1].counters.get(name)
        return None if first is None or last is None else last - first

    @staticmethod
    def _rate(pair: tuple[Reading, ...], name: str) -> float | None:
        if len(pair) < 2:
            return None
        first, last = pair
        before, after = first.counters.get(name), last.counters.get(name)
        seconds = last.at - first.at
        if before is None or after is None or seconds <= 0:
            return None
        return (after - before) / seconds


def dropped(before: Reading, after: Reading) -> bool:
    """Whether any counter went back: another start of the engine."""
    return any(after.counters.get(name, value) < value for name, value in before.counters.items())


def quantile(buckets: Buckets, q: float) -> float | None:
    """As Prometheus' `histogram_quantile`: linear inside a bucket, the last finite bound for what lies above it."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    rank = q * buckets[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            if bound == float("inf"):
                return lower if len(buckets) > 1 else None
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = (bound, count) if bound != float("inf") else (lower, count)
    return lower
