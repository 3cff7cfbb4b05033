"""`/metrics`: the names, types and labels of the capture, and numbers that follow what was asked."""

import asyncio

import httpx
import pytest

from tests.contracts.engine.shapes import CAPTURES, families, total

#: In the simulated engine and not in vLLM.
OWN = {"nebula_simulated_engine"}
CHAT = "/v1/chat/completions"


def _captured(name: str) -> str:
    text = (CAPTURES / f"vllm_metrics_{name}.txt").read_bytes().decode()
    return text.partition("\r\n\r\n")[2] or text


@pytest.fixture
async def scrape(client: httpx.AsyncClient):
    async def get() -> str:
        reply = await client.get("/metrics")
        assert reply.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
        return reply.text

    return get


async def test_every_captured_name_type_and_label_is_there(client, scrape) -> None:
    await client.get("/v1/models")  # without it there are no http_* series
    expected, seen = families(_captured("idle")), families(await scrape())
    assert {name: seen.get(name) for name in expected} == expected
    assert set(seen) - set(expected) <= OWN


async def test_buckets_and_the_values_of_labels_are_the_captured_ones(client, scrape) -> None:
    await client.get("/v1/models")

    def series(text: str) -> set[str]:
        lines = (line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#"))
        return {line for line in lines if line.startswith("vllm:") and "cache_config_info" not in line}

    assert series(await scrape()) == series(_captured("idle"))


async def test_counters_follow_a_request(client, scrape) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "count me"}],
        "max_tokens": 7,
        "ignore_eos": True,
        "temperature": 0,
    }
    await client.post(CHAT, json=body)  # the http_* series appear with the first request
    before = await scrape()
    usage = (await client.post(CHAT, json=body)).json()["usage"]
    after = await scrape()

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert usage["completion_tokens"] == 7
    assert grown("vllm:generation_tokens_total") == 7
    assert grown("vllm:prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("vllm:prefix_cache_queries_total") == usage["prompt_tokens"]
    assert grown("vllm:request_success_total", finished_reason="length") == 1
    assert grown("vllm:request_success_total", finished_reason="stop") == 0
    assert grown("vllm:time_to_first_token_seconds_count") == 1
    assert grown("vllm:inter_token_latency_seconds_count") == 6
    assert grown("vllm:e2e_request_latency_seconds_count") == 1
    assert grown("vllm:request_generation_tokens_sum") == 7
    assert grown("vllm:request_params_max_tokens_sum") == 7
    assert grown("vllm:iteration_tokens_total_count") == 7
    assert grown("http_requests_total", handler=CHAT, status="2xx") == 1
    assert total(after, "vllm:num_requests_running") == 0
    assert total(after, "vllm:kv_cache_usage_perc") == 0


async def test_more_requests_than_sequences_wait_for_capacity(client, scrape) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "wait"}],
        "max_tokens": 400,
        "ignore_eos": True,
    }
    # On a busy machine vLLM may answer no scrape until it is done with all of them: then the next attempt counts.
    for _ in range(6):
        asked = [asyncio.create_task(client.post(CHAT, json=body)) for _ in range(40)]
        seen = ""
        while not seen and not all(task.done() for task in asked):
            text = await scrape()
            if total(text, "vllm:num_requests_running") == 16 and total(text, "vllm:num_requests_waiting") > 0:
                seen = text
            await asyncio.sleep(0.02)
        replies = await asyncio.gather(*asked)
        assert [reply.json()["usage"]["completion_tokens"] for reply in replies] == [400] * 40
        if seen:
            break
    else:
        pytest.fail("nobody was ever seen waiting")
    waiting = total(seen, "vllm:num_requests_waiting")
    assert total(seen, "vllm:num_requests_waiting_by_reason", reason="capacity") == waiting
    assert 0 < total(seen, "vllm:kv_cache_usage_perc") <= 1


async def test_a_repeated_prompt_hits_the_cache_in_full_blocks_of_128(client, scrape) -> None:
    tokens = [400 + number % 97 for number in range(700)]
    body = {"model": "tiny", "prompt": tokens, "max_tokens": 1, "temperature": 0}
    await client.post("/v1/completions", json=body)
    before = await scrape()
    await client.post("/v1/completions", json=body)
    after = await scrape()
    assert total(after, "vllm:prefix_cache_hits_total") - total(before, "vllm:prefix_cache_hits_total") == 5 * 128
    cached = {
        name: total(after, name, **labels) - total(before, name, **labels)
        for name, labels in {
            "vllm:prompt_tokens_cached_total": {},
            "vllm:prompt_tokens_by_source_total": {"source": "local_cache_hit"},
            "vllm:prompt_tokens_cached_by_source_total": {"source": "device"},
        }.items()
    }
    assert set(cached.values()) == {5 * 128}
