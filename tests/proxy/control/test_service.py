"""Health and metrics of the control process."""

import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nebula_core.records.access import Role
from tests.support.control import RunningControl

LABELS = ("kind", "node", "gpu", "deployment", "replica", "image", "phase", "version", "program")


async def metrics(control: RunningControl) -> dict[str, dict[tuple[str, ...], float]]:
    async with control.client(Role.VIEWER) as api:
        text = (await api.get(f"{control.url}/metrics")).text
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[
                tuple(sample.labels[name] for name in LABELS if name in sample.labels)
            ] = sample.value
    return found


async def test_the_fleet_in_figures(control: RunningControl) -> None:
    await control.deploy("chat", 1)
    await control.ready()
    found = await metrics(control)
    assert found["nebula_planner_leader"] == {(): 1.0}
    assert found["nebula_planner_actions_total"] == {("run",): 1.0}
    assert len(found["nebula_gpu_memory_used_bytes"]) == 8
    assert "nebula_gpu_power_watts" not in found  # unknown is left out, never 0
    assert found["nebula_container_status"] == {("n1", "chat", "chat-r1", "", "ready"): 1.0}
    assert found["nebula_replica_requests_running"] == {("chat", "chat-r1"): 0.0}
    assert "nebula_replica_kv_cache_usage_ratio" not in found
    assert 0 <= found["nebula_store_snapshot_age_seconds"][()] < 60
    assert list(found["nebula_build_info"].values()) == [1.0]


async def test_promtool_finds_nothing_to_say(control: RunningControl) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    await control.deploy("chat", 1)
    await control.ready()
    async with control.client(Role.VIEWER) as api:
        text = (await api.get(f"{control.url}/metrics")).content
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False, timeout=30)  # noqa: ASYNC221
    assert done.returncode == 0, done.stderr


async def test_health_needs_no_key(control: RunningControl) -> None:
    async with control.client(None) as api:
        assert (await api.get(f"{control.url}/healthz")).json() == {"status": "ok"}
        ready = (await api.get(f"{control.url}/readyz")).json()
        assert ready == {"ready": True, "store_reachable": True, "leader": True}


async def test_the_leader_and_its_brake(control: RunningControl) -> None:
    async with control.client(Role.OPERATOR) as api:
        leader = (await api.get("/leader")).json()
        assert leader == {
            "holder": control.process.planner.holder,
            "epoch": 1,
            "here": True,
            "brake": None,
        }
        answer = (await api.post("/leader/release-brake")).json()
        assert answer["summary"].startswith("nothing to do")
