"""What a data-plane worker costs beside its peers (GOALS S1-S4): CPU per small request and per streamed chunk.

    python benchmarks/proxy_overhead.py [--rounds 5] [--scenarios B,C,E,T] [--proxies direct,nginx,…] [--rig DIR] [--work DIR]

Runs the load tools of the rig (a folder with `rig.py`: --rig, or NEBULA_RIG, default `../shared/rig`), which must find gcc
and nginx. Peers (`haproxy`, `vllm-router`, `sglang-router`, `litellm`) run interleaved with it in every round; those from
PyPI are looked for in WORK/venvs/NAME. One worker is measured with everything on: keys, admission, routing, metrics, one log line per request. Its
endpoints, deployment and key stand in a real store, which this script starts and keeps fresh as an agent would. Prints
the ratios to each peer, paired by round (median, least, largest, n), as a readable table and one JSON line.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from benchmarks.stage import write_model
from nebula_core.records.deployment import DeploymentSpec, Limits
from nebula_core.records.replica import EndpointAddress, Phase, ReplicaStatus
from nebula_core.records.report import NodeReport
from nebula_core.records.sample import EngineSample
from nebula_core.runtime.processes import free_port
from nebula_core.store.connection import StoreSettings, connect
from nebula_core.store.embedded import find_store_program, store_command
from nebula_core.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
MODEL = "m0"
ENGINES = (9001, 9002)
SUBJECT = "nebula-data-worker"


def report(sequence: int) -> NodeReport:
    """Two engines, idle by their own account: as an agent says it each second."""
    sample = EngineSample(requests_running=0, requests_waiting=0, kv_cache_usage=0.1)
    return NodeReport(
        node="bench",
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
                node="bench",
                engine="external",
                runtime="external",
                phase=Phase.READY,
                endpoint=EndpointAddress(host="127.0.0.1", port=port),
                engine_epoch="bench",
                sample=sample,
            )
            for number, port in enumerate(ENGINES)
        ),
    )


@contextlib.asynccontextmanager
async def cluster() -> AsyncIterator[tuple[str, str]]:
    """A store with what the worker needs to know; yields its address and a client's key."""
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as folder:
        port = free_port()
        command = store_command(find_store_program(), Path(folder), port=port)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
        )
        url = f"redis://127.0.0.1:{port}/0"
        try:
            async with await connect(StoreSettings(url=url)) as store:
                yield_token = await _write(store)
                keeper = asyncio.create_task(_keep(store), name="reports")
                try:
                    yield url, yield_token
                finally:
                    keeper.cancel()
                    await asyncio.gather(keeper, return_exceptions=True)
        finally:
            process.terminate()
            await process.wait()


async def _write(store: Store) -> str:
    spec = DeploymentSpec(source="bench", engine="vllm", replicas=2, gpus=0, limits=Limits(inflight=100_000))
    token = await write_model(store, MODEL, spec)
    await store.publish_report(report(1))
    return token


async def _keep(store: Store) -> None:
    sequence = 1
    while True:
        await asyncio.sleep(1.0)
        sequence += 1
        await store.publish_report(report(sequence))


async def measure(args: argparse.Namespace, out: Path) -> None:
    async with cluster() as (store_url, token):
        port = free_port()
        subject = [
            f"name={SUBJECT}",
            f"port={port}",
            f"command={sys.executable} -m nebula_proxy run --role data",
            f"env.NEBULA_PROXY_PORT={port}",
            f"env.NEBULA_PROXY_STORE__URL={store_url}",
            "env.NEBULA_PROXY_DRAIN_SECONDS=0",
            *([] if args.hot_path else ["env.NEBULA_PROXY_HOT_PATH=false"]),
            f"auth=Bearer {token}",
            "cpu=tree",
        ]
        command = [
            *(sys.executable, str(args.rig / "rig.py"), "--rounds", str(args.rounds), "--scenarios", args.scenarios),
            *("--proxies", args.proxies, "--work", str(args.work), "--out", str(out), "--python", args.python),
            *("--subject", *subject),
        ]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        if await process.wait():
            raise SystemExit(f"the rig ended with status {process.returncode}")


def ratios(rows: list[dict[str, Any]], base_name: str) -> dict[str, dict[str, Any]]:
    """By scenario: CPU per unit over the base's of the same round; windows with a flaw count for neither."""
    good = {(row["scenario"], row["round"], row["proxy"]): row for row in rows if "round" in row and not row["flaw"]}
    found: dict[str, dict[str, Any]] = {}
    for scenario in sorted({key[0] for key in good}):
        mine = {key[1]: row for key, row in good.items() if key[0] == scenario and key[2] == SUBJECT}
        base = {key[1]: row for key, row in good.items() if key[0] == scenario and key[2] == base_name}
        paired = [mine[number]["us_per_unit"] / base[number]["us_per_unit"] for number in mine.keys() & base.keys()]
        if not paired:
            continue
        found[scenario] = {
            "ratio": round(statistics.median(paired), 4),
            "least": round(min(paired), 4),
            "largest": round(max(paired), 4),
            "n": len(paired),
            "us": round(statistics.median(row["us_per_unit"] for row in mine.values()), 1),
            "base_us": round(statistics.median(row["us_per_unit"] for row in base.values()), 1),
            "p50_ms": round(statistics.median(row["latency_p50_ms"] for row in mine.values()), 3),
            "p99_ms": round(statistics.median(row["latency_p99_ms"] for row in mine.values()), 3),
            "base_p50_ms": round(statistics.median(row["latency_p50_ms"] for row in base.values()), 3),
            "base_p99_ms": round(statistics.median(row["latency_p99_ms"] for row in base.values()), 3),
            "ttft_ms": round(statistics.median(row["ttft_p50_ms"] for row in mine.values()), 3),
            "base_ttft_ms": round(statistics.median(row["ttft_p50_ms"] for row in base.values()), 3),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default_rig = os.environ.get("NEBULA_RIG", str(ROOT.parent / "shared" / "rig"))
    parser.add_argument("--rig", type=Path, default=Path(default_rig))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nebula-rig")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scenarios", default="B,C,E,T")
    parser.add_argument("--proxies", default="direct,nginx", help="peers, in the words of the rig; nginx is the base")
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter of the rig's prototypes, when they are among the peers"
    )
    parser.add_argument("--plain-asgi", dest="hot_path", action="store_false", help="measure the plain ASGI route")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    out = args.work / f"proxy-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    asyncio.run(measure(args, out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    bases = [name for name in args.proxies.split(",") if name != "direct"]
    found = {base: ratios(rows, base) for base in bases}
    machine = next(row for row in rows if row["scenario"] == "machine")
    start: dict[str, Any] = next((row for row in rows if row["scenario"] == "start" and row["proxy"] == SUBJECT), {})
    print(f"{SUBJECT}, {machine['cpu']}, {machine['cores']} cores, load {load:.1f} at the start")
    for base, scenarios in found.items():
        for scenario, row in scenarios.items():
            print(
                f"  {scenario} over {base}: {row['ratio']:.3g} x ({row['least']:.3g}-{row['largest']:.3g}, n={row['n']})  "
                f"{row['us']} us against {row['base_us']} us  p99 {row['p99_ms']} ms against {row['base_p99_ms']} ms  "
                f"ttft {row['ttft_ms']} ms against {row['base_ttft_ms']} ms"
            )
    dropped = [(row["scenario"], row["proxy"], row["flaw"]) for row in rows if row.get("flaw")]
    print(f"  dropped windows: {dropped or 'none'}")
    result = {"benchmark": "proxy_overhead", "load": load, "start": start, "ratios": found, "dropped": dropped}
    print(json.dumps(result | {"machine": machine}))


if __name__ == "__main__":
    main()
