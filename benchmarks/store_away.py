"""Inference while the store is gone for long and comes back empty (GOALS R9).

    python benchmarks/store_away.py [--seconds 600] [--streams 50]

A worker under load; its store is killed, stays away for so long, comes back with what it held, is killed again and comes back
empty. Counted are streams that did not end in `[DONE]`.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import psutil
from restart_soak import client, cluster, engine
from worker_memory import _serving

from nebula_core.runtime.processes import free_port
from nebula_core.store.embedded import find_store_program, store_command


async def measure(args: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as name:
        folder = Path(name)
        server, engine_port = await engine(pause=0.2, tokens=5)
        async with cluster(folder, engine_port) as (store, token):
            port = free_port()
            env = {**os.environ, "NEBULA_PROXY_STORE__URL": store, "NEBULA_PROXY_PORT": str(port)}
            worker = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "nebula_proxy", "run", "--role", "data", env=env,
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            ends: Counter[str] = Counter()
            over = asyncio.Event()
            second: asyncio.subprocess.Process | None = None
            try:
                await _serving(port, token)
                clients = [asyncio.create_task(client(port, token, ends, over)) for _ in range(args.streams)]
                await asyncio.sleep(3)
                store_port = int(store.rpartition(":")[2].partition("/")[0])
                (first,) = (one for one in psutil.Process().children() if one.pid != worker.pid)
                first.kill()
                await asyncio.sleep(args.seconds)
                command = [str(word) for word in store_command(find_store_program(), folder, port=store_port)]
                second = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
                await asyncio.sleep(10)
                second.kill()
                await second.wait()
                shutil.rmtree(folder / "appendonlydir")
                second = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
                await asyncio.sleep(15)
                over.set()
                await asyncio.gather(*clients)
            finally:
                for process in (worker, second):
                    if process is not None:
                        process.kill()
                        await process.wait()
                server.close()
    bad = {how: count for how, count in ends.items() if how != "whole"}
    return {"benchmark": "store_away", "seconds": args.seconds, "streams": sum(ends.values()), "failed": bad}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--streams", type=int, default=50)
    found = asyncio.run(measure(parser.parse_args()))
    print(
        f"store away for {found['seconds']} s, back, and back empty: {found['streams']} streams, failed {found['failed'] or 0}"
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
