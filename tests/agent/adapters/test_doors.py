"""The smaller doors: ports and their holders, kept files, programs, the policy file, the agent's own page."""

import asyncio
import json
import os
import socket
import subprocess
import threading
import urllib.request
from pathlib import Path

import psutil
import pytest

from nebula_agent.adapters.gpus import Holder
from nebula_agent.adapters.host import DISK_OLD_SECONDS, Host
from nebula_agent.adapters.metrics_page import MetricsPage
from nebula_agent.adapters.node_files import KeptReplica, NodeFiles, NodeTaken
from nebula_agent.adapters.policy_file import read_policy
from nebula_agent.adapters.ports import NoPort, first_free
from nebula_agent.adapters.programs import find_program, why_missing
from nebula_agent.adapters.simulated_gpus import SimulatedGpus
from nebula_agent.decisions.obedience import Orders
from nebula_agent.engines.registry import ENGINES
from nebula_agent.loops.context import PortBook
from nebula_core.errors import SettingsError
from nebula_core.records.placement import SignedPlacement
from nebula_core.records.replica import Phase
from nebula_core.records.sample import EngineSample, GpuSample
from tests.support.ports import free_ports
from tests.support.records import a_placement, a_report, a_status


@pytest.fixture
def listener():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_taken_port_is_passed_over(listener):
    free = free_ports(2)
    assert first_free("127.0.0.1", [range(listener, listener + 1), range(free, free + 2)]) == range(free, free + 2)


def test_a_range_without_a_free_port_names_who_holds_it(listener):
    with pytest.raises(NoPort) as caught:
        first_free("127.0.0.1", [range(listener, listener + 1)])
    assert str(listener) in str(caught.value)
    assert f"pid {os.getpid()}" in str(caught.value)
    with pytest.raises(NoPort, match="Widen port_range"):
        first_free("127.0.0.1", [])


async def test_replicas_that_start_at_the_same_moment_get_different_ports():
    first = free_ports(12)
    book = PortBook("127.0.0.1", (first, first + 11))
    taken = await asyncio.gather(*(book.take(f"a-r{number}", 4) for number in range(3)))
    assert len({port for block in taken for port in block}) == 12
    with pytest.raises(NoPort):
        await book.take("a-r9", 4)
    book.release("a-r1")
    assert await book.take("a-r9", 4) == taken[1]


def test_a_folder_belongs_to_one_agent(tmp_path):
    first, second = NodeFiles(tmp_path), NodeFiles(tmp_path)
    first.open()
    with pytest.raises(NodeTaken, match=f"pid {os.getpid()}"):
        second.open()
    first.close()
    second.open()
    assert first.agent_id() == second.agent_id()
    second.close()


def test_what_is_kept_is_found_again_private_and_whole(tmp_path):
    files = NodeFiles(tmp_path)
    files.open()
    assert files.orders() == Orders()
    orders = Orders().obeyed(a_placement(epoch=4, revision=2))
    files.keep_orders(orders)
    assert files.orders() == orders
    kept = KeptReplica(
        replica="chat-r1",
        placement=SignedPlacement(payload=a_placement().to_json(), key_id="k", signature="s"),
        phase=Phase.READY,
        proven=True,
    )
    files.keep_replica(kept)
    (tmp_path / "replicas" / "torn.json").write_text('{"replica": "tor')
    assert files.all_replicas() == {"chat-r1": kept}
    assert (tmp_path / "replicas" / "torn.unreadable").exists()
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*.json")} == {"0o600"}
    files.forget_replica("chat-r1")
    assert files.all_replicas() == {}
    files.close()


def make_program(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_programs_are_found_by_setting_environment_and_path(tmp_path):
    vllm = ENGINES["vllm"]
    program = make_program(tmp_path / "venv" / "bin", "vllm")
    metadata = tmp_path / "venv/lib/python3.11/site-packages/vllm-0.32.0.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    assert find_program(vllm, None, {"PATH": ""}) is None
    for found in (
        find_program(vllm, program, {"PATH": ""}),
        find_program(vllm, None, {"PATH": "", "NEBULA_VLLM": str(program)}),
        find_program(vllm, None, {"PATH": str(program.parent)}),
    ):
        assert found is not None
        assert (found.path, found.version) == (program, (0, 32, 0))
    assert find_program(vllm, tmp_path / "nowhere", {"PATH": str(program.parent)}) is None
    assert "engines.vllm.program" in why_missing(vllm, tmp_path / "nowhere")
    assert "no vllm on PATH" in why_missing(vllm, None)


def test_a_policy_that_others_may_write_is_none(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('sources = ["/models"]\nengines = ["vllm"]\n')
    path.chmod(0o644)
    assert read_policy(path).sources == ("/models",)
    assert read_policy(None).sources is None
    path.chmod(0o666)
    with pytest.raises(SettingsError, match="written by others"):
        read_policy(path)
    path.chmod(0o644)
    path.write_text('source = ["/models"]\n')
    with pytest.raises(SettingsError, match="unknown name 'source'"):
        read_policy(path)


async def test_the_host_is_sampled_with_rates_from_the_second_time_on(tmp_path, monkeypatch):
    monkeypatch.setattr("nebula_agent.adapters.host.DISK_SECONDS", 10)
    host = Host(tmp_path)
    first, second = await host.sample(1.0), await host.sample(2.0)
    assert first.network_receive_bytes_per_second is None
    assert second.network_receive_bytes_per_second is not None
    assert 0 <= second.cpu_ratio <= 1
    assert 0 < second.memory_used_bytes < second.memory_total_bytes
    assert 0 < first.disk_used_bytes <= first.disk_total_bytes


async def test_a_disk_that_does_not_answer_has_an_unknown_fill_and_holds_nobody_up(tmp_path, monkeypatch):
    answers, usage = threading.Event(), psutil.disk_usage
    answers.set()

    def hangs(path):
        assert answers.wait(30)
        return usage(path)

    monkeypatch.setattr("psutil.disk_usage", hangs)
    monkeypatch.setattr("nebula_agent.adapters.host.DISK_SECONDS", 10)
    host = Host(tmp_path)
    first = await host.sample(1.0)
    answers.clear()
    monkeypatch.setattr("nebula_agent.adapters.host.DISK_SECONDS", 0)
    # What it said stands for a while, whoever asks again.
    assert (await host.sample(2.0)).disk_total_bytes == first.disk_total_bytes > 0
    silent = await host.sample(1.0 + DISK_OLD_SECONDS + 0.1)
    assert (silent.disk_used_bytes, silent.disk_total_bytes) == (None, None)
    answers.set()
    monkeypatch.setattr("nebula_agent.adapters.host.DISK_SECONDS", 10)
    assert (await host.sample(20.0)).disk_total_bytes == first.disk_total_bytes


async def test_a_disk_that_cannot_be_asked_has_an_unknown_fill(tmp_path):
    assert (await Host(tmp_path / "none").sample(1.0)).disk_total_bytes is None


async def test_simulated_gpus_follow_the_engines_on_them():
    gpus = SimulatedGpus("n1", 2)
    idle = await gpus.read({})
    assert [gpu.id for gpu in idle.inventory] == ["sim-n1-0", "sim-n1-1"]
    assert all(gpu.simulated and "Simulated" in gpu.name for gpu in idle.inventory)
    assert {sample.memory_used_bytes for sample in idle.samples} == {0}
    busy = await gpus.read(
        {"sim-n1-1": Holder("chat-r1", 4711, 1, EngineSample(requests_running=8, kv_cache_usage=0.5))}
    )
    free, used = busy.samples
    assert free == idle.samples[0]
    assert used.utilization_ratio == 0.5
    assert used.memory_used_bytes > 40 * 1024**3
    assert used.temperature_celsius > free.temperature_celsius
    assert used.processes[0].replica == "chat-r1"


def report():
    sample = EngineSample(requests_running=3, kv_cache_usage=0.5, prefix_cache_hits_total=7)
    return a_report(
        replicas=(a_status(sample=sample, image='we"ird\n'), a_status("chat-r2", phase=Phase.LOADING)),
        gpus=(GpuSample(gpu="GPU-1", index=0, memory_used_bytes=5),),
    )


def fetch(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_page_tells_the_report_and_passes_promtool():
    healthy = [True]
    page = MetricsPage("127.0.0.1", 0, report, lambda: healthy[0])
    try:
        status, text = fetch(page.port, "/metrics")
        assert status == 200
        assert 'nebula_gpu_memory_used_bytes{gpu="GPU-1",node="n1"} 5.0' in text
        assert 'nebula_replica_requests_running{deployment="chat",replica="chat-r1"} 3.0' in text
        assert 'phase="loading",replica="chat-r2"} 1.0' in text
        # Unknown is left out, not 0.
        assert "nebula_gpu_power_watts{" not in text
        assert "nebula_replica_requests_waiting{" not in text
        health = {"status": "ok", "engine_ready": True, "proxy_healthy": None}
        assert fetch(page.port, "/healthz") == (200, json.dumps(health))
        healthy[0] = False
        assert fetch(page.port, "/healthz")[0] == 503
        assert fetch(page.port, "/")[0] == 404
        promtool = next(
            (path for path in ("/usr/bin/promtool", "/usr/local/bin/promtool") if Path(path).exists()), None
        )
        if promtool is not None:
            subprocess.run([promtool, "check", "metrics"], input=text, text=True, check=True, timeout=30)
    finally:
        page.close()
