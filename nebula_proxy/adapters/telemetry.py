"""The door to OpenTelemetry: spans that are over, to a collector by OTLP over HTTP, in a thread of the SDK.

Everything is imported when tracing is switched on, and only then. The SDK's queue is bounded (2048 spans unless
`OTEL_BSP_MAX_QUEUE_SIZE` says otherwise): what does not fit is lost, no request waits. Our spans are made when they
are over, with ids that were chosen before, because an engine was told its parent long ago; so the SDK samples nothing
itself, it is asked at the beginning (`sampled`).
"""

import os
import random
from typing import TYPE_CHECKING

from nebula_core import __version__
from nebula_core.errors import SettingsError
from nebula_proxy.decisions.tracing import Parent, SpanFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.trace import SpanContext

    Sampled = Callable[[Parent | None, int], bool]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: What waits is sent for so long when the process ends.
FLUSH_MILLIS = 3000


def wanted(endpoint: str | None) -> bool:
    """Whether spans shall be sent: by the setting, or by OpenTelemetry's own variables."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return False
    return endpoint is not None or any(os.environ.get(name) for name in _ENDPOINTS)


def new_id(bits: int) -> int:
    """A random id, not 0: that means none."""
    return random.getrandbits(bits) or 1


class Exporter:
    """Sends spans. `endpoint` is a collector's base address; None leaves it to the variables."""

    def __init__(self, endpoint: str | None, ratio: float, service_instance: str) -> None:
        """Raises SettingsError when the extra `otel` is not installed."""
        try:
            from opentelemetry import trace  # noqa: PLC0415 - only when tracing is on
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
            from opentelemetry.sdk.trace.id_generator import IdGenerator  # noqa: PLC0415
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415
        except ImportError as error:
            raise SettingsError(
                "traces are asked for, but OpenTelemetry is not installed", hint="pip install 'nebula[otel]'"
            ) from error

        class Chosen(IdGenerator):
            """Gives the ids that were chosen before."""

            trace_id = span_id = 1

            def generate_trace_id(self) -> int:
                return self.trace_id

            def generate_span_id(self) -> int:
                return self.span_id

        address = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
        self._ids = Chosen()
        self._trace = trace
        own = {"service.name": "nebula-proxy", "service.version": __version__, "service.instance.id": service_instance}
        resource = Resource.create(own | _from_environment())
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        self._processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=address))
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("nebula_proxy", __version__)
        if "OTEL_TRACES_SAMPLER" in os.environ:
            # A provider of its own reads the variable as every program does.
            self._sampler: Sampler | None = TracerProvider(shutdown_on_exit=False).sampler
        else:
            self._sampler = None
        self._bound = round(ratio * 2**64)

    def sampled(self, parent: Parent | None, trace_id: int) -> bool:
        """Whether a request that begins now is traced: as its caller decided, else a share of them.

        What a parent-based ratio sampler of the SDK would say, without its 8 µs; another one is asked itself.
        """
        if self._sampler is None:
            return parent.sampled if parent is not None else (trace_id & (2**64 - 1)) < self._bound
        context = None
        if parent is not None:
            span = self._trace.NonRecordingSpan(self._context(trace_id, parent.span_id, sampled=parent.sampled))
            context = self._trace.set_span_in_context(span)
        decision = self._sampler.should_sample(context, trace_id, "request").decision
        return bool(decision.is_sampled())  # type: ignore[no-untyped-call]

    def export(self, trace_id: int, spans: "Sequence[SpanFacts]") -> None:
        """Puts spans into the queue. Never waits."""
        trace = self._trace
        kinds = {
            "server": trace.SpanKind.SERVER,
            "client": trace.SpanKind.CLIENT,
            "internal": trace.SpanKind.INTERNAL,
        }
        for facts in spans:
            self._ids.trace_id, self._ids.span_id = trace_id, facts.span_id
            context = None
            if facts.parent_id:
                parent = trace.NonRecordingSpan(self._context(trace_id, facts.parent_id, sampled=True))
                context = trace.set_span_in_context(parent)
            span = self._tracer.start_span(
                facts.name,
                context=context,
                kind=kinds[facts.kind],
                attributes=dict(facts.attributes),
                start_time=_nanos(facts.start),
            )
            for event in facts.events:
                span.add_event(event.name, dict(event.attributes), timestamp=_nanos(event.at))
            if facts.error is not None:
                span.set_status(trace.StatusCode.ERROR, facts.error)
            span.end(_nanos(facts.end))

    def close(self) -> None:
        """Sends what waits, for a moment. Blocks: call it in a thread."""
        self._processor.force_flush(FLUSH_MILLIS)
        self._provider.shutdown()

    def _context(self, trace_id: int, span_id: int, *, sampled: bool) -> "SpanContext":
        trace = self._trace
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if sampled else trace.TraceFlags.DEFAULT)
        context: SpanContext = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        return context


def _from_environment() -> dict[str, str]:
    """The variable that names the service goes before our own name for it."""
    name = os.environ.get("OTEL_SERVICE_NAME")
    return {} if not name else {"service.name": name}


def _nanos(seconds: float) -> int:
    return int(seconds * 1e9)
