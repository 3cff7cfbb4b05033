"""Reloads under load (GOALS R7): streams open all the time, the proxy replaced again and again; nobody may notice.

    python benchmarks/restart_soak.py [--times 100] [--streams 500] [--workers 2] [--stop]

Each client holds one stream of a few seconds after another, each on a connection of its own. Counted are streams that did
not end in `[DONE]` and connections that were refused. `--stop` sends SIGTERM to one worker after another instead of reloading
the whole (the supervisor starts each again).
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from benchmarks.stage import write_model
from nebula_core.records.deployment import DeploymentSpec, Limits
from nebula_core.records.replica import EndpointAddress, Phase, ReplicaStatus
from nebula_core.records.report import NodeReport
from nebula_core.records.sample import EngineSample
from nebula_core.runtime.processes import free_port
from nebula_core.store.connection import StoreSettings, connect
from nebula_core.store.embedded import find_store_program, store_command
from nebula_core.store.store import Store

MODEL = "m"
CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def request(token: str, body: bytes) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(text: str, finish: str | None = None) -> bytes:
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [delta]}).encode() + b"\n\n"


async def engine(*, pause: float, tokens: int) -> tuple[asyncio.Server, int]:
    """Streams so many tokens, one per pause."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"
                )
                await reader.readexactly(length)
                writer.write(HEAD)
                for _ in range(tokens):
                    writer.write(_chunk(_event(" token")))
                    await writer.drain()
                    await asyncio.sleep(pause)
                writer.write(_chunk(_event(".", "stop")) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=1 << 20, backlog=4096)
    return server, server.sockets[0].getsockname()[1]


def _report(port: int, sequence: int) -> NodeReport:
    status = ReplicaStatus(
        id=f"{MODEL}-r0", deployment=MODEL, model=MODEL, node="bench", engine="external", runtime="external",
        phase=Phase.READY, endpoint=EndpointAddress(host="127.0.0.1", port=port), engine_epoch="bench",
        sample=EngineSample(requests_running=0, requests_waiting=0, kv_cache_usage=0.1),
    )  # fmt: skip
    return NodeReport(
        node="bench",
        boot_id="bench",
        sequence=sequence,
        agent_pid=1,
        version="bench",
        at=time.time(),
        replicas=(status,),
    )


@contextlib.asynccontextmanager
async def cluster(folder: Path, engine_port: int) -> AsyncIterator[tuple[str, str]]:
    """A store that knows one engine; its address and a client's key."""
    port = free_port()
    command = store_command(find_store_program(), folder, port=port)
    server = await asyncio.create_subprocess_exec(*map(str, command), stdout=asyncio.subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        async with await connect(StoreSettings(url=url)) as store:
            spec = DeploymentSpec(source="bench", engine="vllm", gpus=0, limits=Limits(inflight=100_000))
            token = await write_model(store, MODEL, spec)
            keeper = asyncio.create_task(_keep(store, engine_port))
            try:
                yield url, token
            finally:
                keeper.cancel()
                await asyncio.gather(keeper, return_exceptions=True)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it may have been killed on purpose
            server.kill()
        await server.wait()


async def _keep(store: Store, port: int) -> None:
    sequence = 0
    while True:
        sequence += 1
        await store.publish_report(_report(port, sequence))
        await asyncio.sleep(1.0)


async def client(port: int, token: str, ends: Counter[str], over: asyncio.Event) -> None:
    while not over.is_set():
        ends[await one(port, token)] += 1


async def one(port: int, token: str) -> str:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        return f"refused: {error.strerror}"
    try:
        writer.write(request(token, CHAT))
        data = await reader.readline()
        if b" 200 " not in data:
            return f"status {data.decode(errors='replace').strip()}"
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            read = await reader.read(65536)
            if not read:
                return f"cut after {tail[-60:]!r}"
            tail = (tail + read)[-4096:]
        return "whole" if b"data: [DONE]" in tail else f"ended with {tail[-100:]!r}"
    except OSError as error:
        return f"aborted: {error.strerror}"
    finally:
        writer.close()


async def soak(args: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as name:
        folder = Path(name)
        server, engine_port = await engine(pause=0.5, tokens=6)
        async with cluster(folder, engine_port) as (store, token):
            port = free_port()
            env = {
                **os.environ,
                "NEBULA_PROXY_STORE__URL": store,
                "NEBULA_PROXY_PORT": str(port),
                "NEBULA_PROXY_WORKERS": str(args.workers),
                "NEBULA_PROXY_DATA_DIR": name,
                "NEBULA_PROXY_REQUEST_LOG": "false",
            }
            log = folder / "proxy.log"
            with log.open("wb") as output:
                proxy = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "nebula_proxy", "run", "--role", "data", env=env, stderr=output, stdout=output
                )
            ends: Counter[str] = Counter()
            over = asyncio.Event()
            began = time.monotonic()
            try:
                await _said(log, "all_workers_ready", 1)
                clients = []
                for number in range(args.streams):
                    clients.append(asyncio.create_task(client(port, token, ends, over)))
                    if number % 50 == 0:
                        await asyncio.sleep(0.05)
                await asyncio.sleep(2)
                for turn in range(1, args.times + 1):
                    if args.stop:
                        victims = psutil.Process(proxy.pid).children()
                        started = _count(log, "child_started")
                        victims[turn % len(victims)].send_signal(signal.SIGTERM)
                        await _said(log, "child_started", started + 1)
                        await asyncio.sleep(1)
                    else:
                        proxy.send_signal(signal.SIGHUP)
                        await _said(log, "reloaded", turn)
                        await asyncio.sleep(0.2)
                over.set()
                await asyncio.gather(*clients)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    for child in psutil.Process(proxy.pid).children():
                        child.kill()
                    proxy.kill()
                await proxy.wait()
                server.close()
    bad = {how: count for how, count in ends.items() if how != "whole"}
    return {
        "benchmark": "restart_soak",
        "times": args.times,
        "what": "worker SIGTERM" if args.stop else "reload",
        "streams_at_once": args.streams,
        "streams": sum(ends.values()),
        "failed": sum(bad.values()),
        "how": bad,
        "seconds": round(time.monotonic() - began),
    }


def _count(log: Path, action: str) -> int:
    return log.read_text(encoding="utf-8").count(f'"action": "{action}"')


async def _said(log: Path, action: str, times: int) -> None:
    for _ in range(4000):
        if _count(log, action) >= times:
            return
        await asyncio.sleep(0.05)
    raise RuntimeError(f"it never said {action} {times} times: see {log}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stop", action="store_true")
    found = asyncio.run(soak(parser.parse_args()))
    print(
        f"{found['times']} × {found['what']} with {found['streams_at_once']} streams at once: "
        f"{found['streams']} streams, {found['failed']} failed {found['how'] or ''}"
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
