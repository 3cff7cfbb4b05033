"""A process for tests: prints one JSON line per reading of NVML, each time it is sent a line."""

import asyncio
import json
import sys

from nebula_agent.adapters.nvml import Nvml
from nebula_core.runtime.clock import SystemClock
from nebula_core.runtime.logs import configure_logging


async def main() -> None:
    nvml = Nvml(SystemClock())
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        began = loop.time()
        reading = await nvml.read({})
        line = {
            "seconds": loop.time() - began,
            "driver": reading.driver_version,
            "buses": dict(reading.buses),
            "gpus": [gpu.model_dump() for gpu in reading.inventory],
            "samples": [sample.model_dump() for sample in reading.samples],
            "problems": [problem.model_dump() for problem in reading.problems],
        }
        print(json.dumps(line), flush=True)  # noqa: T201 - that is its work
    await nvml.aclose()


configure_logging()
asyncio.run(main())
