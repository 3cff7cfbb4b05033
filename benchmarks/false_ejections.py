"""Busy engines for a long time, and nothing wrong with any (GOALS R4): whoever is put out was put out falsely.

    python -m benchmarks.false_ejections [--minutes 10] [--clients 24]

Two simulated engines at the pace of an 8B model on an H100, eight requests at once each and a cache that is nearly full: the
others wait inside the engine without a byte. Prompts are long and short, answers streamed and plain.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter

import uvloop

from benchmarks.broken_streams import WHOLE, Answer
from benchmarks.fault_matrix import judged_end
from benchmarks.stage import MODEL, Stage, request, simulated_engine, stage
from nebula_core.records.deployment import Limits

ENGINE = ("--preset", "h100-8b", "--max-num-seqs", "8", "--max-model-len", "16384", "--num-gpu-blocks", "1200")
#: What the log says when a replica is put out, or found hanging.
WORDS = ("endpoint_ejected", "engine_hangs")


async def ask(made: Stage, dice: random.Random, over: asyncio.Event, ends: Counter[str]) -> None:
    loop = asyncio.get_running_loop()
    link: Answer | None = None
    while not over.is_set():
        if link is None or not link.open:
            _, link = await loop.create_connection(Answer, *made.address)
        stream = dice.random() < 0.8
        words = dice.choice([10, 100, 1000, 6000])
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"{dice.random()} " + "word " * words}],
            "max_tokens": dice.randrange(50, 400),
            "ignore_eos": True,
            "stream": stream,
        }
        raw = await asyncio.wait_for(link.ask(request(json.dumps(body).encode(), made.token, made.port)), 300)
        ends[judged_end(raw, stream=stream)] += 1
    if link is not None and link.transport is not None:
        link.transport.close()


async def measure(args: argparse.Namespace) -> dict[str, object]:
    async with (
        simulated_engine(*ENGINE) as one,
        simulated_engine(*ENGINE) as two,
        stage([one, two], limits=Limits(inflight=1000, waiting=1000), request_log=False) as made,
    ):
        over = asyncio.Event()
        ends: Counter[str] = Counter()
        dice = random.Random(4)
        clients = [asyncio.create_task(ask(made, dice, over, ends)) for _ in range(args.clients)]
        await asyncio.sleep(args.minutes * 60)
        over.set()
        await asyncio.gather(*clients)
        log = made.log.read_text(encoding="utf-8")
        return {
            "benchmark": "false_ejections",
            "minutes": args.minutes,
            "requests": sum(ends.values()),
            "ends": dict(ends),
            "ejections": {word: log.count(f'"{word}"') for word in WORDS},
            "load_average": os.getloadavg()[0],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=24)
    began = time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure(parser.parse_args()))
    ejections: dict[str, int] = found["ejections"]  # type: ignore[assignment]
    print(
        f"{found['requests']} requests in {time.monotonic() - began:.0f} s to busy engines: {found['ends']}; "
        f"put out falsely {ejections}"
    )
    print(json.dumps(found))
    sys.exit(1 if any(ejections.values()) or set(found["ends"]) != {WHOLE} else 0)  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
