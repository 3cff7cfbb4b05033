"""An engine started by hand, taken in by `POST /adopt`: as an operator meets it."""

import os
import signal
import subprocess
import sys

import httpx
import pytest

from tests.support.by_hand import NEW_VLLM, ByHand, make_vllm_images
from tests.support.docker import simulator_docker, why_no_docker
from tests.support.engine_process import VLLM_MODEL, missing_vllm, put_computing_behind
from tests.support.ports import free_ports
from tests.support.up import cluster, eventually

pytestmark = pytest.mark.timeout(180, func_only=True)


@pytest.fixture
def engine():
    port = free_ports(1)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "nebula_agent.simulator", "--host", "127.0.0.1", "--port", str(port)),
            *("--preset", "instant", "--served-model-name", "org/Mine"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("NEBULA")},
    )
    yield process
    process.kill()
    process.wait(10)


def test_an_engine_started_by_hand_is_shown_taken_in_and_routed_to(tmp_path, engine):
    with cluster(tmp_path / "data", "--nodes", "2", "--gpus", "1", "--replicas", "1", looks=True) as up:

        def found():
            rows = [row for row in up.api("GET", "/replicas")["items"] if row["pid"] == engine.pid]
            assert len(rows) < 2, "one agent of a machine looks"
            return rows[0] if rows and rows[0]["phase"] == "ready" else None

        row = eventually(found, "it is shown")
        assert row["managed"] is False
        assert row["model"] == "org/Mine"
        url, key = up.ready["openai_base_url"], up.ready["api_key"]
        body = {"model": "Mine", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}

        def ask():
            headers = {"authorization": f"Bearer {key}"}
            return httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=60)

        assert ask().status_code == 404, "nobody has taken it in"
        plan = up.api("POST", "/adopt", {"replica": row["id"]}, dry_run=1)
        assert plan["dry_run"]
        assert any("takes in" in change["reason"] for change in plan["plan"]["changes"])
        assert up.api("GET", f"/replicas/{row['id']}")["managed"] is False, "the plan changes nothing"

        up.api("POST", "/adopt", {"replica": row["id"]})
        answer = eventually(lambda: (said := ask()).status_code == 200 and said, "it is routed to")
        assert answer.headers["x-nebula-replica"] == "Mine-r1"
        # Its route is there as soon as the agent has told it; what the control process read may be a second older.
        taken = eventually(
            lambda: [one for one in up.replicas("Mine") if one["managed"] and one["phase"] == "ready"],
            "it is shown as taken in",
        )
        assert [(one["pid"], one["restarts"]) for one in taken] == [(engine.pid, 0)]
        assert engine.poll() is None
        audit = up.api("GET", "/audit")["items"]
        assert any("/adopt" in entry["call"] for entry in audit)
    assert engine.poll() is None, "who started it by hand did not mean it to end with `nebula up`"


@pytest.fixture
def docker():
    reason = why_no_docker()
    if reason is not None:
        pytest.skip(reason)
    with simulator_docker() as daemon:
        make_vllm_images(daemon)
        yield daemon


def test_a_container_started_by_hand_is_taken_in_and_routed_to_by_a_cluster_that_knows_nothing_of_docker(
    tmp_path, docker
):
    by_hand, port = ByHand(docker), free_ports(1)
    container = by_hand.run(
        *(NEW_VLLM, "tiny", "--served-model-name", "org/Boxed"),
        options=("-p", f"{port}:8000", "--name", "boxed", "--restart", "unless-stopped"),
    )
    before = by_hand.state(container)
    flags = ("--nodes", "2", "--gpus", "1", "--replicas", "1")
    with cluster(tmp_path / "data", *flags, env={"DOCKER_HOST": docker.address}, looks=True) as up:

        def rows():
            return [row for row in up.api("GET", "/replicas")["items"] if row["container_id"] == container]

        (row,) = eventually(lambda: [one for one in rows() if one["phase"] == "ready"], "it is shown")
        assert (row["managed"], row["model"], row["image"]) == (False, "org/Boxed", NEW_VLLM)
        assert row["found"]["container_name"] == "boxed"
        listed = up.cli("adopt")
        assert f"nebula adopt {row['id']}" in listed
        assert "container boxed" in listed

        def ask():
            body = {"model": "Boxed", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
            headers = {"authorization": f"Bearer {up.ready['api_key']}"}
            url = f"{up.ready['openai_base_url']}/chat/completions"
            return httpx.post(url, json=body, headers=headers, timeout=60)

        assert ask().status_code == 404, "nobody has taken it in"
        up.cli("adopt", row["id"], "--yes")
        answer = eventually(lambda: (said := ask()).status_code == 200 and said, "it is routed to")
        assert answer.headers["x-nebula-replica"] == "Boxed-r1"
        taken = eventually(lambda: [one for one in rows() if one["managed"]], "it is shown as taken in")
        assert [(one["pid"], one["restarts"]) for one in taken] == [(row["pid"], 0)]
        assert by_hand.state(container) == before

        os.kill(before["Pid"], signal.SIGKILL)
        eventually(lambda: by_hand.state(container)["Pid"] not in {0, before["Pid"]}, "Docker starts it again")
        eventually(lambda: [one for one in rows() if one["restarts"] == 1 and one["phase"] == "ready"], "it is seen")
        eventually(lambda: ask().status_code == 200, "it is routed to again")
        running = by_hand.state(container)
    assert by_hand.state(container) == running, "who started it by hand did not mean it to end with `nebula up`"

    with cluster(tmp_path / "data", *flags, env={"DOCKER_HOST": docker.address}, looks=True) as up:
        assert "Boxed" in up.ready["models"], "it is there again with the cluster"
        up.api("DELETE", "/deployments/Boxed")
        eventually(lambda: by_hand.state(container)["Status"] == "exited", "its deployment is gone, and it with it")
        assert by_hand.inspect(container)["HostConfig"]["RestartPolicy"]["Name"] == "no"


@pytest.mark.engine
@pytest.mark.timeout(420, func_only=True)
@pytest.mark.skipif(missing_vllm() is not None, reason=str(missing_vllm()))
def test_a_real_vllm_in_a_container_started_by_hand_is_taken_in(tmp_path, docker):
    by_hand, port = ByHand(docker), free_ports(1)
    words = ("--served-model-name", "tiny", "--max-model-len", "2048", "--max-num-seqs", "16")
    container = by_hand.run_real_vllm(port, *words, name="real")
    flags = ("--nodes", "1", "--gpus", "1", "--replicas", "1")
    with cluster(tmp_path / "data", *flags, env={"DOCKER_HOST": docker.address}, looks=True) as up:

        def row():
            rows = [one for one in up.api("GET", "/replicas")["items"] if one["container_id"] == container]
            assert len(rows) < 2, "its workers are none of their own"
            return rows[0] if rows else None

        assert eventually(row, "it is shown while it loads")["phase"] == "loading"

        def answers():
            assert by_hand.state(container)["Running"], by_hand("logs", container)[-3000:]
            try:
                url = f"http://127.0.0.1:{port}/v1/models"
                return httpx.get(url, timeout=2, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        eventually(answers, "vLLM answers", 240)
        # How soon (GOALS E3): `benchmarks/found_by_hand.py`.
        found = eventually(lambda: (one := row()) and one["phase"] == "ready" and one, "it is shown as ready")
        put_computing_behind(found["pid"])
        assert (found["engine"], found["model"], found["engine_version"]) == ("vllm", "tiny", "0.32.0")
        assert (found["found"]["container_name"], found["endpoint"]["port"]) == ("real", port)
        assert found["found"]["spec"]["source"] == str(VLLM_MODEL.resolve())
        before = by_hand.state(container)
        up.cli("adopt", found["id"], "--yes")

        def chat():
            body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
            headers = {"authorization": f"Bearer {up.ready['api_key']}"}
            return httpx.post(f"{up.ready['openai_base_url']}/chat/completions", json=body, headers=headers, timeout=60)

        answer = eventually(lambda: (said := chat()).status_code == 200 and said, "it is routed to", 60)
        assert answer.headers["x-nebula-replica"] == "tiny-r1"
        assert answer.json()["usage"]["completion_tokens"] > 0
        assert (row()["pid"], row()["restarts"]) == (found["pid"], 0)
        assert by_hand.state(container) == before
