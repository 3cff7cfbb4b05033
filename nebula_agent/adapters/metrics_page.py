"""The agent's own `/metrics` and `/healthz`, on loopback, in a thread: Prometheus may be slow, the heartbeat not."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.report import NodeReport

LastReport = Callable[[], NodeReport | None]
_REQUEST_SECONDS = 10.0


class ReportCollector(Collector):
    """The latest report as metric families (CONTRACT, 7). What is unknown is left out, never 0."""

    def __init__(self, last: LastReport) -> None:
        self._last = last

    def collect(self) -> Iterable[Metric]:
        report = self._last()
        if report is None:
            return
        build = InfoMetricFamily("nebula_build", "The running version.")
        build.add_metric((), {"version": report.version, "component": "agent"})
        yield build
        yield from _gpu_families(report)
        yield from _gpu_state_families(report)
        yield from _replica_families(report)


def _gpu_families(report: NodeReport) -> Iterator[Metric]:
    for name, text, field in (
        ("memory_used_bytes", "Memory in use.", "memory_used_bytes"),
        ("memory_total_bytes", "Memory built in.", "memory_total_bytes"),
        ("utilization_ratio", "Share of time in which a kernel ran.", "utilization_ratio"),
        ("temperature_celsius", "Temperature of the chip.", "temperature_celsius"),
        ("power_watts", "Power drawn.", "power_watts"),
        ("power_limit_watts", "Power it may draw.", "power_limit_watts"),
        ("memory_unexplained_bytes", "Memory in use that no process explains.", "memory_unexplained_bytes"),
        ("pcie_receive_bytes_per_second", "Received over PCIe.", "pcie_receive_bytes_per_second"),
        ("pcie_send_bytes_per_second", "Sent over PCIe.", "pcie_send_bytes_per_second"),
        ("nvlinks_active", "NVLink links that are up.", "nvlinks_active"),
        ("xid", "The latest Xid the kernel reported in this boot.", "xid"),
    ):
        family = GaugeMetricFamily(f"nebula_gpu_{name}", text, labels=("node", "gpu"))
        for gpu in report.gpus:
            value = getattr(gpu, field)
            if value is not None:
                family.add_metric((report.node, gpu.gpu), value)
        yield family


def _gpu_state_families(report: NodeReport) -> Iterator[Metric]:
    faulty = GaugeMetricFamily("nebula_gpu_faulty", "1: nothing may be placed on it.", labels=("node", "gpu"))
    throttled = GaugeMetricFamily(
        "nebula_gpu_throttled", "1 for each reason it runs slower than it could.", labels=("node", "gpu", "reason")
    )
    errors = (
        ("ecc_corrected_total", "Corrected memory errors since the driver was loaded."),
        ("ecc_uncorrected_total", "Uncorrected memory errors since the driver was loaded."),
        ("nvlink_errors_total", "Errors of its NVLink links."),
    )
    for gpu in report.gpus:
        faulty.add_metric((report.node, gpu.gpu), float(gpu.fault is not None))
        for reason in gpu.throttle_reasons or ():
            throttled.add_metric((report.node, gpu.gpu, reason), 1)
    yield faulty
    yield throttled
    for field, text in errors:
        family = CounterMetricFamily(f"nebula_gpu_{field}", text, labels=("node", "gpu"))
        for gpu in report.gpus:
            value = getattr(gpu, field)
            if value is not None:
                family.add_metric((report.node, gpu.gpu), value)
        yield family


def _replica_families(report: NodeReport) -> Iterator[Metric]:
    status = GaugeMetricFamily(
        "nebula_container_status",
        "1 for the phase a replica is in.",
        labels=("node", "deployment", "replica", "image", "phase"),
    )
    restarts = CounterMetricFamily(
        "nebula_container_restarts_total", "Starts after the first.", labels=("node", "deployment", "replica")
    )
    for replica in report.replicas:
        labels = (report.node, replica.deployment, replica.id)
        status.add_metric((*labels, replica.image or "", replica.phase.value), 1)
        restarts.add_metric(labels, replica.restarts)
    yield status
    yield restarts
    for name, text, field in (
        ("kv_cache_usage_ratio", "Fill of the KV cache.", "kv_cache_usage"),
        ("requests_running", "Requests the engine works on.", "requests_running"),
        ("requests_waiting", "Requests that wait inside the engine.", "requests_waiting"),
    ):
        gauge = GaugeMetricFamily(f"nebula_replica_{name}", text, labels=("deployment", "replica"))
        _fill(gauge, report.replicas, field)
        yield gauge
    for name, text, field in (
        ("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", "prefix_cache_hits_total"),
        ("prefix_cache_queries_total", "Prompt tokens looked for in it.", "prefix_cache_queries_total"),
    ):
        counter = CounterMetricFamily(f"nebula_replica_{name}", text, labels=("deployment", "replica"))
        _fill(counter, report.replicas, field)
        yield counter


def _fill(family: Any, replicas: Iterable[ReplicaStatus], field: str) -> None:
    for replica in replicas:
        value = None if replica.sample is None else getattr(replica.sample, field)
        if value is not None:
            family.add_metric((replica.deployment, replica.id), value)


class MetricsPage:
    """Serves until closed. Raises OSError when it cannot listen."""

    def __init__(
        self,
        host: str,
        port: int,
        last: LastReport,
        healthy: Callable[[], bool],
        proxies: Callable[[], bool | None] = lambda: None,
    ) -> None:
        """`proxies`: whether any proxy has been heard of lately; None: nobody asked."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(ReportCollector(last))
        metrics = make_wsgi_app(registry)

        def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            match environ.get("PATH_INFO"):
                case "/metrics":
                    return metrics(environ, start_response)  # type: ignore[no-any-return]
                case "/healthz":
                    good = healthy()
                    body = json.dumps(_health(last(), good, proxies())).encode()
                    start_response(
                        "200 OK" if good else "503 Service Unavailable", [("Content-Type", "application/json")]
                    )
                    return [body]
                case _:
                    start_response("404 Not Found", [("Content-Type", "text/plain")])
                    return [b"/metrics and /healthz are here\n"]

        self._server = make_server(host, port, page, _Server, _Handler)
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics-page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def _health(report: NodeReport | None, good: bool, proxies: bool | None) -> dict[str, object]:
    """As the sidecar's probes read it: the agent itself, whether an engine of its serves, whether requests can come."""
    ready = report is not None and any(replica.phase is Phase.READY for replica in report.replicas)
    return {"status": "ok" if good else "stuck", "engine_ready": ready, "proxy_healthy": proxies}


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Scrapes are not news."""
