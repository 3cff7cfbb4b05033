"""Faults and endings of the simulated engine as real processes: what a proxy and an agent will meet."""

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.contracts.engine.shapes import frames, total
from tests.support.engine_process import SimulatedEngine, gone, health, shared_memory, wait_until

pytestmark = pytest.mark.fault

CHAT = "/v1/chat/completions"
DIED = "EngineCore encountered an issue. See stack trace (above) for the root cause."


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, **more}


LONG = chat(max_tokens=1500, ignore_eos=True, stream=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., SimulatedEngine]]:
    engines: list[SimulatedEngine] = []

    def begin(*arguments: str, ready: bool = True, **environment: str) -> SimulatedEngine:
        engines.append(SimulatedEngine(tmp_path, *arguments, environment=environment))
        return engines[-1].wait_ready() if ready else engines[-1]

    yield begin
    for engine in engines:
        engine.kill()


def post(engine: SimulatedEngine, body: dict[str, Any], path: str = CHAT) -> httpx.Response:
    return httpx.post(engine.url + path, json=body, timeout=60.0, trust_env=False)


class Stream:
    """A stream somebody reads bit by bit; the sockets of a test are read with a time limit."""

    def __init__(self, engine: SimulatedEngine, body: dict[str, Any]) -> None:
        self._client = httpx.Client(timeout=60.0, trust_env=False)
        self._context = self._client.stream("POST", engine.url + CHAT, json=body)
        self._reply = self._context.__enter__()
        self._chunks = self._reply.iter_text()
        self.text = next(self._chunks)

    def read_on(self) -> str:
        self.text += "".join(self._chunks)
        return self.text

    def close(self) -> None:
        self._context.__exit__(None, None, None)
        self._client.close()


@pytest.fixture
def stream() -> Iterator[Callable[..., Stream]]:
    opened: list[Stream] = []

    def begin(engine: SimulatedEngine, body: dict[str, Any]) -> Stream:
        opened.append(Stream(engine, body))
        return opened[-1]

    yield begin
    for one in opened:
        one.close()


def test_nobody_listens_during_a_slow_start(start):
    engine = start("--fault", "slow-start=600", ready=False)
    wait_until(lambda: "EngineCore is process" in engine.log, 60, "the core runs")
    assert psutil.Process(engine.pid).net_connections("tcp") == []


def test_a_slow_start_has_an_end(start):
    began = time.monotonic()
    start("--fault", "slow-start=0.6")
    assert time.monotonic() - began >= 0.6


def test_sigterm_during_a_slow_start_leaves_nothing(start):
    engine = start("--fault", "slow-start=600", ready=False)
    wait_until(lambda: "EngineCore is process" in engine.log, 60, "it listens to signals")
    core = engine.core_pid
    engine.terminate()
    assert engine.wait(60) == 0
    assert gone(core)


def test_a_failed_start_exits_with_the_last_words_of_vllm(start):
    engine = start("--fault", "failed-start=0.1", ready=False)
    assert engine.wait(60) == 1
    assert "Engine core initialization failed. See root cause above." in engine.log


def test_a_taken_port_is_named(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        engine = start("--port", str(port), ready=False)
        assert engine.wait(60) == 1
    assert f"cannot listen on 127.0.0.1:{port}: the port is taken by process {os.getpid()} (" in engine.log


@pytest.mark.parametrize("streamed", [True, False])
def test_a_crash_at_a_token(start, streamed):
    engine = start("--fault", "crash-at-token=3", "--death-exit-seconds", "1")
    core = engine.core_pid
    reply = post(engine, chat(stream=streamed))
    if streamed:
        seen = frames(reply.text)
        assert reply.status_code == 200
        contents = [frame.data["choices"][0]["delta"]["content"] for frame in seen[:-2]]
        assert len("".join(contents)) > 0
        assert seen[-2].data["error"]["message"] == DIED
        assert seen[-1].data == "[DONE]"
    else:
        assert reply.status_code == 500
        assert reply.json() == {"error": {"message": DIED, "type": "InternalServerError", "param": None, "code": 500}}
    assert health(engine.url) in {503, 0}
    assert engine.wait(60) == 1
    assert gone(core)


def test_a_dead_engine_takes_nothing_new_and_can_still_be_stopped(start):
    engine = start("--death-exit-seconds", "600")
    os.kill(engine.core_pid, signal.SIGKILL)
    wait_until(lambda: health(engine.url) == 503, 60, "/health is 503")
    reply = post(engine, chat())
    assert (reply.status_code, reply.json()["error"]["message"]) == (500, DIED)
    assert frames(post(engine, chat(stream=True)).text)[0].data["error"]["message"] == DIED
    engine.terminate()
    engine.wait(60)


def test_a_frozen_engine_looks_healthy_and_moves_nothing(start, stream):
    engine = start("--allow-request-faults")
    frozen = stream(engine, {**LONG, "nebula_fault": "freeze@3"})

    def generated() -> float:
        return total(httpx.get(f"{engine.url}/metrics", trust_env=False).text, "vllm:generation_tokens_total")

    wait_until(lambda: generated() == 3, 60, "three tokens are out")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(engine.url + CHAT, json=chat(), timeout=0.5, trust_env=False)
    assert health(engine.url) == 200
    assert generated() == 3
    frozen.close()
    engine.terminate()
    assert engine.wait(60) == 0


def test_freeze_from_the_start_and_sigstop_of_the_core(start):
    for engine in (start("--fault", "freeze"), start()):
        core = engine.core_pid
        if "freeze" not in str(psutil.Process(engine.pid).cmdline()):
            os.kill(core, signal.SIGSTOP)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(engine.url + CHAT, json=chat(), timeout=0.3, trust_env=False)
        assert health(engine.url) == 200
        engine.terminate()
        assert engine.wait(60) == 0
        assert gone(core)


def test_an_error_frame_as_first_frame_and_in_mid_stream(start):
    engine = start("--allow-request-faults")
    first = frames(post(engine, chat(stream=True, nebula_fault="error")).text)
    assert [frame.data == "[DONE]" or "error" in frame.data for frame in first] == [True, True]
    later = frames(post(engine, chat(stream=True, nebula_fault="error@2", return_token_ids=True)).text)
    *before, failed, done = [frame.data for frame in later]
    assert ("error" in failed, done) == (True, "[DONE]")
    assert sum(len(frame["choices"][0].get("token_ids") or ()) for frame in before) == 2
    assert post(engine, chat(nebula_fault="error@2")).status_code == 500
    assert post(engine, chat(nebula_fault="explode")).status_code == 400
    assert post(engine, chat()).status_code == 200
    assert health(engine.url) == 200


def test_request_faults_are_ignored_unless_allowed(start):
    engine = start()
    assert post(engine, chat(nebula_fault="crash@1")).status_code == 200


def test_the_switch_fails_every_request(start):
    engine = start("--fault", "error-frame")
    assert "error" in frames(post(engine, chat(stream=True)).text)[0].data
    assert post(engine, chat()).status_code == 500


def test_sigterm_aborts_what_is_in_flight(start, stream):
    engine = start()
    core = engine.core_pid
    streamed = stream(engine, LONG)
    engine.terminate()
    seen = frames(streamed.read_on())
    assert seen[-1].data == "[DONE]"
    assert seen[-2].data["choices"][0]["finish_reason"] == "abort"
    assert "system_fingerprint" in seen[-2].data
    assert engine.wait(60) == 0
    assert gone(core)


def test_with_a_time_limit_sigterm_lets_streams_finish_and_refuses_new_ones(start, stream):
    engine = start("--shutdown-timeout", "60")
    core = engine.core_pid
    streamed = stream(engine, {**LONG, "max_tokens": 400})
    # What is looked at is while it is on its way.
    os.kill(core, signal.SIGSTOP)
    engine.terminate()
    wait_until(lambda: "Shutdown initiated" in engine.log, 60, "the signal is heard")
    reply = post(engine, chat(max_tokens=1))
    assert (reply.status_code, reply.json()["error"]["message"]) == (500, "cannot schedule new futures after shutdown")
    assert health(engine.url) == 200
    os.kill(core, signal.SIGCONT)
    seen = frames(streamed.read_on())
    assert seen[-2].data["choices"][0]["finish_reason"] == "length"
    assert engine.wait(60) == 0


def test_a_time_limit_that_passes_aborts_the_rest(start, stream):
    engine = start("--shutdown-timeout", "0.3")
    streamed = stream(engine, LONG)
    engine.terminate()
    assert frames(streamed.read_on())[-2].data["choices"][0]["finish_reason"] == "abort"
    assert engine.wait(60) == 0


def test_a_hang_on_sigterm_is_silent_and_ends_only_by_sigkill(start):
    engine = start("--fault", "sigterm-hang")
    core = engine.core_pid
    body = json.dumps(LONG).encode()
    with socket.create_connection(("127.0.0.1", int(engine.url.rpartition(":")[2])), timeout=60) as line:
        line.sendall(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % CHAT.encode())
        line.sendall(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        assert line.recv(1 << 16).startswith(b"HTTP/1.1 200")
        engine.terminate()
        wait_until(lambda: health(engine.url) == 0, 60, "the listener is closed")
        wait_until(lambda: gone(core), 60, "the core is gone")
        line.settimeout(0.5)
        with pytest.raises(TimeoutError):
            b"".join(iter(lambda: line.recv(1 << 16), b""))
    engine.terminate()
    assert engine.alive
    engine.process.kill()
    engine.wait(60)


def test_the_core_follows_a_killed_parent(start):
    engine = start()
    core = engine.core_pid
    engine.process.kill()
    engine.wait(60)
    wait_until(lambda: gone(core), 60, "the core is gone")


def test_an_orphan_outlives_its_parent_and_sigterm_but_not_the_killing_of_the_group(start):
    engine = start("--fault", "orphan-child=0.2", ready=False)
    assert engine.wait(60) == -signal.SIGKILL
    # It is dead as soon as it was ever seen: only its log tells of the other.
    core = int(re.search(r"EngineCore is process (\d+)", engine.log)[1])
    wait_until(lambda: psutil.Process(core).name() == "SIM::EngineCore", 60, "the orphan has named itself")
    os.kill(core, signal.SIGTERM)
    orphan = psutil.Process(core)
    assert orphan.is_running()
    assert orphan.name() == "SIM::EngineCore"
    assert orphan.ppid() != engine.pid
    assert os.getpgid(core) == engine.pid
    os.killpg(engine.pid, signal.SIGKILL)
    wait_until(lambda: gone(core), 60, "the orphan is gone")


def test_leaked_shared_memory_stays_behind(start):
    engine = start("--fault", "shm-leak")
    leaked = shared_memory(engine.core_pid)  # named once it has mapped them
    assert sorted(path.name.partition("_")[0].partition("-")[0] for path in leaked) == ["psm", "sem.mp"]
    engine.terminate()
    engine.wait(60)
    assert all(path.exists() for path in leaked)


def test_without_the_fault_there_is_no_shared_memory(start):
    assert not shared_memory(start().core_pid)


def test_a_slow_scrape_holds_up_nothing_else(start):
    engine = start("--fault", "scrape-slow=30")
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{engine.url}/metrics", timeout=0.3, trust_env=False)
    assert post(engine, chat(max_tokens=2)).status_code == 200


async def test_a_full_queue_is_a_503_or_an_error_frame_behind_a_200(start):
    engine = start("--max-num-queued-reqs", "2")
    async with httpx.AsyncClient(base_url=engine.url, timeout=60, trust_env=False) as client:
        held = [asyncio.create_task(client.post(CHAT, json={**LONG, "stream": False})) for _ in range(2)]
        while total((await client.get("/metrics")).text, "vllm:num_requests_running") < 2:
            assert not any(task.done() for task in held)
        os.kill(engine.core_pid, signal.SIGSTOP)  # neither of them ends meanwhile
        whole = await client.post(CHAT, json=chat())
        streamed = await client.post(CHAT, json=chat(stream=True))
        text = (await client.get("/metrics")).text
        for task in held:
            task.cancel()
    error = {
        "message": "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.",
        "type": "Service Unavailable",
        "param": None,
        "code": 503,
    }
    assert (whole.status_code, whole.json()) == (503, {"error": error})
    assert "retry-after" not in whole.headers
    assert streamed.status_code == 200
    assert [frame.data for frame in frames(streamed.text)] == [{"error": error}, "[DONE]"]
    assert total(text, "vllm:admission_rejections_total", reason="max_num_queued_reqs") == 2


def test_a_restart_starts_counting_anew(start):
    for engine in (start(), start()):
        post(engine, chat(max_tokens=2))
        assert total(httpx.get(f"{engine.url}/metrics", trust_env=False).text, "vllm:generation_tokens_total") == 2
