"""`GET /metrics` of the control process, under the names of CONTRACT, 7: the planner, and the fleet as the snapshot has it."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from nebula_core import __version__
from nebula_core.records.views import NodeView, ReplicaView
from nebula_proxy.control.desk import Desk

_GPU = (
    ("memory_used_bytes", "Device memory in use."),
    ("memory_total_bytes", "Device memory there is."),
    ("utilization_ratio", "Share of time the GPU was busy, 0 to 1."),
    ("temperature_celsius", "Temperature of the GPU."),
    ("power_watts", "Power drawn."),
)
_GAUGES = (
    ("kv_cache_usage_ratio", "kv_cache_usage", "Fill of the KV cache, 0 to 1."),
    ("requests_running", "requests_running", "Requests the engine works on."),
    ("requests_waiting", "requests_waiting", "Requests that wait inside the engine."),
)
_COUNTERS = (
    ("prefix_cache_hits", "prefix_cache_hits_total", "Prompt tokens found in the prefix cache."),
    ("prefix_cache_queries", "prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."),
)


class ControlCollector(Collector):
    """Makes families of what is known when it is asked; what is unknown is left out, never 0."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def collect(self) -> Iterator[Metric]:
        look = self._desk.look()
        yield from self._planner()
        yield from _gpus(list(look.nodes.values()))
        yield from _containers(list(look.replicas.values()))
        yield from _replicas(list(look.replicas.values()))
        yield InfoMetricFamily("nebula_build", "What runs here.", value={"version": __version__, "program": "control"})

    def _planner(self) -> Iterator[Metric]:
        planner = self._desk.planner
        actions = CounterMetricFamily("nebula_planner_actions", "Placements written.", labels=("kind",))
        for kind, count in sorted(planner.actions.items()):
            actions.add_metric((kind,), count)
        yield actions
        yield GaugeMetricFamily("nebula_planner_leader", "1 where the planner leads.", value=float(planner.is_leader))
        age = self._desk.watcher.snapshot_age(self._desk.clock.monotonic())
        family = GaugeMetricFamily("nebula_store_snapshot_age_seconds", "Age of what is known from the store.")
        if age is not None:
            family.add_metric((), age)
        yield family
        yield GaugeMetricFamily(
            "nebula_control_streams",
            "Watches, logs and events being followed.",
            value=float(self._desk.hub.open_streams),
        )


def _gpus(nodes: list[NodeView]) -> Iterator[Metric]:
    for name, text in _GPU:
        family = GaugeMetricFamily(f"nebula_gpu_{name}", text, labels=("node", "gpu"))
        for node in nodes:
            for gpu in node.gpus:
                value = getattr(gpu.sample, name, None)
                if value is None and name == "memory_total_bytes":
                    value = gpu.memory_total_bytes
                if value is not None:
                    family.add_metric((node.id, gpu.id), value)
        yield family


def _containers(replicas: list[ReplicaView]) -> Iterator[Metric]:
    status = GaugeMetricFamily(
        "nebula_container_status",
        "1 for the phase each replica is in.",
        labels=("node", "deployment", "replica", "image", "phase"),
    )
    restarts = CounterMetricFamily(
        "nebula_container_restarts", "Engine starts after the first.", labels=("node", "deployment", "replica")
    )
    for view in replicas:
        status.add_metric((view.node, view.deployment, view.id, view.image or "", view.phase.value), 1)
        restarts.add_metric((view.node, view.deployment, view.id), view.restarts)
    yield from (status, restarts)


def _replicas(replicas: list[ReplicaView]) -> Iterator[Metric]:
    labels = ("deployment", "replica")
    for kind, figures in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for name, attribute, text in figures:
            family = kind(f"nebula_replica_{name}", text, labels=labels)
            for view in replicas:
                value = getattr(view.sample, attribute, None)
                if value is not None:
                    family.add_metric((view.deployment, view.id), value)
            yield family


class Metrics:
    def __init__(self, desk: Desk) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(ControlCollector(desk))

    def answer(self) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
