"""A client that goes away frees its request at once, and the engine counts nothing for it."""

import asyncio
import time

import httpx
import pytest

from tests.contracts.engine.shapes import total

BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "a long one"}],
    "max_tokens": 1900,
    "ignore_eos": True,
}
CHAT = "/v1/chat/completions"


async def _running(client: httpx.AsyncClient) -> float:
    return total((await client.get("/metrics")).text, "vllm:num_requests_running")


async def _until_running(client: httpx.AsyncClient, count: float, timeout: float) -> float:
    began = time.monotonic()
    while await _running(client) != count:
        assert time.monotonic() - began < timeout, f"not {count} running within {timeout} s"
    return time.monotonic() - began


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_request(client: httpx.AsyncClient, stream: bool) -> None:
    before = (await client.get("/metrics")).text
    asked = asyncio.create_task(client.post(CHAT, json={**BODY, "stream": stream}))
    await _until_running(client, 1, 20)
    asked.cancel()
    await _until_running(client, 0, 5)
    after = (await client.get("/metrics")).text
    for reason in ("abort", "stop", "length"):
        name = "vllm:request_success_total"
        assert total(after, name, finished_reason=reason) == total(before, name, finished_reason=reason)
    assert total(after, "vllm:e2e_request_latency_seconds_count") == total(
        before, "vllm:e2e_request_latency_seconds_count"
    )
    generated = total(after, "vllm:generation_tokens_total")
    assert generated - total(before, "vllm:generation_tokens_total") < 1900
    assert total((await client.get("/metrics")).text, "vllm:generation_tokens_total") == generated
