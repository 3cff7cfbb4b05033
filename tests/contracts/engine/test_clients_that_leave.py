"""A client that goes away frees its request at once, and the engine counts nothing for it."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from tests.contracts.engine.shapes import total

TOKENS, CLIENTS = 1900, 12
BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "a long one"}],
    "max_tokens": TOKENS,
    "ignore_eos": True,
}
CHAT = "/v1/chat/completions"


async def _scrape(client: httpx.AsyncClient) -> str:
    return (await client.get("/metrics")).text


async def _until_running(client: httpx.AsyncClient, count: int, asked: Sequence[asyncio.Task[Any]] = ()) -> str:
    """Waits until so many run, or nobody is left who asked."""
    deadline = time.monotonic() + 60
    while total(text := await _scrape(client), "vllm:num_requests_running") != count:
        assert time.monotonic() < deadline, f"not {count} running within 60 s"
        if asked and all(task.done() for task in asked):
            break
        await asyncio.sleep(0.05)  # scraped without a pause, vLLM on two cores gets to nothing else
    return text


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_request(client: httpx.AsyncClient, stream: bool) -> None:
    # An attempt in which everything was generated before anybody left proves nothing and is repeated.
    for _ in range(6):
        before = await _scrape(client)
        asked = [asyncio.create_task(client.post(CHAT, json={**BODY, "stream": stream})) for _ in range(CLIENTS)]
        await _until_running(client, CLIENTS, asked)
        for task in asked:
            task.cancel()
        after = await _until_running(client, 0)
        generated = total(after, "vllm:generation_tokens_total") - total(before, "vllm:generation_tokens_total")
        if generated < CLIENTS * TOKENS:
            break
    else:
        pytest.fail("the engine was always done before its clients left")
    for reason in ("abort", "stop", "length"):
        name = "vllm:request_success_total"
        assert total(after, name, finished_reason=reason) == total(before, name, finished_reason=reason)
    finished = "vllm:e2e_request_latency_seconds_count"
    assert total(after, finished) == total(before, finished)
    assert total(await _scrape(client), "vllm:generation_tokens_total") == total(after, "vllm:generation_tokens_total")
