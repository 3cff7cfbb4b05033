"""Traces end to end: a collector that decodes what comes, a caller with a context, an engine that is passed one."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from nebula_core.errors import SettingsError
from nebula_proxy.adapters.telemetry import Exporter, wanted
from nebula_proxy.decisions.tracing import Parent
from nebula_proxy.traffic.tracing import Tracer
from tests.support.collector import Collector, attributes_of
from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane, until
from tests.support.scripted_engine import Conversation, ScriptedEngine, talk

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    running = Collector()
    yield running
    running.close()


@contextlib.contextmanager
def tracing(running: RunningPlane, endpoint: str | None, ratio: float = 1.0) -> Iterator[Exporter]:
    exporter = Exporter(endpoint, ratio, "test")
    running.plane.tracer = Tracer(exporter)
    yield exporter


async def ask(running: RunningPlane, **headers: str) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "canary-prompt"}], "stream": True}
    async with running.client() as client:
        return await client.post("/v1/chat/completions", json=body, headers=headers)


async def test_a_request_is_a_span_between_its_caller_and_its_engine(collector: Collector) -> None:
    async def close(conversation: Conversation) -> None:
        conversation.close()

    async with ScriptedEngine(close) as bad, ScriptedEngine() as good:
        two = model(endpoint("m-r0", bad.port), endpoint("m-r1", good.port))
        async with running_plane(two) as running:
            with tracing(running, collector.url) as exporter:
                while not bad.conversations:
                    answer = await ask(running, traceparent=f"00-{TRACE}-{SPAN}-01")
                await asyncio.to_thread(exporter.close)
    assert answer.status_code == 200
    spans = {span.name: span for span in collector.spans[-3:]}
    assert set(spans) == {"attempt m-r0", "attempt m-r1", "chat m"}
    whole, first, second = spans["chat m"], spans["attempt m-r0"], spans["attempt m-r1"]
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert whole.parent_span_id.hex() == SPAN
    assert whole.kind == 2  # SERVER
    assert first.parent_span_id == second.parent_span_id == whole.span_id
    assert first.status.code == 2  # ERROR
    assert second.status.code == 0
    for attempt, engine in ((first, bad), (second, good)):
        sent = engine.conversations[-1].headers[b"traceparent"].decode()
        assert sent == f"00-{TRACE}-{attempt.span_id.hex()}-01"
    facts = attributes_of(whole)
    assert facts["gen_ai.operation.name"] == "chat"
    assert facts["gen_ai.request.model"] == MODEL
    assert facts["http.response.status_code"] == 200
    assert facts["nebula.replica"] == "m-r1"
    assert facts["nebula.request_id"] == answer.headers["x-request-id"]
    assert [event.name for event in second.events] == ["first_byte", "first_token"]
    assert whole.start_time_unix_nano <= first.start_time_unix_nano <= second.start_time_unix_nano
    assert second.end_time_unix_nano <= whole.end_time_unix_nano
    assert collector.resources[0]["service.name"] == "nebula-proxy"
    assert not any(b"canary" in span.SerializeToString() for span in collector.spans)


async def test_the_caller_decides_whether_it_is_traced_and_else_a_share(collector: Collector) -> None:
    async with ScriptedEngine() as engine, running_plane(model(endpoint("m-r0", engine.port))) as running:
        with tracing(running, collector.url, ratio=0.0) as exporter:
            await ask(running, traceparent=f"00-{TRACE}-{SPAN}-00")
            passed_on = engine.conversations[-1].headers[b"traceparent"].decode()
            assert passed_on.startswith(f"00-{TRACE}-")
            assert passed_on.endswith("-00")
            assert SPAN not in passed_on
            await ask(running)
            assert engine.conversations[-1].headers[b"traceparent"].endswith(b"-00")
            await ask(running, traceparent="nonsense")
            assert len(engine.conversations[-1].headers[b"traceparent"]) == 55
            await ask(running, traceparent=f"00-{TRACE}-{SPAN}-01")
            running.table(model())
            refused = await ask(running, traceparent=f"00-{TRACE}-{SPAN}-01")
            assert refused.status_code == 503
            await asyncio.to_thread(exporter.close)
    assert [span.name for span in collector.spans] == ["attempt m-r0", "chat m", "chat m"]
    assert collector.spans[-1].status.code == 2


async def test_the_standard_variables_hold(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wanted(None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=gpu")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "edge")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    assert wanted(None)
    async with ScriptedEngine() as engine, running_plane(model(endpoint("m-r0", engine.port))) as running:
        with tracing(running, None) as exporter:
            await ask(running)
            await asyncio.to_thread(exporter.close)
    assert len(collector.spans) == 2
    assert collector.resources[0]["service.name"] == "edge"
    assert collector.resources[0]["deployment.environment.name"] == "test"
    assert collector.headers[0]["x-team"] == "gpu"
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    collector.spans.clear()
    async with ScriptedEngine() as engine, running_plane(model(endpoint("m-r0", engine.port))) as running:
        with tracing(running, None) as exporter:
            await ask(running, traceparent=f"00-{TRACE}-{SPAN}-01")
            await asyncio.to_thread(exporter.close)
    assert collector.spans == []
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert not wanted(collector.url)
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not wanted(collector.url)


async def test_without_tracing_the_callers_context_passes_as_it_came() -> None:
    async with ScriptedEngine(talk) as engine, running_plane(model(endpoint("m-r0", engine.port))) as running:
        await ask(running, traceparent=f"00-{TRACE}-{SPAN}-01")
        assert engine.conversations[-1].headers[b"traceparent"].decode() == f"00-{TRACE}-{SPAN}-01"
        await ask(running)
        assert b"traceparent" not in engine.conversations[-1].headers
        await until(lambda: len(running.plane.ledger) == 0)


def test_the_exporter_is_not_imported_while_nobody_traces() -> None:
    """redis-py and FastAPI look for OpenTelemetry themselves; what sends spans is ours to leave alone."""
    code = (
        "import sys, nebula_proxy.app\n"
        "assert not [n for n in sys.modules if n.startswith(('opentelemetry.exporter', 'opentelemetry.sdk.trace'))]"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_missing_extra_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError) as caught:
        Exporter("http://127.0.0.1:1", 1.0, "test")
    assert caught.value.hint == "pip install 'nebula[otel]'"


def test_the_share_is_the_one_the_sdk_would_take() -> None:
    sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")
    exporter = Exporter("http://127.0.0.1:9", 0.3, "test")
    theirs = sampling.TraceIdRatioBased(0.3)
    for number in range(2000):
        trace_id = (number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128
        assert exporter.sampled(None, trace_id) == theirs.should_sample(None, trace_id, "x").decision.is_sampled()
    assert exporter.sampled(Parent(1, 2, sampled=True), 2**64 - 1)
    assert not exporter.sampled(Parent(1, 2, sampled=False), 0)
    exporter.close()
