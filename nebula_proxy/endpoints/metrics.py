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
            "nebula_proxy_admission", "Requests let in or turned away.", labels=("model", "decision", "reason")
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
        open_now = plane.ledger.models()
        for name in plane.meters.models:
            inflight.add_metric((name,), open_now.get(name, 0))
        yield from (requests, admission, route, retries, inflight)
        yield from self._histograms(plane.meters.models.values())
        age = self._snapshot_age()
        gauge = GaugeMetricFamily("nebula_store_snapshot_age_seconds", "Age of what is known from the store.")
        if age is not None:
            gauge.add_metric((), age)
        yield gauge
        yield InfoMetricFamily("nebula_build", "What runs here.", value={"version": __version__, "program": "proxy"})

    def _histograms(self, meters: Iterable[ModelMeter]) -> Iterator[Metric]:
        kinds: tuple[tuple[str, str, Callable[[ModelMeter], Histogram]], ...] = (
            ("time_to_first_token", "From the request to the first event of a stream.", lambda meter: meter.ttft),
            ("inter_token_latency", "Between two events of a stream.", lambda meter: meter.itl),
            ("request_duration", "From the request to the end of its answer.", lambda meter: meter.duration),
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
