"""From an engine's own metric names to one `EngineSample`: by name, with fallbacks, absent is unknown.

Engines rename their metrics between versions (vLLM 0.10 to 0.11, SGLang's prefix), so each figure has a list of names
and the first one found counts. A figure whose names are all absent is None, and its first name goes into `missing`:
the feature that needs it is off and says so. Series of several engine ranks of one model are summed (requests, tokens)
or the fullest counts (cache); those of another model on the same port are left out.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nebula_agent.decisions.rates import Buckets, History, Reading
from nebula_agent.engines.versions import Known, Version, knows
from nebula_core.records.base import frozen_map
from nebula_core.records.sample import EngineSample
from nebula_core.wire.exposition import Scan, Series

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricNames:
    """The names of one kind of engine, newest first. An empty list: this engine has no such figure, and none is missed."""

    running: Names = ()
    waiting: Names = ()
    #: Also waiting, in a queue of their own (SGLang's compile of a grammar); never missed.
    waiting_too: Names = ()
    kv_cache_usage: Names = ()
    #: A gauge of tokens …
    kv_cache_tokens: Names = ()
    #: … or an info series with these labels: (name, tokens label, blocks label, block size label).
    kv_cache_info: tuple[str, str, str, str] | None = None
    prompt_tokens: Names = ()
    generation_tokens: Names = ()
    #: Prompt tokens that came from a cache; over `prompt_tokens` they are the hit ratio.
    cached_prompt_tokens: Names = ()
    #: vLLM counts as prompt tokens also those from the cache, llama.cpp only the others.
    cached_are_extra: bool = False
    prefix_queries: Names = ()
    prefix_hits: Names = ()
    #: A gauge of the hit ratio, where there are no counters (SGLang).
    hit_ratio: Names = ()
    preemptions: Names = ()
    finished: Names = ()
    #: Moves with every step, also during a long prefill.
    steps: Names = ()
    #: Histograms, without `_bucket`.
    ttft: Names = ()
    itl: Names = ()
    #: Counters and histograms appear with their first event (SGLang): absent ones are not missed.
    late: bool = False
    #: Which versions have which of these names; what is not in here, all have.
    known: Mapping[str, Known] = dataclasses.field(default_factory=frozen_map)

    def wanted(self) -> frozenset[str]:
        """Every series name to look for."""
        return frozenset(self._all())

    def candidates(self, figure: str) -> Names:
        """The names of one figure, newest first."""
        names: Names = getattr(self, figure)
        return names

    @staticmethod
    def series_name(figure: str, name: str) -> str:
        """The series by which a name is recognised on the page."""
        return f"{name}_bucket" if figure in HISTOGRAMS else name

    def may_come_late(self, figure: str) -> bool:
        """Whether its absence means only that nothing has happened yet."""
        return self.late and figure not in _GAUGES

    def of_version(self, version: Version | None) -> "MetricNames":
        """Without the figures that this version has under none of their names: they are not missed."""
        gone: dict[str, Any] = {
            figure: ()
            for figure in (*_GAUGES, *_COUNTERS, *HISTOGRAMS)
            if self.candidates(figure) and not any(knows(self.known, name, version) for name in self.candidates(figure))
        }
        return dataclasses.replace(self, **gone) if gone else self

    def _all(self) -> Iterator[str]:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if each.name in HISTOGRAMS:
                yield from (f"{name}_bucket" for name in value)
            elif each.name == "kv_cache_info":
                if value is not None:
                    yield value[0]
            elif each.name not in {"cached_are_extra", "late", "known"}:
                yield from value


@dataclass(frozen=True, slots=True)
class Figures:
    """One scrape under our own names."""

    reading: Reading
    gauges: Mapping[str, float]
    missing: tuple[str, ...]
    #: What counts as movement, for the progress of the engine.
    marks: tuple[float, ...]


_COUNTERS = (
    *("prompt_tokens", "generation_tokens", "cached_prompt_tokens", "prefix_queries", "prefix_hits", "preemptions"),
    *("finished", "steps"),
)
_GAUGES = ("running", "waiting", "kv_cache_usage")
HISTOGRAMS = ("ttft", "itl")
#: What moves when an engine moves.
_MARKS = ("prompt_tokens", "generation_tokens", "finished", "steps")
#: Not missed when absent: they only refine other figures.
OPTIONAL = frozenset({"waiting_too", "cached_prompt_tokens", "steps", "hit_ratio", "kv_cache_tokens"})


def read(names: MetricNames, scan: Scan, model: str, now: float) -> Figures:
    """Takes one scrape apart; `now` is the monotonic time at which it came."""
    missing: list[str] = []

    def find(field: str) -> tuple[Series, ...] | None:
        candidates: Names = getattr(names, field)
        for name in candidates:
            if name in scan:
                return of_model(scan[name], model)
        if candidates and field not in OPTIONAL:
            missing.append(candidates[0])
        return None

    gauges: dict[str, float] = {}
    for field in ("running", "waiting"):
        series = find(field)
        if series is not None:
            gauges[field] = sum(each.value for each in series)
            if len(series) > 1:
                gauges["ranks"] = len(series)
    if "waiting" in gauges:
        gauges["waiting"] += sum(each.value for each in find("waiting_too") or ())
    for field in ("kv_cache_usage", "hit_ratio"):
        series = find(field)
        # −1 is vLLM's word for "switched off".
        values = [min(1.0, each.value) for each in series or () if each.value >= 0]
        if values:
            # The fullest rank is the next to preempt; a hit ratio is one of all of them.
            gauges[field] = max(values) if field == "kv_cache_usage" else sum(values) / len(values)
            if field == "kv_cache_usage" and len(values) > 1:
                gauges["kv_cache_usage_mean"] = sum(values) / len(values)
    tokens = find("kv_cache_tokens")
    if tokens:
        gauges["kv_cache_tokens"] = sum(each.value for each in tokens)
    elif names.kv_cache_info is not None:
        total = _tokens_of_info(scan, names.kv_cache_info)
        if total is not None:
            gauges["kv_cache_tokens"] = total
    counters: dict[str, float] = {}
    for field in _COUNTERS:
        series = find(field)
        if series is not None:
            counters[field] = sum(each.value for each in series)
    histograms: dict[str, Buckets] = {}
    for field in HISTOGRAMS:
        buckets = _buckets(scan, getattr(names, field), model)
        if buckets is not None:
            histograms[field] = buckets
        elif getattr(names, field):
            missing.append(getattr(names, field)[0])
    if names.late:
        missing = [name for name in missing if any(name in getattr(names, field) for field in _GAUGES)]
    marks = tuple(counters[field] for field in _MARKS if field in counters)
    reading = Reading(now, frozen_map(counters), frozen_map(histograms))
    return Figures(reading, frozen_map(gauges), tuple(missing), marks)


def sample(figures: Figures, history: History, names: MetricNames, slots: int | None = None) -> EngineSample:
    """The sample of one scrape; `history` holds it and those before it, `slots` is how many requests it can run at once."""
    gauges, counters = figures.gauges, figures.reading.counters
    return EngineSample(
        requests_running=_whole(gauges.get("running")),
        requests_waiting=_whole(gauges.get("waiting")),
        kv_cache_usage=gauges.get("kv_cache_usage"),
        kv_cache_usage_mean=gauges.get("kv_cache_usage_mean"),
        engine_ranks=_whole(gauges.get("ranks")),
        kv_cache_tokens=_whole(gauges.get("kv_cache_tokens")),
        prompt_tokens_total=counters.get("prompt_tokens"),
        generation_tokens_total=counters.get("generation_tokens"),
        prefix_cache_queries_total=counters.get("prefix_queries"),
        prefix_cache_hits_total=counters.get("prefix_hits"),
        preemptions_total=counters.get("preemptions"),
        requests_finished_total=counters.get("finished"),
        prompt_tokens_per_second=history.rate("prompt_tokens"),
        generation_tokens_per_second=history.rate("generation_tokens"),
        prefix_cache_hit_ratio=_hit_ratio(history, names, gauges),
        ttft_p50_seconds=history.quantile("ttft", 0.5),
        ttft_p95_seconds=history.quantile("ttft", 0.95),
        itl_p95_seconds=history.quantile("itl", 0.95),
        slots_total=slots,
        missing=figures.missing,
    )


def of_model(series: tuple[Series, ...], model: str) -> tuple[Series, ...]:
    """Those labelled with this model, when any is; else all. Of the ranks of one group, which all say the same, the first."""
    leading = tuple(
        each for each in series if all(each.labels.get(rank, "0") == "0" for rank in ("tp_rank", "pp_rank"))
    )
    mine = tuple(each for each in leading if each.labels.get("model_name", model) == model)
    return mine or leading or series


def _hit_ratio(history: History, names: MetricNames, gauges: Mapping[str, float]) -> float | None:
    # Cached prompt tokens first: hits and queries count a request twice when it is scheduled twice (vllm#43736).
    cached = None if names.cached_are_extra else history.ratio("cached_prompt_tokens", "prompt_tokens")
    if cached is not None:
        return cached
    hits = history.ratio("prefix_hits", "prefix_queries")
    return hits if hits is not None else gauges.get("hit_ratio")


def _tokens_of_info(scan: Scan, info: tuple[str, str, str, str]) -> float | None:
    name, tokens, blocks, size = info
    total = 0.0
    for series in scan.get(name, ()):
        found = _number(series.labels.get(tokens))
        if found is None:
            count, each = _number(series.labels.get(blocks)), _number(series.labels.get(size))
            found = None if count is None or each is None else count * each
        if found is None:
            return None
        total += found
    return total or None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _buckets(scan: Scan, candidates: Names, model: str) -> Buckets | None:
    for name in candidates:
        series = scan.get(f"{name}_bucket")
        if series:
            summed: dict[float, float] = {}
            for each in of_model(series, model):
                bound = _number(each.labels.get("le"))
                if bound is not None:
                    summed[bound] = summed.get(bound, 0.0) + each.value
            return tuple(sorted(summed.items()))
    return None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
