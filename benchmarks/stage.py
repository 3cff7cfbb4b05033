"""A stage for benchmarks: a real store, a real data worker, and somebody who reports the engines as an agent would.

`Stage` is an async context; `benchmarks/overload.py` and its neighbours play on it. Everything listens on 127.0.0.1
and is gone at the end.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from nebula_core.errors import NebulaError
from nebula_core.records.access import KeyLimits, Role
from nebula_core.records.compact import NodeDelta, ReplicaDelta
from nebula_core.records.deployment import Deployment, DeploymentSpec, Limits
from nebula_core.records.event import ChangeKind
from nebula_core.records.replica import EndpointAddress, Phase, ReplicaStatus
from nebula_core.records.report import NodeReport
from nebula_core.records.sample import EngineSample
from nebula_core.runtime.http import UpstreamClient, UpstreamError, fetch
from nebula_core.runtime.processes import free_port
from nebula_core.security.credentials import mint_key
from nebula_core.store.connection import StoreSettings, connect
from nebula_core.store.embedded import find_store_program, store_command
from nebula_core.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
MODEL = "m0"
NODE = "bench"
FIGURES = {
    "running": re.compile(rb"^vllm:num_requests_running\{[^}]*\} (\S+)", re.MULTILINE),
    "waiting": re.compile(rb"^vllm:num_requests_waiting\{[^}]*\} (\S+)", re.MULTILINE),
    "kv": re.compile(rb"^vllm:kv_cache_usage_perc\{[^}]*\} (\S+)", re.MULTILINE),
    "generated": re.compile(rb"^vllm:generation_tokens_total\{[^}]*\} (\S+)", re.MULTILINE),
    "prompted": re.compile(rb"^vllm:prompt_tokens_total\{[^}]*\} (\S+)", re.MULTILINE),
}


def chat(*, tokens: int = 40, stream: bool = True, words: int = 20) -> bytes:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "word " * words}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }
    return json.dumps(body).encode()


def request(body: bytes, token: str, port: int, path: str = "/v1/chat/completions") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


class Stage:
    """What a benchmark works with. `engines` are ports; the worker listens on `port`."""

    def __init__(self, store: Store, port: int, token: str, worker: asyncio.subprocess.Process, log: Path) -> None:
        self.store = store
        self.port = port
        self.token = token
        self.worker = worker
        #: What it writes on stderr: a line per request unless `request_log` is off.
        self.log = log
        self.engines: list[int] = []
        #: How often each of them was started: what an agent says as the engine's epoch.
        self.starts: list[int] = []
        self._sequence = 0
        self.store_port = 0
        #: What was last read of each engine's counters, and when.
        self._counted: dict[tuple[int, str], tuple[float, float]] = {}
        self._store_command: list[str] = []
        self._store_process: asyncio.subprocess.Process | None = None

    @property
    def store_pid(self) -> int:
        assert self._store_process is not None  # noqa: S101 - a stage has one
        return self._store_process.pid

    async def start_store(self) -> None:
        """Starts the store again where it was killed: with what it had on disk."""
        if self._store_process is not None:
            await self._store_process.wait()
        self._store_process = await _store(self._store_command)

    async def configure_store(self, name: str, value: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.store_port)
        writer.write(f"CONFIG SET {name} {value}\r\n".encode())
        said = await reader.readline()
        writer.close()
        if said != b"+OK\r\n":
            raise RuntimeError(f"the store says {said!r}")

    async def started_anew(self, number: int) -> None:
        """An engine has died and runs again on its port: says so, as its agent would."""
        self.starts[number] += 1
        await self.report()

    async def report(self) -> None:
        self._sequence += 1
        await self.store.publish_report(_report(self, self._sequence), ttl=3600)

    async def figures(self) -> None:
        """Scrapes the engines, and says what they say."""
        deltas = await asyncio.gather(*(self._figures(number, port) for number, port in enumerate(self.engines)))
        self._sequence += 1
        await self.store.publish_delta(NodeDelta(node=NODE, sequence=self._sequence, replicas=tuple(deltas)))

    async def _figures(self, number: int, port: int) -> ReplicaDelta:
        name = f"{MODEL}-r{number}"
        try:
            page = (await fetch("GET", "127.0.0.1", port, "/metrics", timeout=0.5)).body
        except (UpstreamError, OSError, TimeoutError):
            return ReplicaDelta(id=name, phase=Phase.READY)
        found = {key: pattern.search(page) for key, pattern in FIGURES.items()}
        values = {key: None if match is None else float(match[1]) for key, match in found.items()}
        running, waiting = values["running"], values["waiting"]
        return ReplicaDelta(
            id=name,
            phase=Phase.READY,
            running=None if running is None else int(running),
            waiting=None if waiting is None else int(waiting),
            kv=values["kv"],
            generation_rate=self._rate(number, "generated", values["generated"]),
            prompt_rate=self._rate(number, "prompted", values["prompted"]),
        )

    def _rate(self, number: int, counter: str, value: float | None) -> float | None:
        """Per second since the last time; None the first time, and when the engine was started anew."""
        if value is None:
            return None
        now = time.monotonic()
        before, at = self._counted.get((number, counter), (value + 1.0, now))
        self._counted[number, counter] = (value, now)
        return None if value < before else (value - before) / (now - at)

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.worker.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.worker.pid}/fd").iterdir())

    async def metrics(self) -> str:
        answer = await fetch("GET", *self.address, "/metrics")
        return answer.body.decode()

    async def figure(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that carry these labels."""
        total = 0.0
        for line in (await self.metrics()).splitlines():
            if line.startswith((f"{name} ", f"{name}{{")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


@contextlib.asynccontextmanager
async def simulated_engine(*arguments: str) -> AsyncIterator[int]:
    """One simulated engine; yields its port once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "nebula_agent.simulator", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", MODEL, "--no-access-log", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await until_answers(port, "/health")
        yield port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def stage(
    engines: Sequence[int], *, limits: Limits | None = None, key_limits: KeyLimits | None = None, **settings: object
) -> AsyncIterator[Stage]:
    """A store, a worker with these `settings` (upper or lower case names), and a keeper that reports `engines`."""
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as folder:
        store_port, port = free_port(), free_port()
        url = f"redis://127.0.0.1:{store_port}/0"
        command = store_command(find_store_program(), Path(folder), port=store_port)
        store_process = await _store(command)
        made: Stage | None = None
        try:
            async with await connect(StoreSettings(url=url)) as store:
                spec = DeploymentSpec(
                    source="bench", engine="simulated", replicas=len(engines), gpus=0, limits=limits or Limits()
                )
                token = await write_model(store, MODEL, spec, key_limits)
                env = os.environ | {f"NEBULA_PROXY_{name.upper()}": str(value) for name, value in settings.items()}
                env |= {"NEBULA_PROXY_STORE__URL": url, "NEBULA_PROXY_PORT": str(port), "PYTHONPATH": str(ROOT)}
                with (Path(folder) / "worker.log").open("ab") as log:
                    worker = await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "nebula_proxy", "run", "--role", "data"),
                        env=env,
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                made = Stage(store, port, token, worker, Path(folder) / "worker.log")
                made._store_process, made._store_command, made.store_port = store_process, command, store_port  # noqa: SLF001
                made.engines = list(engines)
                made.starts = [0] * len(engines)
                keeper = asyncio.create_task(_keep(made), name="reports")
                try:
                    await until_answers(port, "/readyz")
                    yield made
                finally:
                    keeper.cancel()
                    await asyncio.gather(keeper, return_exceptions=True)
                    if worker.returncode is None:
                        worker.send_signal(signal.SIGKILL)
                    await worker.wait()
        finally:
            if made is not None:
                store_process = made._store_process or store_process  # noqa: SLF001 - it may have been started anew
            if store_process.returncode is None:
                store_process.terminate()
            await store_process.wait()


async def _store(command: Sequence[str]) -> asyncio.subprocess.Process:
    quiet = asyncio.subprocess.DEVNULL
    return await asyncio.create_subprocess_exec(*command, stdin=quiet, stdout=quiet)


async def write_model(store: Store, model: str, spec: DeploymentSpec, key_limits: KeyLimits | None = None) -> str:
    """Waits for the store and tells it of one deployment and of one client's key, which is returned."""
    for _ in range(200):
        with contextlib.suppress(Exception):
            await store.check()
            break
        await asyncio.sleep(0.05)
    await store.ensure_meta()
    token, record = mint_key(
        "bench", Role.CLIENT, now=time.time(), created_by="bench", limits=key_limits or KeyLimits()
    )
    await store.put(ChangeKind.KEY, record.id, record)
    await store.put(ChangeKind.DEPLOYMENT, model, Deployment(name=model, generation=1, spec=spec))
    return token


def _report(made: Stage, sequence: int) -> NodeReport:
    return NodeReport(
        node=NODE,
        boot_id="bench",
        sequence=sequence,
        agent_pid=os.getpid(),
        version="bench",
        at=time.time(),
        replicas=tuple(
            ReplicaStatus(
                id=f"{MODEL}-r{number}",
                deployment=MODEL,
                model=MODEL,
                node=NODE,
                engine="simulated",
                runtime="process",
                phase=Phase.READY,
                endpoint=EndpointAddress(host="127.0.0.1", port=port),
                engine_epoch=f"start-{made.starts[number]}",
                sample=EngineSample(requests_running=0, requests_waiting=0, kv_cache_usage=0.0),
            )
            for number, port in enumerate(made.engines)
        ),
    )


async def _keep(made: Stage) -> None:
    """Once a second: scrape, and say it as an agent does."""
    await made.report()
    while True:
        began = time.monotonic()
        with contextlib.suppress(NebulaError):  # an agent goes on when its store does not answer, or takes nothing
            await made.figures()
        await asyncio.sleep(max(0.0, began + 1.0 - time.monotonic()))


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    """Looks again and again for what nothing announces. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.003)


async def until_answers(port: int, path: str, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            try:
                if (await fetch("GET", "127.0.0.1", port, path, timeout=1.0)).status == 200:
                    return
            except (UpstreamError, OSError, TimeoutError):
                pass
            await asyncio.sleep(0.05)


def quantile(values: Sequence[float], q: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


def client() -> UpstreamClient:
    """The load's own client: lean, so that the tool is not the bottleneck."""
    return UpstreamClient(connect_timeout_seconds=5.0)
