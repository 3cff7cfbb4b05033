"""What an agent costs its node (GOALS S11): CPU and memory with eight GPUs and eight engines, looked at once a second.

    python benchmarks/agent_cost.py [--engines 8] [--seconds 60] [--rounds 3] [--traffic 0] [--containers] [--imports]
                                    [--json FILE]

A real agent process on a real store; its engines are simulated ones, each a process with vLLM's `/metrics` (560 series),
its GPUs simulated too unless `--nvml` loads the stub of NVIDIA's library. CPU is the agent's own, from
`/proc/PID/schedstat` (nanoseconds on a core, all threads), so other work on the machine costs accuracy and not the result;
memory is RSS and PSS, with compiled modules as an installation has them: an agent that must compile its imports itself
(installed by uv without --compile-bytecode, on a folder it may not write) holds 11 MB more. `--traffic N` keeps N requests running on each engine.
`--containers` (root) runs the engines as containers of a dockerd of this benchmark's own. `--imports` names the costliest imports.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.agent_restarts import docker  # noqa: E402 - found only now
from nebula_core.records.replica import Phase  # noqa: E402
from nebula_core.store.connection import connect  # noqa: E402
from tests.support.agent import Cluster, eventually  # noqa: E402
from tests.support.docker import SIMULATOR  # noqa: E402
from tests.support.nvml import StubNvml  # noqa: E402
from tests.support.store import StoreServer, programs  # noqa: E402

GOAL_RATIO, GOAL_MB = 0.015, 90.0
WARM_UP_SECONDS = 15.0


def cpu_seconds(pid: int) -> float:
    """Time on a core of all its threads, in seconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def memory_mb(pid: int) -> tuple[float, float]:
    """RSS and PSS (what it would cost alone: shared pages divided by their sharers), in MB of 10^6 bytes."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024 / 1e6
    return found["Rss"], found["Pss"]


def compiled(directory: Path) -> dict[str, str]:
    """An environment in which every module the agent imports is compiled already."""
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(directory / "compiled")}
    code = "import nebula_agent.agent, nebula_agent.cli, nebula_agent.adapters.nvml"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, **env})
    return env


def keep_busy(engines: list[tuple[int, str, str]], count: int) -> subprocess.Popen[bytes]:
    """A helper process that keeps `count` requests running on each engine (port, key, model), so that their figures move."""
    code = (
        "import asyncio, httpx, sys, json\n"
        "async def one(c, port, key, model):\n"
        "    while True:\n"
        "        await c.post(f'http://127.0.0.1:{port}/v1/completions', headers={'authorization': f'Bearer {key}'},"
        " json={'model': model, 'prompt': 'Hello ' * 50, 'max_tokens': 200})\n"
        "async def main():\n"
        "    async with httpx.AsyncClient(timeout=60, trust_env=False) as c:\n"
        "        await asyncio.gather(*(one(c, *e) for e in json.loads(sys.argv[1]) for _ in range(int(sys.argv[2]))))\n"
        "asyncio.run(main())\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, json.dumps(engines), str(count)], stderr=subprocess.DEVNULL)


async def measure(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    server = StoreServer(next(iter(programs().values())), directory / "store").start()
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        async with await connect(server.settings()) as store, contextlib.AsyncExitStack() as scene:
            cluster = Cluster(directory, store)
            env = compiled(directory) | (StubNvml(directory).env() if options.nvml else {})
            settings: dict[str, Any] = {} if options.nvml else {"gpus": f"simulated:{options.engines}"}
            if options.nvml:
                settings["gpus"] = "auto"
            if options.containers:
                settings |= scene.enter_context(docker(directory)).settings
            agent = cluster.agent("n1", env=env, **settings).start()
            try:
                node = await eventually(lambda: cluster.report("n1"), "a first report", 30)
                gpus = [gpu.gpu for gpu in node.gpus]
                for number in range(options.engines):
                    own = (gpus[number],) if number < len(gpus) else ()
                    spec: dict[str, Any] = {"args": {"preset": "h100-8b"}, "gpus": len(own)}
                    if options.containers:
                        spec |= {"runtime": "docker", "image": SIMULATOR}
                    await cluster.place(cluster.placement(f"chat-r{number + 1}", gpus=own, spec=spec))

                async def all_ready() -> bool:
                    report = await cluster.report("n1")
                    ready = [status for status in report.replicas if status.phase is Phase.READY] if report else []
                    return len(ready) == options.engines

                await eventually(all_ready, "all engines ready", 120)
                if options.traffic:
                    report = await eventually(lambda: cluster.report("n1"), "a report")
                    engines = [
                        (status.endpoint.port, cluster.key_of(status), status.model)
                        for status in report.replicas
                        if status.endpoint is not None
                    ]
                    helpers.append(keep_busy(engines, options.traffic))
                await asyncio.sleep(WARM_UP_SECONDS)
                ratios = []
                for _ in range(options.rounds):
                    began, before = time.monotonic(), cpu_seconds(agent.pid)
                    await asyncio.sleep(options.seconds)
                    ratios.append((cpu_seconds(agent.pid) - before) / (time.monotonic() - began))
                rss, pss = memory_mb(agent.pid)
            finally:
                for helper in helpers:
                    helper.kill()
                    helper.wait()
                cluster.close()
    finally:
        server.stop()
    return {
        "benchmark": "agent_cost",
        "engines": options.engines,
        "traffic": options.traffic,
        "containers": options.containers,
        "cpu_ratio": {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)},
        "rss_mb": rss,
        "pss_mb": pss,
        "load_average": os.getloadavg()[0],
        "goal": {"cpu_ratio": GOAL_RATIO, "rss_mb": GOAL_MB},
        "met": statistics.median(ratios) <= GOAL_RATIO and rss <= GOAL_MB,
    }


def costliest_imports(count: int = 15) -> list[tuple[str, float]]:
    """Modules of the agent by the memory their import adds, in MB, each with what it brings along."""
    code = (
        "import sys, builtins\n"
        "def rss():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096 / 1e6\n"
        "found, depth, real = {}, [], builtins.__import__\n"
        "def watched(name, *rest, **more):\n"
        "    if name in sys.modules: return real(name, *rest, **more)\n"
        "    before = rss()\n"
        "    module = real(name, *rest, **more)\n"
        "    found[name] = max(found.get(name, 0), rss() - before)\n"
        "    return module\n"
        "builtins.__import__ = watched\n"
        "import nebula_agent.agent, json\n"
        "print(json.dumps(sorted(found.items(), key=lambda e: -e[1])))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
    return [(name, size) for name, size in json.loads(said.stdout)][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--traffic", type=int, default=0)
    parser.add_argument("--nvml", action="store_true")
    parser.add_argument("--containers", action="store_true")
    parser.add_argument("--imports", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.imports:
        for name, size in costliest_imports():
            print(f"{size:7.1f} MB  {name}")
        return
    with tempfile.TemporaryDirectory(prefix="nebula-agent-cost-") as directory:
        found = asyncio.run(measure(options, Path(directory)))
    line = json.dumps(found)
    print(line)
    if options.json is not None:
        options.json.write_text(f"{line}\n")
    cpu = found["cpu_ratio"]
    print(
        f"{found['engines']} engines: {cpu['median']:.2%} of a core ({cpu['least']:.2%}–{cpu['greatest']:.2%}), "
        f"RSS {found['rss_mb']:.0f} MB (PSS {found['pss_mb']:.0f}), load average {found['load_average']:.1f}; "
        f"goal {GOAL_RATIO:.1%} and {GOAL_MB:.0f} MB: {'met' if found['met'] else 'NOT met'}"
    )


if __name__ == "__main__":
    main()
