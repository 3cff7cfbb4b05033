"""`GET /metrics` under the names of CONTRACT, 7; the figures are the meters', turned into families when asked."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from nebula_core import __version__
from nebula_proxy.decisions.overload_guard import Cause
from nebula_proxy.traffic.meters import Histogram, ModelMeter
from nebula_proxy.traffic.plane import Plane


class PlaneCollector(Collector):
    def __init__(self, plane: Plane, snapshot_age: Callable[[], float | None]) -> None:
        self._plane = plane
        self._snapshot_age = snapshot_age

    def collect(self) -> Iterator[Metric]:
        plane = self._plane
        meters = [plane.meters.nobody, *plane.meters.models.values()]
        requests = CounterMetricFamily("nebula_proxy_requests", "Requests answered.", labels=("model", "status"))
        admission = CounterMetricFamily(
            "nebula_proxy_admission", "Requests let in, held or turned away.", labels=("model", "decision", "reason")
        )
        route = CounterMetricFamily("nebula_proxy_route", "Replicas picked.", labels=("model", "strategy", "reason"))
        retries = CounterMetricFamily("nebula_proxy_retries", "Second attempts.", labels=("model", "outcome"))
        inflight = GaugeMetricFamily("nebula_proxy_inflight", "Requests open.", labels=("model",))
        for meter in meters:
            for status, count in meter.statuses.items():
                requests.add_metric((meter.model, str(status)), count)
            if meter.admitted:
                admission.add_metric((meter.model, "admit", "room"), meter.admitted)
            for decision, count in meter.admissions.items():
                admission.add_metric((meter.model, *decision), count)
            for choice, count in meter.routes.items():
                route.add_metric((meter.model, *choice), count)
            for outcome, count in meter.retries.items():
                retries.add_metric((meter.model, outcome), count)
        waiting = GaugeMetricFamily("nebula_proxy_waiting", "Requests in the waiting room.", labels=("model",))
        open_now = plane.ledger.models()
        for name, meter in plane.meters.models.items():
            inflight.add_metric((name,), open_now.get(name, 0))
            waiting.add_metric((name,), meter.waiting)
        yield from (requests, admission, route, retries, inflight, waiting)
        yield from self._histograms(plane.meters.models.values())
        records = CounterMetricFamily(
            "nebula_proxy_request_records", "Decision records kept for why, or lost.", labels=("outcome",)
        )
        records.add_metric(("written",), plane.recorder.written)
        records.add_metric(("dropped",), plane.recorder.dropped)
        yield records
        yield from self._guard()
        age = self._snapshot_age()
        gauge = GaugeMetricFamily("nebula_store_snapshot_age_seconds", "Age of what is known from the store.")
        if age is not None:
            gauge.add_metric((), age)
        yield gauge
        yield InfoMetricFamily("nebula_build", "What runs here.", value={"version": __version__, "program": "proxy"})

    def _guard(self) -> Iterator[Metric]:
        guard = self._plane.guard
        lag = GaugeMetricFamily("nebula_proxy_loop_lag_seconds", "How late the latest sweep of this worker came.")
        if guard.vitals.loop_lag_seconds is not None:
            lag.add_metric((), guard.vitals.loop_lag_seconds)
        descriptors = GaugeMetricFamily("nebula_proxy_open_descriptors", "Open files and sockets of this worker.")
        if guard.vitals.descriptors is not None:
            descriptors.add_metric((), guard.vitals.descriptors)
        shedding = GaugeMetricFamily(
            "nebula_proxy_shedding", "1 while new requests are turned away for want of this.", labels=("cause",)
        )
        for cause in Cause:
            shedding.add_metric((cause,), float(guard.shed is cause))
        closed = CounterMetricFamily(
            "nebula_proxy_connections_closed", "Connections closed as soon as they came.", labels=("reason",)
        )
        for reason, count in guard.closed.items():
            closed.add_metric((reason,), count)
        yield from (lag, descriptors, shedding, closed)

    def _histograms(self, meters: Iterable[ModelMeter]) -> Iterator[Metric]:
        kinds: tuple[tuple[str, str, Callable[[ModelMeter], Histogram]], ...] = (
            ("time_to_first_token", "From the request to the first event of a stream.", lambda meter: meter.ttft),
            ("inter_token_latency", "Between two events of a stream.", lambda meter: meter.itl),
            (
                "time_per_output_token",
                "Mean time per token of a stream after its first one.",
                lambda meter: meter.tpot,
            ),
            ("request_duration", "From the request to the end of its answer.", lambda meter: meter.duration),
            ("wait", "In the waiting room, of the requests that were there.", lambda meter: meter.wait),
            ("overhead", "Spent in the proxy itself until the request was on its way.", lambda meter: meter.overhead),
        )
        meters = list(meters)
        for name, text, of in kinds:
            family = HistogramMetricFamily(f"nebula_proxy_{name}_seconds", text, labels=("model",))
            for meter in meters:
                histogram = of(meter)
                family.add_metric((meter.model,), _cumulative(histogram), histogram.sum)
            yield family


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(repr, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


class Metrics:
    def __init__(self, plane: Plane, snapshot_age: Callable[[], float | None]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(PlaneCollector(plane, snapshot_age))

    async def metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
