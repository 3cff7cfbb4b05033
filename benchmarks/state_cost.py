"""What the state of a large cluster costs a data worker (GOALS S8): CPU, loop stalls, report to routing decision.

    python benchmarks/state_cost.py [--nodes 1000] [--gpus 8] [--replicas 4] [--seconds 20] [--idle] [--reader routing]

A real store; a process that writes as so many agents do (a compact record each second and node, a full report every five
seconds, spread evenly); and a reader. `routing` is a whole data worker, `snapshot` the rich watcher of the control process.
Run twice per figure: once for the CPU (schedstat over all threads, nothing else in the process), once with a probe in
the same loop, which notes how late a timer of 1 ms comes, how much CPU the loop used in between (`held`: what of it is
ours and not the machine's), and how old a figure is when routing first sees it. `--idle` writes
nothing: what a worker of an empty cluster costs.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop

from nebula_agent.decisions.reporting import compact
from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.event import ChangeKind
from nebula_core.records.replica import EndpointAddress, Phase, ReplicaStatus
from nebula_core.records.report import NodeReport
from nebula_core.records.sample import EngineSample, GpuProcess, GpuSample, HostSample
from nebula_core.runtime.logs import configure_logging
from nebula_core.runtime.processes import free_port
from nebula_core.store.connection import StoreSettings, connect
from nebula_core.store.embedded import find_store_program, store_command
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher
from nebula_proxy.adapters.vitals import calm_collector
from nebula_proxy.app import Worker
from nebula_proxy.settings import ProxySettings

#: Replicas of one model; the cluster has as many models as that makes.
PER_MODEL = 40
FULL_EVERY_SECONDS = 5
#: The node whose figures are stamped.
PROBED = 7
#: A stamp in `requests_waiting`: milliseconds of the monotonic clock, which all processes of a machine share.
WRAP = 1_000_000_000


def model_of(node: int, replica: int, replicas: int) -> str:
    return f"model-{(node * replicas + replica) // PER_MODEL}"


def report(node: int, sequence: int, gpus: int, replicas: int) -> NodeReport:
    name = f"node-{node:04}"
    stamp = round(time.monotonic() * 1000) % WRAP
    return NodeReport(
        node=name,
        boot_id=f"boot-{node}",
        sequence=sequence,
        agent_pid=1000,
        version="0.1.0",
        at=time.time(),
        host=HostSample(cpu_ratio=random.random(), load_1m=2.5, memory_used_bytes=1 << 38, memory_total_bytes=1 << 40),
        gpus=tuple(
            GpuSample(
                gpu=f"GPU-{node:04}-{index}",
                index=index,
                memory_used_bytes=random.randrange(1 << 36),
                memory_total_bytes=80 << 30,
                utilization_ratio=random.random(),
                temperature_celsius=60.0 + index,
                power_watts=300.0 + random.random(),
                power_limit_watts=700.0,
                sm_clock_mhz=1980,
                processes=(GpuProcess(pid=4000 + index, name="python", memory_used_bytes=70 << 30),),
            )
            for index in range(gpus)
        ),
        replicas=tuple(
            ReplicaStatus(
                id=f"{model_of(node, index, replicas)}-n{node}x{index}",
                deployment=model_of(node, index, replicas),
                model=model_of(node, index, replicas),
                node=name,
                gpus=(f"GPU-{node:04}-{2 * index}", f"GPU-{node:04}-{2 * index + 1}"),
                engine="vllm",
                engine_version="0.32.0",
                runtime="docker",
                image="vllm/vllm-openai:v0.32.0",
                phase=Phase.READY,
                phase_seconds=100.0 + sequence,
                generation=1,
                endpoint=EndpointAddress(host=f"10.0.{node % 250}.{node // 250}", port=20000 + index),
                engine_epoch=f"epoch-{node}-{index}",
                container_id=f"{node:032x}{index:032x}",
                pid=4000 + index,
                sample=EngineSample(
                    requests_running=random.randrange(64),
                    requests_waiting=stamp if node == PROBED else random.choice((0, 0, 0, 0, 3)),
                    kv_cache_usage=random.random(),
                    kv_cache_tokens=400_000,
                    prompt_tokens_total=1e6,
                    generation_tokens_total=1e6,
                    generation_tokens_per_second=random.random() * 3000,
                    prompt_tokens_per_second=random.random() * 9000,
                    prefix_cache_hit_ratio=random.random(),
                    ttft_p50_seconds=0.2,
                    ttft_p95_seconds=0.4 + random.random(),
                    itl_p95_seconds=0.03,
                ),
                sample_age_seconds=0.2,
            )
            for index in range(replicas)
        ),
    )


async def write_all(store: Store, args: argparse.Namespace) -> None:
    await store.ensure_meta()
    for number in range(-(-args.nodes * args.replicas // PER_MODEL)):
        name = f"model-{number}"
        spec = DeploymentSpec(source="org/model", replicas=PER_MODEL)
        await store.put(ChangeKind.DEPLOYMENT, name, Deployment(name=name, generation=1, spec=spec))
    for node in range(args.nodes):
        await store.publish_report(report(node, 1, args.gpus, args.replicas), ttl=60)


async def write_for_ever(args: argparse.Namespace) -> None:
    """What so many agents send: each once a second, at its own moment of the second."""
    async with await connect(StoreSettings(url=args.store)) as store:
        began = time.monotonic()
        turn = 0
        while True:
            node, second = turn % args.nodes, turn // args.nodes
            due = began + turn / args.nodes
            if (pause := due - time.monotonic()) > 0.002:
                await asyncio.sleep(pause)
            made = report(node, second + 2, args.gpus, args.replicas)
            if (second + node) % FULL_EVERY_SECONDS == 0:
                await store.publish_report(made, ttl=60, compact=compact(made))
            else:
                await store.publish_delta(compact(made))
            turn += 1


def cpu_seconds(pid: int) -> float:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9


def memory_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


@contextlib.asynccontextmanager
async def running(*command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # a worker would drain first
        await process.wait()


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as folder:
        port = free_port()
        command = store_command(find_store_program(), Path(folder), port=port)
        async with running(*map(str, command), stdout=asyncio.subprocess.DEVNULL) as server:
            args.store = f"redis://127.0.0.1:{port}/0"
            async with await connect(StoreSettings(url=args.store)) as store:
                for _ in range(200):
                    with contextlib.suppress(Exception):
                        await store.check()
                        break
                    await asyncio.sleep(0.05)
                if not args.idle:
                    await write_all(store, args)
                else:
                    await store.ensure_meta()
            again = [sys.executable, __file__, "--store", args.store]
            shape = ["--nodes", str(args.nodes), "--gpus", str(args.gpus), "--replicas", str(args.replicas)]
            async with contextlib.AsyncExitStack() as stack:
                if not args.idle:
                    await stack.enter_async_context(running(*again, *shape, "--role", "writer"))
                cpu = await _cpu(args, [*again, *shape, "--role", args.reader], server.pid)
                probed = await _probe([*again, *shape, "--role", args.reader, "--probe", str(args.seconds)])
    return {"benchmark": "state_cost", "reader": args.reader, "nodes": 0 if args.idle else args.nodes, **cpu, **probed}


async def _cpu(args: argparse.Namespace, command: list[str], server: int) -> dict[str, Any]:
    windows: list[float] = []
    stores: list[float] = []
    async with running(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL) as reader:
        if reader.stdout is None:
            raise RuntimeError("no pipe")
        await reader.stdout.readline()
        await asyncio.sleep(3)
        for _ in range(5):
            before, of_store, at = cpu_seconds(reader.pid), cpu_seconds(server), time.monotonic()
            await asyncio.sleep(args.seconds / 5)
            took = time.monotonic() - at
            windows.append((cpu_seconds(reader.pid) - before) / took * 100)
            stores.append((cpu_seconds(server) - of_store) / took * 100)
        rss = memory_kib(reader.pid)
    return {
        "cpu_percent": round(statistics.median(windows), 2),
        "cpu_percent_range": [round(min(windows), 2), round(max(windows), 2)],
        "store_cpu_percent": round(statistics.median(stores), 1),
        "rss_mb": round(rss / 1024, 1),
    }


async def _probe(command: list[str]) -> dict[str, Any]:
    async with running(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL) as reader:
        if reader.stdout is None:
            raise RuntimeError("no pipe")
        await reader.stdout.readline()
        found: dict[str, Any] = json.loads(await reader.stdout.readline())
        return found


async def read(args: argparse.Namespace) -> None:
    if args.role == "snapshot":
        await _read_snapshot(args)
    else:
        await _read_routing(args)


async def _read_snapshot(args: argparse.Namespace) -> None:
    async with await connect(StoreSettings(url=args.store)) as store, Watcher(store) as watcher:
        await watcher.synced(60)
        calm_collector()  # as the control process does

        def figure() -> int | None:
            got = watcher.snapshot.reports.get(f"node-{PROBED:04}")
            sample = None if got is None else got.report.replicas[0].sample
            return None if sample is None else sample.requests_waiting

        await _until_told(args, figure)


async def _read_routing(args: argparse.Namespace) -> None:
    settings = ProxySettings(store=StoreSettings(url=args.store), require_auth=False, request_log=False)
    worker = Worker(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(worker.serve([listener]))
    while not worker.plane.table.known:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.01)

    def figure() -> int | None:
        routes = worker.plane.table.models.get(model_of(PROBED, 0, args.replicas))
        route = None if routes is None else routes.route(f"{model_of(PROBED, 0, args.replicas)}-n{PROBED}x0")
        return None if route is None else route.waiting

    await _until_told(args, figure)
    worker.server.stop()
    await task


async def _until_told(args: argparse.Namespace, figure: Any) -> None:
    print("ready", flush=True)
    if args.probe is None:
        await asyncio.Event().wait()
        return
    await asyncio.sleep(3)
    loop = asyncio.get_running_loop()
    late: list[float] = []
    held: list[float] = []
    ages: list[float] = []
    known = figure()
    end = loop.time() + args.probe
    while loop.time() < end:
        due, used = loop.time() + 0.001, time.thread_time()
        await asyncio.sleep(0.001)
        held.append((time.thread_time() - used) * 1000)
        late.append((loop.time() - due) * 1000)
        if (now := figure()) != known and now is not None:
            known = now
            ages.append((time.monotonic() * 1000 - now) % WRAP)
    late.sort()
    ages.sort()
    found: dict[str, Any] = {
        "stall_ms_p99": round(late[int(len(late) * 0.99)], 2),
        "stall_ms_p999": round(late[int(len(late) * 0.999)], 2),
        "stall_ms_max": round(late[-1], 2),
        "held_ms_max": round(max(held), 2),
    }
    if ages:
        found |= {"figure_age_ms_p50": round(statistics.median(ages)), "figure_age_ms_max": round(ages[-1])}
    print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--reader", choices=("routing", "snapshot"), default="routing")
    parser.add_argument("--role", choices=("measure", "writer", "routing", "snapshot"), default="measure")
    parser.add_argument("--store")
    parser.add_argument("--probe", type=float)
    args = parser.parse_args()
    if args.role == "writer":
        asyncio.run(write_for_ever(args))
        return
    if args.role != "measure":
        configure_logging("warning")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(read(args))
        return
    load = os.getloadavg()[0]
    found = asyncio.run(measure(args)) | {"load": round(load, 1)}
    print(
        f"{found['reader']}, {found['nodes']} nodes: {found['cpu_percent']} % of a core {found['cpu_percent_range']}, "
        f"{found['rss_mb']} MB; a timer is late by {found['stall_ms_p99']} ms (p99), {found['stall_ms_max']} ms at most, "
        f"of which ours {found['held_ms_max']} ms; "
        f"a figure is {found.get('figure_age_ms_p50')} ms old when routing sees it, {found.get('figure_age_ms_max')} at most"
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
