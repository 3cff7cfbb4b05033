"""Two workers against one (GOALS S6): requests per second in a closed loop, CPU per request, how connections spread.

    python benchmarks/scaling.py [--rounds 5] [--seconds 5] [--rig DIR]

The rig's load generator and engine (C, built with gcc) in front of and behind `nebula-proxy run --role data`, rounds of one and of
two workers in turn. Where load, engine and workers share the cores, as on a machine of two, requests per second cannot double;
what counts there is whether CPU per request stays the same: nothing is done in series, and nothing twice.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
from restart_soak import MODEL, cluster
from worker_memory import _serving

from nebula_core.runtime.processes import free_port


@contextlib.asynccontextmanager
async def proxy(store: str, workers: int, token: str) -> AsyncIterator[tuple[int, list[int]]]:
    """Its port and the pids of its workers."""
    port = free_port()
    env = {
        **os.environ,
        "NEBULA_PROXY_STORE__URL": store,
        "NEBULA_PROXY_PORT": str(port),
        "NEBULA_PROXY_WORKERS": str(workers),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nebula_proxy", "run", "--role", "data", env=env,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await _serving(port, token)
        await asyncio.sleep(3)
        children = [child.pid for child in psutil.Process(process.pid).children()]
        yield port, children or [process.pid]
    finally:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()
        await process.wait()


async def load(rig: Path, port: int, pids: list[int], token: str, seconds: float) -> tuple[dict[str, Any], list[int]]:
    process = await asyncio.create_subprocess_exec(
        str(rig / "bin" / "loadgen"), "-m", "req", "-p", str(port), "-c", "64", "-q", "0", "-M", MODEL,
        "-A", f"Bearer {token}", "-w", "1", "-d", str(round(seconds)), "-P", ",".join(map(str, pids)),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await asyncio.sleep(1 + seconds / 2)
    spread = [
        sum(
            one.status == psutil.CONN_ESTABLISHED and one.laddr[1] == port
            for one in psutil.Process(pid).net_connections()
        )
        for pid in pids
    ]
    out, _ = await process.communicate()
    found: dict[str, Any] = json.loads(out)
    return found, spread


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    seen: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    spreads: list[list[int]] = []
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as name:
        work = Path(name)
        subprocess.run(["sh", str(args.rig / "build.sh"), name], check=True, stdin=subprocess.DEVNULL)  # noqa: ASYNC221
        engine = free_port()
        fake = await asyncio.create_subprocess_exec(str(work / "bin" / "fakeup"), str(engine))
        try:
            async with cluster(work, engine) as (store, token):
                for _ in range(args.rounds):
                    for workers in (1, 2):
                        async with proxy(store, workers, token) as (port, pids):
                            found, spread = await load(work, port, pids, token, args.seconds)
                        if args.verbose:
                            print(workers, found, spread)
                        rate = found["requests_per_s"]
                        seen[workers].append((rate, found["us_per_unit"]))
                        if workers == 2:
                            spreads.append(spread)
        finally:
            fake.kill()
            await fake.wait()
    rates = [two[0] / one[0] for one, two in zip(seen[1], seen[2], strict=True)]
    costs = [two[1] / one[1] for one, two in zip(seen[1], seen[2], strict=True)]
    return {
        "benchmark": "scaling",
        "rate_ratio": [round(value, 2) for value in (statistics.median(rates), min(rates), max(rates))],
        "cpu_per_request_ratio": [round(value, 2) for value in (statistics.median(costs), min(costs), max(costs))],
        "requests_per_second": {
            workers: round(statistics.median(rate for rate, _ in seen[workers])) for workers in seen
        },
        "us_per_request": {workers: round(statistics.median(cost for _, cost in seen[workers]), 1) for workers in seen},
        "connections": spreads,
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rig", type=Path, default=Path(os.environ.get("NEBULA_RIG", "../shared/rig")))
    parser.add_argument("--verbose", action="store_true")
    found = asyncio.run(measure(parser.parse_args()))
    print(
        f"two workers: {found['rate_ratio'][0]} x the requests per second, {found['cpu_per_request_ratio'][0]} x the CPU per "
        f"request of one, on {found['cores']} cores; connections {found['connections']}"
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
