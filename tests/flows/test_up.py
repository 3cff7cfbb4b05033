"""`nebula up` as the contract says it: the ready line, resume, clean end, taken port, one cluster per folder."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from nebula_core.runtime.processes import port_holder
from tests.support.engine_process import shared_memory
from tests.support.ports import free_port
from tests.support.up import Up, cluster, eventually

pytestmark = [pytest.mark.flow, pytest.mark.timeout(240)]


def test_the_ready_line(up):
    ready = up.ready
    assert ready["ready"] is True
    assert ready["models"] == ["demo"]
    assert ready["nodes"] == ["sim-1", "sim-2"]
    assert set(ready["pids"]) == {"store", "proxy", "control", "agents"}
    assert set(ready["pids"]["agents"]) == set(ready["nodes"])
    every = [ready["pids"][name] for name in ("store", "proxy", "control")] + list(ready["pids"]["agents"].values())
    assert all(psutil.pid_exists(pid) for pid in every)
    assert ready["api_key"].startswith("nbl_")
    assert ready["api_key"] != ready["admin_key"]


def test_two_replicas_on_two_nodes_and_said_to_be_simulated(up):
    rows = up.replicas()
    assert [row["phase"] for row in rows] == ["ready", "ready"]
    assert {row["node"] for row in rows} == {"sim-1", "sim-2"}
    assert all(row["simulated"] for row in rows)
    assert up.api("GET", "/cluster")["simulated"] is True


def test_no_key_stands_in_argv_or_in_the_store(up):
    secrets = [up.ready["api_key"], up.ready["admin_key"], *_file_secrets(up.data / "keys")]
    for process in up.processes():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        assert not [secret for secret in secrets if secret in line]
    kept = b"".join(
        path.read_bytes() for path in (up.data / "store").rglob("*") if path.is_file() and "aof" in path.name
    )
    assert b"nebula:v1:" in kept
    assert not [secret for secret in secrets if secret.encode() in kept]


def _file_secrets(folder: Path):
    return [path.read_text().strip() for path in folder.iterdir() if path.suffix == ".key"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_clean_and_resumes(tmp_path, number):
    data = tmp_path / "data"
    ports = free_port(), free_port()
    up = Up(data, "--nodes", "1", "--gpus", "2", "--replicas", "1")
    first = up.start(ports).ready
    engines = [row["endpoint"]["port"] for row in up.replicas()]
    up.api("POST", "/deployments/demo/scale", {"replicas": 2})
    eventually(lambda: [row["phase"] for row in up.replicas()] == ["ready", "ready"], "two ready")
    # Other clusters run beside this one: what they hold is not what it left.
    running = {process.pid for process in up.processes()}
    mapped = set().union(*map(mapped_by, running))
    assert up.stop(number) == 0
    assert up.processes() == []
    assert not (data / "tmp").exists()
    for port in (*ports, *engines):
        holder = port_holder(port)
        assert holder is None or holder.pid not in running
    assert [path for path in mapped if path.exists()] == []
    again = up.start(ports)
    try:
        assert again.ready["api_key"] == first["api_key"]
        assert again.api("GET", "/deployments/demo")["spec"]["replicas"] == 2
        assert len(again.replicas()) == 2
    finally:
        again.stop()


def mapped_by(pid):
    """Its shared memory; of one that has just ended, none."""
    try:
        return shared_memory(pid)
    except OSError:
        return set()


def nebula_up(*flags):
    return subprocess.run(
        [sys.executable, "-m", "nebula_tui", "up", "--no-ui", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def test_a_taken_port_names_port_pid_and_program(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = nebula_up("--data", str(tmp_path / "d"), "--port", str(port), "--control-port", str(free_port()))
    assert done.returncode == 1
    me = psutil.Process()
    assert str(port) in done.stderr
    assert str(me.pid) in done.stderr
    assert me.name() in done.stderr
    assert done.stdout == ""


def test_a_folder_has_one_cluster(up):
    done = nebula_up("--data", str(up.data), "--port", str(free_port()), "--control-port", str(free_port()))
    assert done.returncode == 1
    assert "already runs" in done.stderr


def test_a_killed_up_leaves_nothing_running(tmp_path):
    with cluster(tmp_path / "data", "--nodes", "1", "--replicas", "1") as up:
        assert len(up.processes()) > 3
        up.process.kill()
        eventually(lambda: not up.processes(), "every process gone")


def test_the_cli_finds_it_by_its_folder(up):
    done = subprocess.run(
        [sys.executable, "-m", "nebula_tui", "--data", str(up.data), "status", "-o", "json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["deployments"][0]["name"] == "demo"
