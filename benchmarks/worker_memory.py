"""What a data worker takes of memory (GOALS S5): idle, per open stream, and whether it stays flat while streams run.

    python benchmarks/worker_memory.py [--streams 1000] [--seconds 60]

A worker as `nebula-proxy run` makes it, on a real store, one engine in this process that says a token a second. Resident memory
as the kernel counts it (RSS, with pages shared with others).
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from restart_soak import CHAT, cluster, engine, request
from state_cost import memory_kib

from nebula_core.runtime.processes import free_port


async def measure(streams: int, seconds: float) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as folder:
        server, port = await engine(pause=1.0, tokens=1_000_000)
        async with cluster(Path(folder), port) as (store, token):
            at = free_port()
            env = {**os.environ, "NEBULA_PROXY_STORE__URL": store, "NEBULA_PROXY_PORT": str(at)}
            worker = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "nebula_proxy",
                "run",
                "--role",
                "data",
                env=env,
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                await _serving(at, token)
                await asyncio.sleep(5)
                idle = memory_kib(worker.pid)
                clients = []
                for _ in range(streams):
                    reader, writer = await asyncio.open_connection("127.0.0.1", at)
                    writer.write(request(token, CHAT))
                    clients.append((reader, writer))
                readers = [asyncio.create_task(_drain(reader)) for reader, _ in clients]
                await asyncio.sleep(5)
                seen = []
                for _ in range(10):
                    seen.append(memory_kib(worker.pid))
                    await asyncio.sleep(seconds / 10)
                for task in readers:
                    task.cancel()
                for _, writer in clients:
                    writer.close()
                await asyncio.sleep(3)
                after = memory_kib(worker.pid)
            finally:
                worker.kill()
                await worker.wait()
                server.close()
    return {
        "benchmark": "worker_memory",
        "idle_mb": round(idle / 1024, 1),
        "streams": streams,
        "kib_per_stream": round((statistics.median(seen) - idle) / streams, 2),
        "first_mb": round(seen[0] / 1024, 1),
        "last_mb": round(seen[-1] / 1024, 1),
        "after_mb": round(after / 1024, 1),
    }


async def _serving(port: int, token: str) -> None:
    for _ in range(400):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.write(request(token, CHAT))
        status = await reader.readline()
        writer.close()
        if b" 200 " in status:
            return
        await asyncio.sleep(0.05)
    raise RuntimeError("the worker does not serve")


async def _drain(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    found = asyncio.run(measure(args.streams, args.seconds))
    print(
        f"idle {found['idle_mb']} MB; {found['kib_per_stream']} KiB per stream at {found['streams']}; "
        f"{found['first_mb']} MB at first, {found['last_mb']} MB after {args.seconds:g} s, {found['after_mb']} MB when all had left"
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
