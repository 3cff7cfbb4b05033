"""No prompt, no answer and no secret leaves its place (R19): real processes, every kind of trouble, then a search.

Looked through are the log, everything the store ever wrote to its disk, the command lines, the metrics and the traces.
"""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nebula_core.store.store import Store
from tests.proxy.test_process import answers
from tests.support.collector import Collector
from tests.support.data_plane import MODEL
from tests.support.ports import free_port
from tests.support.proxy_process import ProxyProcess, proxy_process, write_cluster
from tests.support.scripted_engine import (
    DONE,
    STREAM_HEAD,
    Conversation,
    ScriptedEngine,
    answer,
    chunked,
    event,
    talk,
)
from tests.support.store import StoreServer

PROMPT = "canary-prompt-7f3a91"
SAID = "canary-answer-55d0c2"
ECHO = f"Invalid request: 'messages' has {PROMPT} and my grandmother was born in it"
WRONG_KEY = "nbl_0123456789ab_" + "canarykey" * 5


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    running = Collector()
    yield running
    running.close()


def frame(code: int) -> bytes:
    error = {"error": {"message": ECHO, "type": "BadRequest", "param": None, "code": code}}
    return b"data: " + json.dumps(error).encode() + b"\n\n"


async def says(conversation: Conversation) -> None:
    if conversation.json.get("stream"):
        await conversation.send(STREAM_HEAD + chunked(event(SAID), event("", finish="stop"), DONE))
    else:
        await conversation.send(answer({"choices": [{"message": {"content": SAID}}], "usage": {"prompt_tokens": 3}}))


def error_of(status: int) -> Callable[[Conversation], Awaitable[None]]:
    async def script(conversation: Conversation) -> None:
        await conversation.send(answer({"error": {"message": ECHO, "code": status}}, status))

    return script


def frames_of(*frames: bytes) -> Callable[[Conversation], Awaitable[None]]:
    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(*frames, DONE))

    return script


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def everything(proxy: ProxyProcess, engine: ScriptedEngine, token: str) -> list[int]:
    """Requests that go well and wrong in every way; their statuses."""
    text = f"{PROMPT}: my grandmother was born in it, is that a reason?"
    chat: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    statuses = []
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=proxy.url, headers=headers, timeout=60) as client:

        async def ask(script: Any, *, stream: bool = False, **more: Any) -> None:
            engine.script = script
            answered = await client.post("/v1/chat/completions", json=chat | {"stream": stream}, **more)
            statuses.append(answered.status_code)

        await ask(says)
        await ask(says, stream=True)
        for status in (400, 404, 422, 500, 503):
            await ask(error_of(status))
        for code in (400, 500):
            await ask(frames_of(frame(code)), stream=True)
            await ask(frames_of(event(SAID), frame(code)), stream=True)
        await ask(says, params={"q": PROMPT})
        await ask(says, headers={"authorization": f"Bearer {WRONG_KEY}"})
        engine.script = talk
        for bad in (f'{{"model": "{PROMPT}', f'{{"model": "m", "messages": "{PROMPT}"', f'["{PROMPT}"]'):
            answered = await client.post(
                "/v1/chat/completions", content=bad, headers={"content-type": "application/json"}
            )
            statuses.append(answered.status_code)
    return statuses


@pytest.mark.flow
async def test_no_prompt_no_answer_and_no_key_is_found_anywhere(
    store: Store, store_url: str, store_server: StoreServer, collector: Collector, tmp_path: Path
) -> None:
    async with ScriptedEngine(talk) as engine, ScriptedEngine(says) as other:
        token = await write_cluster(store, [engine.port, other.port])
        settings = {"records__ratio": 1.0, "traces__endpoint": collector.url, "log_level": "debug"}
        async with proxy_process(store_url, tmp_path, free_port(), **settings) as proxy:
            await answers(proxy, token)
            async with httpx.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=60) as client:
                statuses = await everything(proxy, engine, token)
                metrics = (await client.get(f"{proxy.url}/metrics")).text
            arguments = command_line(proxy.process.pid)
            proxy.terminate()
            assert await asyncio.wait_for(proxy.process.wait(), 60) == 0
        records = await store.read_requests(100)
        assert {200, 401} <= set(statuses)
        assert any(status in {400, 422} for status in statuses)
        # It was there to be found: the engines have seen the prompt, and there are records and spans of all of it.
        assert any(PROMPT.encode() in one.body for one in engine.conversations)
        assert {"ok", "engine_error", "broken"} <= {record.outcome for record in records}
        assert len(collector.spans) > 20
        searched = {
            "the log": proxy.log.read_bytes(),
            "the records": "".join(record.to_json() for record in records).encode(),
            "the metrics": metrics.encode(),
            "the command line": arguments,
            "the traces": b"".join(span.SerializeToString() for span in collector.spans),
        }
        for path in store_server.directory.rglob("*"):
            if path.is_file():
                searched[f"the store's {path.name}"] = path.read_bytes()
        secret = token.split("_", 2)[2]
        for place, content in searched.items():
            for canary in (PROMPT, SAID, secret, WRONG_KEY.split("_", 2)[2], "grandmother was born"):
                assert canary.encode() not in content, f"{canary} is in {place}"
        assert b'"action":"request"' in searched["the log"]
        assert any("aof" in place for place in searched), sorted(searched)


@pytest.mark.flow
async def test_the_pages_of_metrics_pass_promtool(store: Store, store_url: str, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    async with ScriptedEngine(talk) as engine:
        token = await write_cluster(store, [engine.port])
        async with proxy_process(store_url, tmp_path, free_port()) as proxy:
            chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
            await answers(proxy, token)
            async with httpx.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=60) as client:
                assert (await client.post(f"{proxy.url}/v1/chat/completions", json=chat)).status_code == 200
                page = (await client.get(f"{proxy.url}/metrics")).text
        checked = await asyncio.to_thread(
            subprocess.run, [promtool, "check", "metrics"], input=page, text=True, check=False, timeout=30,
            capture_output=True,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout + checked.stderr
        for name in (
            "requests_total", "inflight", "admission_total", "route_total", "request_records_total",
            "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
            "time_per_output_token_seconds_bucket", "request_duration_seconds_bucket", "overhead_seconds_bucket",
        ):  # fmt: skip
            assert f"nebula_proxy_{name}{{" in page, name
