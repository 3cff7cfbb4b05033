"""`/metrics` of the simulated engine: the names, types, labels and buckets of vLLM 0.32.0, true to the scheduler.

The registry is filled as vLLM's is: all series of the engine stand at zero from the start, the `http_*` ones appear
with their first request, and values move once per step, so an idle engine's gauges stand still. What counts when is
vLLM's too (`v1/metrics/stats.py`): prompt tokens when the first token is out, a finished request when its last is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    Summary,
    generate_latest,
)

_Metric = TypeVar("_Metric", Counter, Gauge)

_LATENCY = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_GAP = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
_PARAM_N = (1, 2, 5, 10, 20)
_HTTP_HIGH_RESOLUTION = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5),
    *(7.5, 10, 30, 60),
)
_HTTP = (0.1, 0.5, 1)

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
#: Paths the HTTP metrics leave out.
UNCOUNTED_PATHS = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})


def token_buckets(max_model_len: int) -> tuple[int, ...]:
    """1-2-5 decades up to `max_model_len`."""
    buckets: list[int] = []
    decade = 1
    while True:
        for factor in (1, 2, 5):
            if factor * decade > max_model_len:
                return tuple(buckets)
            buckets.append(factor * decade)
        decade *= 10


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstToken:
    """A request's first token came out: what it cost until then."""

    prompt_tokens: int
    cached_tokens: int
    ttft_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A request's last token came out. Moments are monotonic seconds."""

    reason: str
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    max_tokens: int
    params_n: int
    preemptions: int
    arrived_at: float
    queued_at: float
    scheduled_at: float
    first_token_at: float
    last_token_at: float


class EngineMetrics:
    """The registry of one engine process."""

    def __init__(self, model: str, max_model_len: int, cache_config: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        GCCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        ProcessCollector(registry=self.registry)
        self._labels = {"engine": "0", "model_name": model}
        self._model = model
        tokens = token_buckets(max_model_len)
        for name, text in _ESTIMATES.items():
            self._counter(name, text)
        self._running = self._gauge("vllm:num_requests_running", "Number of requests in model execution batches.")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.")
        by_reason = self._labelled(
            Gauge, "vllm:num_requests_waiting_by_reason", _WAITING_BY_REASON, "reason", ("capacity", "deferred")
        )
        self._waiting_for_capacity = by_reason["capacity"]
        sleep = self._labelled(
            Gauge,
            "vllm:engine_sleep_state",
            _SLEEP_STATE,
            "sleep_state",
            ("awake", "weights_offloaded", "discard_all"),
        )
        sleep["awake"].set(1)
        self._usage = self._gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        self._prefix_queries = self._counter("vllm:prefix_cache_queries", _QUERIES)
        self._prefix_hits = self._counter("vllm:prefix_cache_hits", _HITS)
        for name, text in _UNUSED_CACHES.items():
            self._counter(name, text)
        self._preemptions = self._counter("vllm:num_preemptions", "Cumulative number of preemption from the engine.")
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Number of prefill tokens processed.")
        self._by_source = self._labelled(
            Counter,
            "vllm:prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            "source",
            ("local_compute", "local_cache_hit", "external_kv_transfer"),
        )
        self._cached_tokens = self._counter(
            "vllm:prompt_tokens_cached", "Number of cached prompt tokens (local + external)."
        )
        self._cached_by_tier = self._labelled(
            Counter,
            "vllm:prompt_tokens_cached_by_source",
            _CACHED_BY_SOURCE,
            "source",
            ("device", "host", "p2p", "disk", "external_unspecified"),
        )
        self._generation_tokens = self._counter("vllm:generation_tokens", "Number of generation tokens processed.")
        self._success = self._labelled(
            Counter,
            "vllm:request_success",
            "Count of successfully processed requests.",
            "finished_reason",
            FINISH_REASONS,
        )
        rejections = Counter(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            ("model_name", "reason"),
            registry=self.registry,
        )
        self._rejected_requests = rejections.labels(model, "max_num_queued_reqs")
        rejections.labels(model, "max_num_queued_tokens")
        self._request_prompt = self._histogram(
            "vllm:request_prompt_tokens", "Number of prefill tokens processed.", tokens
        )
        self._request_generation = self._histogram(
            "vllm:request_generation_tokens", "Number of generation tokens processed.", tokens
        )
        self._iteration = self._histogram(
            "vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", _ITERATION
        )
        self._max_generation = self._histogram(
            "vllm:request_max_num_generation_tokens",
            "Histogram of maximum number of requested generation tokens.",
            tokens,
        )
        self._params_n = self._histogram("vllm:request_params_n", "Histogram of the n request parameter.", _PARAM_N)
        self._params_max_tokens = self._histogram(
            "vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", tokens
        )
        self._ttft = self._histogram(
            "vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", _TTFT
        )
        self._gap = self._histogram(
            "vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", _GAP
        )
        self._per_output_token = self._histogram(
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            _GAP,
        )
        self._e2e = self._histogram(
            "vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", _LATENCY
        )
        self._queue_time = self._histogram(
            "vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", _LATENCY
        )
        self._inference_time = self._histogram(
            "vllm:request_inference_time_seconds",
            "Histogram of time spent in RUNNING phase for request.",
            _LATENCY,
        )
        self._prefill_time = self._histogram(
            "vllm:request_prefill_time_seconds",
            "Histogram of time spent in PREFILL phase for request.",
            _LATENCY,
        )
        self._decode_time = self._histogram(
            "vllm:request_decode_time_seconds",
            "Histogram of time spent in DECODE phase for request.",
            _LATENCY,
        )
        self._request_preemptions = self._histogram(
            "vllm:request_num_preemptions",
            "Histogram of the number of times a request was preempted.",
            _PREEMPTIONS,
        )
        self._prefill_computed = self._histogram(
            "vllm:request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            tokens,
        )
        info = {**cache_config, "engine": "0"}
        Gauge(
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig",
            sorted(info),
            registry=self.registry,
        ).labels(**info).set(1)
        Gauge(
            "nebula_simulated_engine",
            "1: this engine is simulated, its text has no meaning.",
            registry=self.registry,
        ).set(1)
        self._declare_http()

    # -- what happened ---------------------------------------------------------------------------------------------

    def record_state(self, running: int, waiting: int, usage: float) -> None:
        self._running.set(running)
        self._waiting.set(waiting)
        self._waiting_for_capacity.set(waiting)
        self._usage.set(usage)

    def record_cache(self, queries: int, hits: int) -> None:
        if queries:
            self._prefix_queries.inc(queries)
        if hits:
            self._prefix_hits.inc(hits)
            self._cached_by_tier["device"].inc(hits)

    def record_step(
        self, generated: int, preemptions: int, first_tokens: Sequence[FirstToken], gaps: Sequence[float]
    ) -> None:
        computed = 0
        for first in first_tokens:
            computed += first.prompt_tokens - first.cached_tokens
            self._prompt_tokens.inc(first.prompt_tokens)
            self._by_source["local_compute"].inc(first.prompt_tokens - first.cached_tokens)
            self._by_source["local_cache_hit"].inc(first.cached_tokens)
            self._cached_tokens.inc(first.cached_tokens)
            self._ttft.observe(first.ttft_seconds)
        for gap in gaps:
            self._gap.observe(gap)
        if preemptions:
            self._preemptions.inc(preemptions)
        self._generation_tokens.inc(generated)
        self._iteration.observe(computed + generated)

    def record_finished(self, finished: Finished) -> None:
        self._success[finished.reason].inc()
        self._request_prompt.observe(finished.prompt_tokens)
        self._request_generation.observe(finished.generated_tokens)
        self._max_generation.observe(finished.generated_tokens)
        self._params_n.observe(finished.params_n)
        self._params_max_tokens.observe(finished.max_tokens)
        decode = finished.last_token_at - finished.first_token_at
        self._per_output_token.observe(
            decode / (finished.generated_tokens - 1) if finished.generated_tokens > 1 else 0.0
        )
        self._e2e.observe(finished.last_token_at - finished.arrived_at)
        self._queue_time.observe(finished.scheduled_at - finished.queued_at)
        self._inference_time.observe(finished.last_token_at - finished.scheduled_at)
        self._prefill_time.observe(finished.first_token_at - finished.scheduled_at)
        self._decode_time.observe(decode)
        self._request_preemptions.observe(finished.preemptions)
        self._prefill_computed.observe(finished.prompt_tokens - finished.cached_tokens)

    def record_rejection(self) -> None:
        self._rejected_requests.inc()

    def record_http(
        self, handler: str, method: str, status: int, request_bytes: int, response_bytes: int, seconds: float
    ) -> None:
        """One finished HTTP request; `handler` is the route, "none" for a path there is no route for."""
        self._http_requests.labels(handler, method, f"{status // 100}xx").inc()
        self._http_request_size.labels(handler).observe(request_bytes)
        self._http_response_size.labels(handler).observe(response_bytes)
        self._http_duration_high.observe(seconds)
        self._http_duration.labels(handler, method).observe(seconds)

    def exposition(self) -> tuple[bytes, str]:
        """Body and content type: always the text format 1.0.0, whatever the scraper says it accepts."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    # -- how it is declared ----------------------------------------------------------------------------------------

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, sorted(self._labels), registry=self.registry).labels(**self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, sorted(self._labels), registry=self.registry).labels(**self._labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, sorted(self._labels), buckets=buckets, registry=self.registry).labels(
            **self._labels
        )

    def _labelled(
        self, kind: type[_Metric], name: str, text: str, label: str, values: Sequence[str]
    ) -> dict[str, _Metric]:
        family = kind(name, text, [*sorted(self._labels), label], registry=self.registry)
        return {value: family.labels(**self._labels, **{label: value}) for value in values}

    def _declare_http(self) -> None:
        self._http_requests = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ("handler", "method", "status"),
            registry=self.registry,
        )
        self._http_request_size = Summary(
            "http_request_size_bytes", _REQUEST_SIZE, ("handler",), registry=self.registry
        )
        self._http_response_size = Summary(
            "http_response_size_bytes", _RESPONSE_SIZE, ("handler",), registry=self.registry
        )
        self._http_duration_high = Histogram(
            "http_request_duration_highr_seconds",
            _HIGH_RESOLUTION,
            buckets=_HTTP_HIGH_RESOLUTION,
            registry=self.registry,
        )
        self._http_duration = Histogram(
            "http_request_duration_seconds",
            _LOW_RESOLUTION,
            ("handler", "method"),
            buckets=_HTTP,
            registry=self.registry,
        )


_ESTIMATES = {
    "vllm:estimated_flops_per_gpu": "Estimated number of floating point operations per GPU (for Model Flops Utilization calculations).",
    "vllm:estimated_read_bytes_per_gpu": "Estimated number of bytes read from memory per GPU (for Model Flops Utilization calculations).",
    "vllm:estimated_write_bytes_per_gpu": "Estimated number of bytes written to memory per GPU (for Model Flops Utilization calculations).",
}
_WAITING_BY_REASON = (
    "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = "
    "deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals "
    "vllm:num_requests_waiting."
)
_SLEEP_STATE = (
    "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 "
    "means sleep level 1; discard_all = 1 means sleep level 2."
)
_QUERIES = "Prefix cache queries, in terms of number of queried tokens."
_HITS = "Prefix cache hits, in terms of number of cached tokens."
_UNUSED_CACHES = {
    "vllm:external_prefix_cache_queries": "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of queried tokens.",
    "vllm:external_prefix_cache_hits": "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of cached tokens.",
    "vllm:mm_cache_queries": "Multi-modal cache queries, in terms of number of queried items.",
    "vllm:mm_cache_hits": "Multi-modal cache hits, in terms of number of cached items.",
}
_CACHED_BY_SOURCE = (
    "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk, "
    "p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to "
    "vllm:prefix_cache_hits + vllm:external_prefix_cache_hits."
)
_REQUEST_SIZE = (
    "Content length of incoming requests by handler. Only value of header is respected. Otherwise ignored. No "
    "percentile calculated. "
)
_RESPONSE_SIZE = (
    "Content length of outgoing responses by handler. Only value of header is respected. Otherwise ignored. No "
    "percentile calculated. "
)
_HIGH_RESOLUTION = (
    "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. "
)
_LOW_RESOLUTION = (
    "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. "
)
