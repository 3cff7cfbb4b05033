"""The replay of `routing_replay.py` over HTTP, scaled down: real processes, Nebula beside sglang-router's cache_aware.

    python benchmarks/routing_replay_http.py [--engines 4] [--seconds 60] [--rate 0.8] [--peer BIN] [--subjects a,b]

Every subject gets fresh simulated engines (`nebula-agent simulate-engine`, preset h100-8b) and the same requests at the same
times. Tokens are a sixteenth: a hash of the trace is 32 words of prompt instead of 512 tokens, answers, caches and steps are
a sixteenth too, and the trace is played sixteen times as fast, halved for half of the replicas. Nebula runs as one data
worker with a real store, to which this script reports the engines' figures once a second, as an agent does. Counted are
the engines' own cache hits, the time to the first token at the client, and the open requests of each engine over time.
sglang-router is looked for at --peer (its own virtual environment); without it only Nebula is measured.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.stage import write_model
from nebula_agent.simulator import corpus
from nebula_agent.simulator.timing import PRESETS
from nebula_core.records.deployment import DeploymentSpec, Limits
from nebula_core.records.replica import EndpointAddress, Phase, ReplicaStatus
from nebula_core.records.report import NodeReport
from nebula_core.records.sample import EngineSample
from nebula_core.runtime.processes import free_port
from nebula_core.store.connection import StoreSettings, connect
from nebula_core.store.embedded import find_store_program, store_command
from nebula_core.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
TRACE = ROOT.parent / "shared" / "traces" / "mooncake_conversation.jsonl"
#: Where the rig installs it.
PEER = Path(tempfile.gettempdir()) / "nebula-rig/venvs/sglang-router/bin/sglang-router"
MODEL = "m0"
SCALE = 16
TRACE_REPLICAS = 8
WORDS = 512 // SCALE
LONGEST_TOKENS = 30_000
FIGURES = {
    "running": re.compile(r"^vllm:num_requests_running\{[^}]*\} (\S+)", re.MULTILINE),
    "waiting": re.compile(r"^vllm:num_requests_waiting\{[^}]*\} (\S+)", re.MULTILINE),
    "kv": re.compile(r"^vllm:kv_cache_usage_perc\{[^}]*\} (\S+)", re.MULTILINE),
    "queries": re.compile(r"^vllm:prefix_cache_queries_total\{[^}]*\} (\S+)", re.MULTILINE),
    "hits": re.compile(r"^vllm:prefix_cache_hits_total\{[^}]*\} (\S+)", re.MULTILINE),
}
NEBULA = ("prefix_cache_aware", "least_pending", "round_robin")


class Arrival:
    """One request of the trace, scaled down."""

    def __init__(self, row: dict[str, Any], at: float) -> None:
        self.at = at
        self.words = max(1, min(row["input_length"] // SCALE, LONGEST_TOKENS))
        self.tokens = max(1, row["output_length"] // SCALE)
        self._hashes = row["hash_ids"]

    def body(self) -> bytes:
        common = corpus.COMMON_WORDS.split()
        blocks = (" ".join(random.Random(number).choices(common, k=WORDS)) for number in self._hashes)
        text = " ".join(itertools.islice((word for block in blocks for word in block.split()), self.words))
        return json.dumps(
            {
                "model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": self.tokens,
                "ignore_eos": True, "stream": True,
            }
        ).encode()  # fmt: skip


def read_trace(rate: float, engines: int, seconds: float) -> list[Arrival]:
    speed = rate * SCALE * engines / TRACE_REPLICAS
    found = []
    for line in TRACE.read_text().splitlines():
        row = json.loads(line)
        at = row["timestamp"] / 1000.0 / speed
        if at > seconds:
            break
        found.append(Arrival(row, at))
    return found


@contextlib.asynccontextmanager
async def process(*command: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    null = asyncio.subprocess.DEVNULL
    running = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdin=null, stdout=null, stderr=null, env={**os.environ, **environment}
    )
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.terminate()
        try:
            await asyncio.wait_for(running.wait(), 15)
        except TimeoutError:
            running.kill()
            await running.wait()


async def answers(client: httpx.AsyncClient, url: str, **more: Any) -> None:
    for _ in range(300):
        with contextlib.suppress(httpx.HTTPError):
            if (await client.request(more.get("method", "GET"), url, **more.get("send", {}))).status_code == 200:
                return
        await asyncio.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


class Engines:
    """The engines of one run and their figures."""

    def __init__(self, ports: list[int], client: httpx.AsyncClient) -> None:
        self.ports = ports
        self._client = client
        self.open: list[list[float]] = []

    async def figures(self) -> list[dict[str, float]]:
        pages = await asyncio.gather(*(self._client.get(f"http://127.0.0.1:{port}/metrics") for port in self.ports))
        return [
            {name: sum(float(value) for value in find.findall(page.text)) for name, find in FIGURES.items()}
            for page in pages
        ]

    async def sample(self, store: Store | None) -> None:
        """Once a second: notes the loads, and reports them where somebody listens."""
        for sequence in itertools.count(2):
            found = await self.figures()
            self.open.append([each["running"] + each["waiting"] for each in found])
            if store is not None:
                await store.publish_report(report(self.ports, found, sequence))
            await asyncio.sleep(1.0)


def cache_tokens() -> int:
    preset = PRESETS["h100-8b"]
    return preset.num_blocks * preset.block_size // SCALE


def report(ports: list[int], figures: list[dict[str, float]], sequence: int) -> NodeReport:
    return NodeReport(
        node="bench", boot_id="bench", sequence=sequence, agent_pid=os.getpid(), version="bench", at=time.time(),
        replicas=tuple(
            ReplicaStatus(
                id=f"{MODEL}-r{number}", deployment=MODEL, model=MODEL, node="bench", engine="external", runtime="external",
                phase=Phase.READY, endpoint=EndpointAddress(host="127.0.0.1", port=port), engine_epoch="bench",
                sample=EngineSample(
                    requests_running=int(figure["running"]), requests_waiting=int(figure["waiting"]),
                    kv_cache_usage=figure["kv"], kv_cache_tokens=cache_tokens(),
                ),
            )
            for number, (port, figure) in enumerate(zip(ports, figures, strict=True))
        ),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def engines(count: int, client: httpx.AsyncClient) -> AsyncIterator[Engines]:
    ports = [free_port() for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        for port in ports:
            command = (
                sys.executable, "-m", "nebula_agent.simulator", MODEL, "--port", str(port), "--preset", "h100-8b", "--no-access-log",
                "--num-gpu-blocks", str(cache_tokens() // 16), "--max-num-batched-tokens", str(PRESETS["h100-8b"].max_num_batched_tokens // SCALE), "--max-model-len", str(cache_tokens() - 32),
            )  # fmt: skip
            await stack.enter_async_context(process(*command))
        for port in ports:
            await answers(client, f"http://127.0.0.1:{port}/health")
        yield Engines(ports, client)


@contextlib.asynccontextmanager
async def nebula(engines: Engines, client: httpx.AsyncClient) -> AsyncIterator[tuple[str, str, Store]]:
    """One data worker that knows the engines; yields its address, a key, and the store to report to."""
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as folder:
        port, store_port = free_port(), free_port()
        url = f"redis://127.0.0.1:{store_port}/0"
        command = [str(word) for word in store_command(find_store_program(), Path(folder), port=store_port)]
        async with process(*command), await connect(StoreSettings(url=url)) as store:
            # Nobody is turned away: the question is where requests go.
            limits = Limits(inflight=100_000, waiting=100_000, kv_cache_usage=1.0)
            spec = DeploymentSpec(source="bench", engine="vllm", replicas=len(engines.ports), gpus=0, limits=limits)
            token = await write_model(store, MODEL, spec)
            await store.publish_report(report(engines.ports, await engines.figures(), 1))
            environment = {
                "NEBULA_PROXY_PORT": str(port),
                "NEBULA_PROXY_STORE__URL": url,
                "NEBULA_PROXY_DRAIN_SECONDS": "0",
            }
            async with process(sys.executable, "-m", "nebula_proxy", "run", "--role", "data", **environment):
                await answers(client, f"http://127.0.0.1:{port}/readyz")
                yield f"http://127.0.0.1:{port}", token, store


async def play(url: str, headers: dict[str, str], arrivals: list[Arrival], client: httpx.AsyncClient) -> list[float]:
    """Seconds to the first token of each request that was answered."""
    bodies = [arrival.body() for arrival in arrivals]
    began = asyncio.get_running_loop().time() + 0.5
    first: list[float] = []
    problems: list[str] = []

    async def one(arrival: Arrival, body: bytes) -> None:
        await asyncio.sleep(began + arrival.at - asyncio.get_running_loop().time())
        sent = time.perf_counter()
        seconds = None
        async with client.stream("POST", f"{url}/v1/chat/completions", content=body, headers=headers) as response:
            async for chunk in response.aiter_raw():
                if seconds is None and b'"delta"' in chunk:
                    seconds = time.perf_counter() - sent
                last = chunk
            if response.status_code != 200 or seconds is None or b"[DONE]" not in last:
                problems.append(f"{response.status_code} {last[:200]!r}")
            else:
                first.append(seconds)

    await asyncio.gather(*(one(arrival, body) for arrival, body in zip(arrivals, bodies, strict=True)))
    if len(problems) > len(arrivals) / 100:
        raise SystemExit(f"{len(problems)} of {len(arrivals)} failed, e.g. {problems[0]}")
    return first


async def run(subject: str, arrivals: list[Arrival], args: argparse.Namespace) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=512)
    headers = {"content-type": "application/json"}
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=300.0, limits=limits, trust_env=False))
        mine = await stack.enter_async_context(engines(args.engines, client))
        store = None
        if subject in NEBULA:
            url, token, store = await stack.enter_async_context(nebula(mine, client))
            headers |= {"authorization": f"Bearer {token}", "x-nebula-strategy": subject}
        else:
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            urls = [f"http://127.0.0.1:{each}" for each in mine.ports]
            command = (
                str(args.peer), "launch", "--worker-urls", *urls, "--policy", "cache_aware", "--port", str(port),
                "--log-level", "error", "--prometheus-port", str(free_port()),
            )  # fmt: skip
            await stack.enter_async_context(process(*command))
            await answers(client, f"{url}/health")
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
            await answers(client, f"{url}/v1/chat/completions", method="POST", send={"json": body})
        before = await mine.figures()
        watching = asyncio.create_task(mine.sample(store))
        try:
            ttft = sorted(await play(url, headers, arrivals, client))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        after = await mine.figures()
    hits = sum(new["hits"] - old["hits"] for new, old in zip(after, before, strict=True))
    asked = sum(new["queries"] - old["queries"] for new, old in zip(after, before, strict=True))
    loads = [statistics.fmean(column) for column in zip(*mine.open, strict=True)]
    return {
        "hit_tokens": round(hits),
        "hit_ratio": round(hits / asked, 4),
        "ttft_p50_seconds": round(ttft[len(ttft) // 2], 3),
        "ttft_p99_seconds": round(ttft[int(len(ttft) * 0.99)], 3),
        "max_to_mean_load": round(max(loads) / statistics.fmean(loads), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=0.8, help="as in routing_replay.py; a short step costs more here")
    parser.add_argument("--peer", type=Path, default=PEER)
    parser.add_argument("--subjects", default="prefix_cache_aware,sglang-router,least_pending,round_robin")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped
    subjects = [each for each in args.subjects.split(",") if each in NEBULA or args.peer.exists()]
    arrivals = read_trace(args.rate, args.engines, args.seconds)
    results: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        found = results[subject] = asyncio.run(run(subject, arrivals, args))
        print(
            f"{subject:19} hits {found['hit_tokens'] / 1e3:7.1f} k tokens ({found['hit_ratio']:.1%}), TTFT p50 "
            f"{found['ttft_p50_seconds']:.3f} p99 {found['ttft_p99_seconds']:.3f} s, max/mean load {found['max_to_mean_load']:.2f}",
            flush=True,
        )
    print(
        json.dumps(
            {
                "benchmark": "routing_replay_http",
                "requests": len(arrivals),
                "engines": args.engines,
                "rate": args.rate,
                "subjects": results,
            }
        )
    )


if __name__ == "__main__":
    main()
