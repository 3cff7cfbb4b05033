"""Nothing of an engine but the inference calls can be reached, however the path is spelled (reliability T17, T18)."""

import asyncio
import re
from collections.abc import Iterator

import pytest

from nebula_proxy.decisions.calls import CALLS
from tests.contracts.framing.corpus import TOKEN, request
from tests.support.behind import recorder
from tests.support.data_plane import endpoint, model, running_plane

#: What vLLM, SGLang, llama.cpp and transformers serve besides (engines.md 2.4; their sources), and what is nobody's business.
ENGINE_PATHS = (
    "/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/is_paused", "/update_weights", "/update_weights_from_disk",
    "/update_weights_from_tensor", "/init_weight_transfer_engine", "/init_weights_update_group", "/collective_rpc",
    "/reset_prefix_cache", "/reset_mm_cache", "/server_info", "/abort_requests", "/abort_request", "/invocations", "/metrics",
    "/load", "/ping", "/version", "/start_profile", "/stop_profile", "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
    "/scale_elastic_ep", "/is_scaling_elastic_ep", "/flush_cache", "/release_memory_occupation", "/set_internal_state",
    "/generate", "/classify", "/pooling", "/inference/v1/generate", "/score", "/rerank", "/v2/rerank", "/v1/audio/transcriptions",
    "/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/props", "/slots/0", "/slots", "/lora-adapters", "/apply-template",
    "/completion", "/infill", "/load_model", "/reset", "/docs", "/redoc", "/server_info?config_format=json", "/health_generate",
    "/get_server_info", "/tokenizer_info", "/shutdown", "/v1/models/m/load",
)  # fmt: skip


def spellings(path: str) -> Iterator[str]:
    first = path[1]
    yield from (path, path.upper(), path + "/", "/" + path, "/." + path, "/x/.." + path, "/v1" + path, "/v1/.." + path)
    yield from (f"/%{ord(first):02x}{path[2:]}", f"/%25{ord(first):02x}{path[2:]}", path.replace("/", "%2f"))
    yield from (
        path.replace("/", "\\"),
        path + "%00",
        path + ";x",
        "/;x" + path,
        path + "?a=/v1/completions",
        path + "#x",
    )
    yield from (
        f"http://nebula{path}",
        f"//nebula{path}",
        "/v1/chat/completions/.." + path,
        "/v1/chat/completions" + path,
    )
    yield from ("/v1/chat/completions/..%2f.." + path, "/v1/chat/completions;/../.." + path, "/tokenize/%2e%2e" + path)
    yield from ("/v1/chat/completions%3f/.." + path, path + "%20", path + "%0d%0aX:1", path[:2] + "%c0%af" + path[2:])


@pytest.mark.parametrize("hot", [True, False], ids=["hot", "asgi"])
async def test_nothing_but_the_inference_calls_is_in_reach(hot: bool) -> None:
    wrong = []
    tried = 0
    async with recorder() as end, running_plane(model(endpoint("m-r0", end.port)), hot_path=hot) as running:
        for path in ENGINE_PATHS:
            for spelling in spellings(path):
                if spelling.encode() in CALLS:
                    continue  # "/score" behind "/v1"
                for method in ("POST", "GET", "PUT"):
                    tried += 1
                    line = f"{method} {spelling} HTTP/1.1".encode()
                    raw = request(b"Connection: close", line=line).replace(TOKEN, running.token.encode())
                    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                    writer.write(raw)
                    async with asyncio.timeout(60):
                        answer = await reader.read(-1)
                    writer.close()
                    status = int(re.findall(rb"^HTTP/1\.1 (\d{3}) ", answer)[0])
                    # Pages of the proxy's own under the same name: its figures, and models that are none.
                    own = {200, 404} if method == "GET" else set()
                    if status not in {400, 404, 405, *own}:
                        wrong.append((method, spelling, status))
        assert end.seen == []
    assert wrong == []
    assert tried > 3000


def test_the_calls_are_exactly_these() -> None:
    assert set(CALLS) == {
        b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/v1/embeddings", b"/v1/rerank", b"/v1/score",
        b"/v1/messages", b"/v1/messages/count_tokens", b"/tokenize", b"/detokenize",
    }  # fmt: skip
