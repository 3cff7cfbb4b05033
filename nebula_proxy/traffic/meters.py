"""What the data plane measures, kept so that the hot path pays an addition and a bisection, no library call.

Counters and histograms are plain numbers per model; `/metrics` turns them into Prometheus families when asked, and
the process's report takes rates and quantiles over the last ten seconds as the difference of two readings.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from nebula_core.records.report import ModelTraffic

TTFT_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0,
)  # fmt: skip
ITL_BOUNDS = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 2.5, 5.0, 10.0, 20.0,
)  # fmt: skip
#: Mean time per token: between the gaps and the first token.
TPOT_BOUNDS = ITL_BOUNDS
OVERHEAD_BOUNDS = (0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)
WINDOW_SECONDS = 10.0


class Histogram:
    """Counts per bucket (the last one is above all bounds), and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


def quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """The q-quantile by linear interpolation inside its bucket; None without an observation.

    What lies above the last bound counts as the last bound.
    """
    total = sum(counts)
    if total == 0:
        return None
    rank = q * total
    passed = 0
    for index, count in enumerate(counts):
        if count and passed + count >= rank:
            if index == len(bounds):
                return bounds[-1]
            low = bounds[index - 1] if index else 0.0
            # Rounding must not lift it out of its bucket.
            return min(bounds[index], low + (bounds[index] - low) * max(0.0, rank - passed) / count)
        passed += count
    return bounds[-1]


class Reading(NamedTuple):
    """A model's counters at one moment."""

    at: float
    requests: int
    rejected: int
    failed: int
    retried: int
    prompt_tokens: int
    completion_tokens: int
    counted: int
    ttft: tuple[int, ...]
    itl: tuple[int, ...]
    duration: tuple[int, ...]


class ModelMeter:
    """All figures of one model in this process."""

    __slots__ = (
        "admissions",
        "admitted",
        "completion_tokens",
        "counted",
        "duration",
        "failed",
        "itl",
        "model",
        "overhead",
        "prompt_tokens",
        "readings",
        "rejected",
        "requests",
        "retried",
        "retries",
        "routes",
        "statuses",
        "tpot",
        "ttft",
        "wait",
        "waiting",
    )

    def __init__(self, model: str) -> None:
        self.model = model
        self.statuses: dict[int, int] = {}
        #: Let in because a replica had room; every other decision and reason is in `admissions`.
        self.admitted = 0
        self.admissions: dict[tuple[str, str], int] = {}
        self.routes: dict[tuple[str, str], int] = {}
        self.retries: dict[str, int] = {}
        #: In the waiting room now.
        self.waiting = 0
        self.requests = self.rejected = self.failed = self.retried = 0
        self.prompt_tokens = self.completion_tokens = 0
        #: Answers that said how many tokens they took.
        self.counted = 0
        self.ttft = Histogram(TTFT_BOUNDS)
        self.itl = Histogram(ITL_BOUNDS)
        self.tpot = Histogram(TPOT_BOUNDS)
        self.duration = Histogram(TTFT_BOUNDS)
        self.overhead = Histogram(OVERHEAD_BOUNDS)
        #: Time in the waiting room, of those that were there.
        self.wait = Histogram(TTFT_BOUNDS)
        self.readings: deque[Reading] = deque()

    def finished(self, status: int, seconds: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.requests += 1
        self.duration.observe(seconds)
        if status >= 500:
            self.failed += 1

    def admission(self, decision: str, reason: str) -> None:
        key = (decision, reason)
        self.admissions[key] = self.admissions.get(key, 0) + 1
        if decision == "reject":
            self.rejected += 1

    def route(self, strategy: str, reason: str) -> None:
        key = (strategy, reason)
        self.routes[key] = self.routes.get(key, 0) + 1

    def retry(self, outcome: str) -> None:
        self.retries[outcome] = self.retries.get(outcome, 0) + 1
        self.retried += 1

    def tokens(self, prompt: int | None, completion: int | None) -> None:
        if prompt is not None:
            self.prompt_tokens += prompt
        if completion is not None:
            self.completion_tokens += completion
        self.counted += 1

    def read(self, now: float) -> None:
        """Notes the counters, once a second; older ones than the window are dropped, all but one."""
        self.readings.append(
            Reading(
                now,
                self.requests,
                self.rejected,
                self.failed,
                self.retried,
                self.prompt_tokens,
                self.completion_tokens,
                self.counted,
                tuple(self.ttft.counts),
                tuple(self.itl.counts),
                tuple(self.duration.counts),
            )
        )
        while len(self.readings) > 2 and now - self.readings[1].at >= WINDOW_SECONDS:
            self.readings.popleft()

    def traffic(self) -> ModelTraffic:
        """Rates and quantiles between the oldest and the newest reading."""
        if len(self.readings) < 2:
            return ModelTraffic(model=self.model, waiting=self.waiting)
        old, new = self.readings[0], self.readings[-1]
        seconds = max(new.at - old.at, 0.001)
        ttft = _minus(new.ttft, old.ttft)
        requests = new.requests - old.requests
        counted = new.counted - old.counted
        # No answer of the window said its tokens: unknown, not none.
        known = counted > 0 or requests == 0
        return ModelTraffic(
            model=self.model,
            requests_per_second=requests / seconds,
            generation_tokens_per_second=(new.completion_tokens - old.completion_tokens) / seconds if known else None,
            prompt_tokens_per_second=(new.prompt_tokens - old.prompt_tokens) / seconds if known else None,
            rejected_per_second=(new.rejected - old.rejected) / seconds,
            failed_per_second=(new.failed - old.failed) / seconds,
            retried_per_second=(new.retried - old.retried) / seconds,
            waiting=self.waiting,
            ttft_p50_seconds=quantile(TTFT_BOUNDS, ttft, 0.50),
            ttft_p95_seconds=quantile(TTFT_BOUNDS, ttft, 0.95),
            ttft_p99_seconds=quantile(TTFT_BOUNDS, ttft, 0.99),
            itl_p95_seconds=quantile(ITL_BOUNDS, _minus(new.itl, old.itl), 0.95),
            duration_p95_seconds=quantile(TTFT_BOUNDS, _minus(new.duration, old.duration), 0.95),
        )


class Meters:
    """The meters of every model. Only names of known models get one, so that clients cannot make series."""

    #: Requests that never got as far as a known model.
    NOBODY = "-"

    def __init__(self) -> None:
        self.models: dict[str, ModelMeter] = {}
        self.nobody = ModelMeter(self.NOBODY)

    def of(self, model: str) -> ModelMeter:
        meter = self.models.get(model)
        if meter is None:
            meter = self.models[model] = ModelMeter(model)
        return meter

    def read(self, now: float) -> None:
        for meter in self.models.values():
            meter.read(now)

    def traffic(self) -> tuple[ModelTraffic, ...]:
        return tuple(meter.traffic() for meter in self.models.values())


def _minus(new: tuple[int, ...], old: tuple[int, ...]) -> list[int]:
    return [a - b for a, b in zip(new, old, strict=True)]
