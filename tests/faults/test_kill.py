"""kill -9 of each part, under traffic: what had not started is not lost, what had started says so, the part comes back."""

import json
import os
import signal
import threading
import time

import httpx
import psutil
import pytest

from tests.support.up import eventually

pytestmark = [pytest.mark.fault, pytest.mark.timeout(400)]


class Traffic:
    """Streams and plain requests in a loop from threads; keeps how each ended."""

    def __init__(self, up, threads=4, tokens=60):
        self.up = up
        self.tokens = tokens
        self.ends: list[tuple[str, str]] = []  # (kind, how)
        self.details: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        eventually(lambda: len(self.ends) >= 4, "traffic flows")
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def how(self, kind):
        return [how for ended, how in self.ends if ended == kind]

    def _run(self, index):
        headers = {"authorization": f"Bearer {self.up.ready['api_key']}"}
        with httpx.Client(base_url=self.up.ready["openai_base_url"], headers=headers, timeout=60) as client:
            while not self._stop.is_set():
                body = {
                    "model": "demo",
                    "messages": [{"role": "user", "content": f"question {index} {time.monotonic()}"}],
                    "max_tokens": self.tokens,
                    "ignore_eos": True,
                }
                if index % 2:
                    answer = client.post("/chat/completions", json=body)
                    self.ends.append(("plain", str(answer.status_code)))
                    if answer.status_code != 200:
                        self.details.append(answer.text)
                else:
                    self.ends.append(("stream", self._stream(client, body)))

    def _stream(self, client, body):
        last = ""
        try:
            with client.stream("POST", "/chat/completions", json={**body, "stream": True}) as answer:
                if answer.status_code != 200:
                    self.details.append(answer.read().decode())
                    return str(answer.status_code)
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        last = line[5:].strip()
        except httpx.RemoteProtocolError:
            # The proxy may close without the last chunk, but only after it has said what happened.
            pass
        if last == "[DONE]":
            return "done"
        if '"error"' in last and "choices" not in json.loads(last):
            return "error event"
        return f"cut silently after {last[:200]!r}"


def test_an_engine_killed_under_traffic(up):
    victim = up.replicas()[0]
    with Traffic(up) as traffic:
        before = len(traffic.ends)
        os.killpg(os.getpgid(victim["pid"]), signal.SIGKILL)
        eventually(lambda: len(traffic.ends) > before + 40, "traffic goes on")
    assert set(traffic.how("plain")) == {"200"}, traffic.details[:3]
    assert set(traffic.how("stream")) <= {"done", "error event"}, traffic.details[:3]

    def replaced():
        row = next((row for row in up.replicas() if row["id"] == victim["id"]), None)
        return row and row["phase"] == "ready" and row["pid"] != victim["pid"]

    eventually(replaced, "the engine runs again", 60)

    def told():
        # A control process that had no turn meanwhile has only seen that it was started again.
        events = up.api("GET", "/events", limit=100)["items"]
        about = [event["kind"] for event in events if event["object"] == f"replica/{victim['id']}"]
        return {"failed", "restart"} & set(about)

    eventually(told, "what became of it is told")


def test_an_agent_killed_leaves_its_engines_and_adopts_them(up):
    before = {row["id"]: row["pid"] for row in up.replicas()}
    agent = up.ready["pids"]["agents"]["sim-1"]
    with Traffic(up) as traffic:
        os.kill(agent, signal.SIGKILL)
        eventually(lambda: up.api("GET", "/nodes/sim-1")["agent_pid"] not in (None, agent), "a new agent", 60)
        eventually(lambda: up.api("GET", "/nodes/sim-1")["state"] == "ready", "the node is ready", 60)
    assert set(traffic.how("plain")) == {"200"}, traffic.details[:3]
    assert set(traffic.how("stream")) == {"done"}, traffic.details[:3]
    eventually(lambda: [row["phase"] for row in up.replicas()] == ["ready", "ready"], "both ready")
    assert {row["id"]: row["pid"] for row in up.replicas()} == before
    assert all(psutil.pid_exists(pid) for pid in before.values())


def test_the_store_killed_fails_no_request(up):
    store = up.ready["pids"]["store"]
    before = {row["id"]: row["pid"] for row in up.replicas()}
    with Traffic(up) as traffic:
        os.kill(store, signal.SIGKILL)
        seen = len(traffic.ends)
        eventually(lambda: len(traffic.ends) > seen + 40, "requests go on")
        eventually(lambda: up.api("GET", "/cluster")["store_reachable"], "the store is back", 60)
        eventually(lambda: all(node["state"] == "ready" for node in up.api("GET", "/nodes")["items"]), "nodes", 60)
    assert set(traffic.how("plain")) == {"200"}, traffic.details[:3]
    assert set(traffic.how("stream")) == {"done"}, traffic.details[:3]
    assert {row["id"]: row["pid"] for row in up.replicas()} == before
    up.api("POST", "/deployments/demo/scale", {"replicas": 3})
    eventually(lambda: [row["phase"] for row in up.replicas()].count("ready") == 3, "orders are obeyed again")


def test_the_control_process_killed_serves_on_and_comes_back(up):
    with Traffic(up) as traffic:
        former = up.api("GET", "/cluster")["control_pid"]
        os.kill(former, signal.SIGKILL)

        def leader():
            try:
                view = up.api("GET", "/cluster")
                return view["control_pid"] != former and view["leader"]
            except (httpx.HTTPError, AssertionError):
                return None

        eventually(leader, "a leader again", 60)
    assert set(traffic.how("plain")) == {"200"}, traffic.details[:3]
    assert set(traffic.how("stream")) == {"done"}, traffic.details[:3]


def test_scaling_down_and_draining_cut_no_stream(up):
    up.api("POST", "/deployments/demo/scale", {"replicas": 3})
    eventually(lambda: [row["phase"] for row in up.replicas()].count("ready") == 3, "three ready")
    with Traffic(up, threads=6, tokens=120) as traffic:
        up.api("POST", "/deployments/demo/scale", {"replicas": 1})
        eventually(lambda: len(up.replicas()) == 1, "one replica left", 60)
        here = up.replicas()[0]["node"]
        up.api("POST", f"/nodes/{here}/drain", {})
        eventually(
            lambda: [(row["node"] != here, row["phase"]) for row in up.replicas()] == [(True, "ready")],
            "moved away",
            60,
        )
    assert set(traffic.how("plain")) == {"200"}, traffic.details[:3]
    assert set(traffic.how("stream")) == {"done"}, traffic.details[:3]
