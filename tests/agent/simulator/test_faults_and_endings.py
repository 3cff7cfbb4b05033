"""Faults and endings of the simulated engine as real processes: what a proxy and an agent will meet."""

import asyncio
import os
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
    return httpx.post(engine.url + path, json=body, timeout=20.0, trust_env=False)


class Stream:
    """A stream somebody reads bit by bit; the sockets of a test are read with a time limit."""

    def __init__(self, engine: SimulatedEngine, body: dict[str, Any]) -> None:
        self._client = httpx.Client(timeout=20.0, trust_env=False)
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = start("--port", str(port), "--fault", "slow-start=0.6", ready=False)
    wait_until(lambda: "EngineCore is process" in engine.log, 10, "the core runs")
    assert health(f"http://127.0.0.1:{port}") == 0
    began = time.monotonic()
    engine.wait_ready()
    assert time.monotonic() - began > 0.3


def test_sigterm_during_a_slow_start_leaves_nothing(start):
    engine = start("--fault", "slow-start=600", ready=False)
    wait_until(lambda: "EngineCore is process" in engine.log, 10, "the core runs")
    core = engine.core_pid
    engine.terminate()
    assert engine.wait(5) == 0
    assert gone(core)


def test_a_failed_start_exits_with_the_last_words_of_vllm(start):
    engine = start("--fault", "failed-start=0.1", ready=False)
    assert engine.wait(10) == 1
    assert "Engine core initialization failed. See root cause above." in engine.log


def test_a_taken_port_is_named(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        engine = start("--port", str(port), ready=False)
        assert engine.wait(10) == 1
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
    assert engine.wait(10) == 1
    assert gone(core)


def test_a_dead_engine_takes_nothing_new_and_can_still_be_stopped(start):
    engine = start("--death-exit-seconds", "600")
    os.kill(engine.core_pid, signal.SIGKILL)
    wait_until(lambda: health(engine.url) == 503, 5, "/health is 503")
    reply = post(engine, chat())
    assert (reply.status_code, reply.json()["error"]["message"]) == (500, DIED)
    assert frames(post(engine, chat(stream=True)).text)[0].data["error"]["message"] == DIED
    engine.terminate()
    engine.wait(5)


def test_a_frozen_engine_looks_healthy_and_moves_nothing(start, stream):
    engine = start("--allow-request-faults")
    frozen = stream(engine, {**LONG, "nebula_fault": "freeze@3"})

    def generated() -> float:
        return total(httpx.get(f"{engine.url}/metrics", trust_env=False).text, "vllm:generation_tokens_total")

    wait_until(lambda: generated() == 3, 5, "three tokens are out")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(engine.url + CHAT, json=chat(), timeout=0.5, trust_env=False)
    assert health(engine.url) == 200
    assert generated() == 3
    frozen.close()
    engine.terminate()
    assert engine.wait(5) == 0


def test_freeze_from_the_start_and_sigstop_of_the_core(start):
    for engine in (start("--fault", "freeze"), start()):
        core = engine.core_pid
        if "freeze" not in str(psutil.Process(engine.pid).cmdline()):
            os.kill(core, signal.SIGSTOP)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(engine.url + CHAT, json=chat(), timeout=0.3, trust_env=False)
        assert health(engine.url) == 200
        engine.terminate()
        assert engine.wait(5) == 0
        assert gone(core)


def test_an_error_frame_as_first_frame_and_in_mid_stream(start):
    engine = start("--allow-request-faults")
    first = frames(post(engine, chat(stream=True, nebula_fault="error")).text)
    assert [frame.data == "[DONE]" or "error" in frame.data for frame in first] == [True, True]
    later = frames(post(engine, chat(stream=True, nebula_fault="error@2")).text)
    assert ["error" in frame.data for frame in later[:-1]] == [False, False, False, True]
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
    began = time.monotonic()
    engine.terminate()
    seen = frames(streamed.read_on())
    assert seen[-1].data == "[DONE]"
    assert seen[-2].data["choices"][0]["finish_reason"] == "abort"
    assert "system_fingerprint" in seen[-2].data
    assert engine.wait(5) == 0
    assert time.monotonic() - began < 5
    assert gone(core)


def test_with_a_time_limit_sigterm_lets_streams_finish_and_refuses_new_ones(start, stream):
    engine = start("--shutdown-timeout", "20")
    streamed = stream(engine, {**LONG, "max_tokens": 300})
    engine.terminate()

    def refused() -> bool:
        reply = post(engine, chat(max_tokens=1))
        assert reply.status_code in {200, 500}
        return (
            reply.status_code == 500
            and reply.json()["error"]["message"] == "cannot schedule new futures after shutdown"
        )

    wait_until(refused, 5, "new requests are refused")
    assert health(engine.url) == 200
    seen = frames(streamed.read_on())
    assert seen[-2].data["choices"][0]["finish_reason"] == "length"
    assert engine.wait(5) == 0


def test_a_time_limit_that_passes_aborts_the_rest(start, stream):
    engine = start("--shutdown-timeout", "0.3")
    streamed = stream(engine, LONG)
    engine.terminate()
    assert frames(streamed.read_on())[-2].data["choices"][0]["finish_reason"] == "abort"
    assert engine.wait(5) == 0


def test_a_hang_on_sigterm_is_silent_and_ends_only_by_sigkill(start):
    engine = start("--fault", "sigterm-hang")
    core = engine.core_pid
    with (
        httpx.Client(timeout=0.5, trust_env=False) as client,
        client.stream("POST", engine.url + CHAT, json=LONG) as reply,
    ):
        chunks = reply.iter_text()
        next(chunks)
        engine.terminate()
        wait_until(lambda: health(engine.url) == 0, 5, "the listener is closed")
        wait_until(lambda: gone(core), 5, "the core is gone")
        with pytest.raises(httpx.ReadTimeout):
            "".join(chunks)
    engine.terminate()
    assert engine.alive
    engine.process.kill()
    engine.wait(5)


def test_the_core_follows_a_killed_parent(start):
    engine = start()
    core = engine.core_pid
    engine.process.kill()
    engine.wait(5)
    wait_until(lambda: gone(core), 5, "the core is gone")


def test_an_orphan_outlives_its_parent_and_sigterm_but_not_the_killing_of_the_group(start):
    engine = start("--fault", "orphan-child=0.2")
    core = engine.core_pid
    assert engine.wait(5) == -signal.SIGKILL
    os.kill(core, signal.SIGTERM)
    orphan = psutil.Process(core)
    assert orphan.name() == "SIM::EngineCore"
    assert orphan.ppid() != engine.pid
    assert os.getpgid(core) == engine.pid
    os.killpg(engine.pid, signal.SIGKILL)
    wait_until(lambda: gone(core), 5, "the orphan is gone")


def test_leaked_shared_memory_stays_behind(start):
    engine = start("--fault", "shm-leak")
    leaked = shared_memory(engine.core_pid)
    assert sorted(path.name.partition("_")[0].partition("-")[0] for path in leaked) == ["psm", "sem.mp"]
    engine.terminate()
    engine.wait(5)
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
    async with httpx.AsyncClient(base_url=engine.url, timeout=30, trust_env=False) as client:
        held = [asyncio.create_task(client.post(CHAT, json={**LONG, "stream": False})) for _ in range(2)]
        while total((await client.get("/metrics")).text, "vllm:num_requests_running") < 2:
            assert not any(task.done() for task in held)
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
