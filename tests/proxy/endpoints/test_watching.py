"""What operators and load balancers ask of the data plane: health, models, metrics."""

import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.data_plane import MODEL, RunningPlane, endpoint, model
from tests.support.scripted_engine import ScriptedEngine, event

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}

NAMES = {
    "nebula_proxy_requests": {"model", "status"},
    "nebula_proxy_inflight": {"model"},
    "nebula_proxy_admission": {"model", "decision", "reason"},
    "nebula_proxy_route": {"model", "strategy", "reason"},
    "nebula_proxy_time_to_first_token_seconds": {"model"},
    "nebula_proxy_inter_token_latency_seconds": {"model"},
    "nebula_proxy_request_duration_seconds": {"model"},
    "nebula_proxy_overhead_seconds": {"model"},
}


async def metrics(running: RunningPlane) -> str:
    async with running.client() as client:
        return (await client.get("/metrics")).text


async def test_metrics_have_the_names_of_the_contract(running: RunningPlane, engine: ScriptedEngine) -> None:
    async with running.client() as client:
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        await client.post("/v1/chat/completions", json=CHAT | {"model": "cold"})
        await client.post("/v1/chat/completions", json=CHAT | {"model": "no\nsuch"})
    text = await metrics(running)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name, labels in NAMES.items():
        samples = families[name].samples
        assert samples
        assert all(labels <= sample.labels.keys() for sample in samples)
    assert {"nebula_proxy_retries", "nebula_store_snapshot_age_seconds", "nebula_build_info"} <= families.keys()
    statuses = {
        (sample.labels["model"], sample.labels["status"]): sample.value
        for sample in families["nebula_proxy_requests"].samples
    }
    assert statuses == {(MODEL, "200"): 2, ("cold", "503"): 1, ("-", "404"): 1}
    durations = families["nebula_proxy_request_duration_seconds"].samples
    (count,) = [each.value for each in durations if each.name.endswith("_count") and each.labels["model"] == MODEL]
    buckets = [each.value for each in durations if each.name.endswith("_bucket") and each.labels["model"] == MODEL]
    assert buckets == sorted(buckets)
    assert buckets[-1] == count == 2


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_promtool_has_nothing_to_say(running: RunningPlane) -> None:
    async with running.client() as client:
        await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
    checked = subprocess.run(  # noqa: ASYNC221 - the loop has nothing else to do
        ["promtool", "check", "metrics"], input=(await metrics(running)).encode(), capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


async def test_health_in_three_shades(running: RunningPlane, engine: ScriptedEngine) -> None:
    async with running.client() as client:
        healthy = {"status": "ok", "engine_ready": True, "proxy_healthy": True}
        assert (await client.get("/health")).json() == healthy
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).status_code == 200
        running.table(model(wanted=1))
        assert (await client.get("/health")).json() == healthy | {"status": "degraded", "engine_ready": False}
        assert (await client.get("/readyz")).status_code == 200  # it can serve, it has nothing to serve from
        running.plane.draining = True
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200


async def test_models_come_from_the_table(running: RunningPlane, engine: ScriptedEngine) -> None:
    async with running.client() as client:
        listed = (await client.get("/v1/models")).json()
        assert [(entry["id"], entry["object"], entry["ready"]) for entry in listed["data"]] == [
            ("cold", "model", 0),
            (MODEL, "model", 1),
        ]
        assert (await client.get(f"/v1/models/{MODEL}")).json()["id"] == MODEL
        running.table(model(endpoint("m-r0", engine.port), name="new"))
        assert [entry["id"] for entry in (await client.get("/v1/models")).json()["data"]] == ["new"]
    assert engine.conversations == []


async def test_a_report_says_what_was_measured(running: RunningPlane, engine: ScriptedEngine) -> None:
    meters = running.plane.meters
    meters.of(MODEL)
    meters.read(0.0)
    async with running.client() as client:
        response = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert response.content.startswith(event("Hello"))
    meters.read(1.0)
    (traffic,) = meters.traffic()
    assert (traffic.model, traffic.requests_per_second, traffic.generation_tokens_per_second) == (MODEL, 1.0, 2.0)
    assert traffic.ttft_p50_seconds is not None
