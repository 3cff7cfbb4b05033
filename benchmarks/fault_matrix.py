"""The rows of the fault matrix that engines and the store can cause, under traffic, many times over (GOALS R1, R4, R16).

    python -m benchmarks.fault_matrix [--seeds 20] [--rows crash,hang,…] [--clients 24]

Three simulated engines, a store and a worker, all real processes; clients stream and ask plainly all the time. Each row does one
thing to one engine, or to the store, at a random moment. Counted is, per row: requests that had not started (no byte of
an answer) and failed all the same (`lost`: the goal is 0), streams that had started and were told of a break, ends that
are neither (`bad`), attempts per request, and how long those that met the fault waited: the longest silence of a
stream that was on the engine, or the whole wait of what had not begun there (`waited`); of the streams that came
behind the fault `later_max` is the longest without a byte. With `--clients 1` there is one request at a time: the engine that hangs has nothing
else.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import psutil
import uvloop

from benchmarks.broken_streams import TOLD, WHOLE, Answer, plain
from benchmarks.stage import MODEL, Stage, quantile, stage, until_answers
from nebula_core.records.deployment import Limits
from nebula_core.runtime.processes import free_port

ENGINES = 3
TOKENS = 60
#: How long an engine hangs, when nobody ends it: longer than it may take to be found.
HANG_SECONDS = 12.0
#: An agent tells how fast counters go up from the second scrape of a start on; one that hangs before that is given 15 s.
COUNTED_SECONDS = 2.5
#: Traffic before a fault and after what it did is over.
BEFORE, AFTER = 0.6, 1.0


class Engine:
    """One simulated engine on a port of its own, started again on the same."""

    def __init__(self, *flags: str) -> None:
        self.port = free_port()
        self._flags = flags
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        command = [sys.executable, "-m", "nebula_agent.simulator", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--served-model-name", MODEL, "--no-access-log", "--shutdown-timeout", "5", *self._flags]
        command += ["--death-exit-seconds", "1"]
        quiet = asyncio.subprocess.DEVNULL
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        await until_answers(self.port, "/health")

    @property
    def pid(self) -> int:
        assert self._process is not None  # noqa: S101 - it was started
        return self._process.pid

    @property
    def core(self) -> int:
        return psutil.Process(self.pid).children()[0].pid

    def signal_all(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def stop(self) -> None:
        self.signal_all(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()


@dataclass
class Outcome:
    """What one client saw of one request. Monotonic seconds."""

    stream: bool
    began: float
    how: str = ""
    replica: str = ""
    #: When bytes came.
    arrivals: list[float] = field(default_factory=list)

    def waited(self, fault: float) -> float | None:
        """The longest silence after a fault at that time, if it was open then."""
        if not self.arrivals or not self.began <= fault <= self.arrivals[-1]:
            return None
        after = [fault, *(at for at in self.arrivals if at > fault)]
        return max(late - early for early, late in itertools.pairwise(after))


class Watched(Answer):
    """Notes when something came."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals: list[float] = []

    def data_received(self, data: bytes) -> None:
        self.arrivals.append(time.monotonic())
        super().data_received(data)


def judged_end(raw: bytes, *, stream: bool) -> str:
    """`whole`, `told`, `lost …` before a byte of an answer, or `bad …`, by the end alone."""
    head, _, body = raw.partition(b"\r\n\r\n")
    if head[9:12] != b"200":
        return f"lost {head[9:12].decode()} {body[:200].decode()}" if head else "lost: no answer"
    if not stream:
        return WHOLE if body.endswith(b"}") else f"bad: cut {body[-200:]!r}"
    events = plain(body)
    if events is None:
        return f"bad: cut {body[-200:]!r}"
    if events.endswith(b"data: [DONE]\n\n"):
        return WHOLE
    if b"event: error\n" in events:
        return f"{TOLD} {events.rpartition(b'data: ')[2].decode()}"
    return f"bad: silent end {events[-200:]!r}"


def judge(raw: bytes, *, stream: bool) -> str:
    """The same, of an answer that must have `TOKENS` tokens."""
    end = judged_end(raw, stream=stream)
    if end == WHOLE and b'"completion_tokens":%d' % TOKENS not in raw:
        return f"bad: too short {raw[-400:]!r}"
    return end


class Traffic:
    """Clients that ask all the time."""

    def __init__(self, made: Stage, dice: random.Random) -> None:
        self._made = made
        self._dice = dice
        self.seen: list[Outcome] = []
        self.over = False
        self._number = 0

    def _wire(self, *, stream: bool) -> bytes:
        self._number += 1
        content = f"{self._dice.random()} {self._number} tell me of the sea"
        body: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
        body |= {"max_tokens": TOKENS, "ignore_eos": True, "temperature": 0, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        raw = json.dumps(body).encode()
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: n\r\nauthorization: Bearer {self._made.token}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        ).encode() + raw

    async def client(self) -> None:
        loop = asyncio.get_running_loop()
        link: Watched | None = None
        while not self.over:
            if link is None or not link.open:
                _, link = await loop.create_connection(Watched, *self._made.address)
            stream = self._dice.random() < 0.7
            link.arrivals = []
            outcome = Outcome(stream, time.monotonic())
            try:
                raw = await asyncio.wait_for(link.ask(self._wire(stream=stream)), 60)
                outcome.how = judge(raw, stream=stream)
                at = raw.find(b"x-nebula-replica: ")
                outcome.replica = raw[at + 18 : raw.find(b"\r\n", at)].decode() if at >= 0 else ""
            except TimeoutError:
                outcome.how = "bad: no end within 60 s"
                link.open = False
            outcome.arrivals = link.arrivals
            self.seen.append(outcome)
        if link is not None and link.transport is not None:
            link.transport.close()


class Ground:
    """What a row works with."""

    def __init__(self, made: Stage, engines: list[Engine], dice: random.Random) -> None:
        self.made = made
        self.engines = engines
        self.dice = dice
        self.victim = dice.randrange(ENGINES)
        #: When the fault struck, monotonic seconds.
        self.struck = 0.0

    @property
    def engine(self) -> Engine:
        return self.engines[self.victim]

    def strike(self) -> None:
        self.struck = time.monotonic()

    async def back(self) -> None:
        """The engine runs again, as another start of it."""
        await self.engine.stop()
        await self.engine.start()
        await self.made.started_anew(self.victim)


async def crash(ground: Ground) -> None:
    ground.strike()
    ground.engine.signal_all(signal.SIGKILL)
    await asyncio.sleep(AFTER)


async def core_dies(ground: Ground) -> None:
    """vLLM's HTTP server outlives its engine process and answers 500 until it ends."""
    ground.strike()
    os.kill(ground.engine.core, signal.SIGKILL)
    await asyncio.sleep(AFTER + 1.0)


async def hang(ground: Ground) -> None:
    """Nothing moves, the port accepts."""
    await asyncio.sleep(COUNTED_SECONDS)
    ground.strike()
    ground.engine.signal_all(signal.SIGSTOP)
    await asyncio.sleep(HANG_SECONDS)


async def freeze(ground: Ground) -> None:
    """The engine process stands still behind a server that says it is well."""
    await asyncio.sleep(COUNTED_SECONDS)
    ground.strike()
    os.kill(ground.engine.core, signal.SIGSTOP)
    await asyncio.sleep(HANG_SECONDS)


async def drain(ground: Ground) -> None:
    """SIGTERM that nobody announced: what runs goes on, what comes is turned away by the engine."""
    ground.strike()
    os.kill(ground.engine.pid, signal.SIGTERM)
    await asyncio.sleep(AFTER)


async def all_but_one(ground: Ground) -> None:
    ground.strike()
    for number, engine in enumerate(ground.engines):
        if number != ground.victim:
            engine.signal_all(signal.SIGKILL)
    await asyncio.sleep(AFTER)
    for number, engine in enumerate(ground.engines):
        if number != ground.victim:
            await engine.stop()
            await engine.start()
            await ground.made.started_anew(number)


async def store_killed(ground: Ground) -> None:
    ground.strike()
    os.kill(ground.made.store_pid, signal.SIGKILL)
    await asyncio.sleep(AFTER + 1.0)
    await ground.made.start_store()
    await asyncio.sleep(0.5)


async def store_silent(ground: Ground) -> None:
    """As behind a partition: nothing is refused, nothing is answered."""
    ground.strike()
    os.kill(ground.made.store_pid, signal.SIGSTOP)
    await asyncio.sleep(AFTER + 2.0)
    os.kill(ground.made.store_pid, signal.SIGCONT)
    await asyncio.sleep(0.5)


async def store_full(ground: Ground) -> None:
    ground.strike()
    with contextlib.suppress(Exception):  # what it answers is not of interest, that requests go on is
        await ground.made.configure_store("maxmemory", "1mb")
    await asyncio.sleep(AFTER)
    await ground.made.configure_store("maxmemory", "0")


#: Row of the matrix (reliability 3), what is done, whether the victim must be started again.
ROWS: dict[str, tuple[int, Callable[[Ground], Awaitable[None]], bool]] = {
    "crash": (2, crash, True),
    "core_dies": (2, core_dies, True),
    "all_but_one": (2, all_but_one, False),
    "hang": (3, hang, True),
    "freeze": (3, freeze, True),
    "drain": (37, drain, True),
    "store_killed": (12, store_killed, False),
    "store_silent": (13, store_silent, False),
    "store_full": (15, store_full, False),
}


async def play(row: str, made: Stage, engines: list[Engine], dice: random.Random, clients: int) -> dict[str, object]:
    _, act, restart = ROWS[row]
    ground = Ground(made, engines, dice)
    traffic = Traffic(made, dice)
    before = await _retries(made)
    running = [asyncio.create_task(traffic.client()) for _ in range(clients)]
    await asyncio.sleep(BEFORE + dice.random() * 0.3)
    await act(ground)
    if restart:
        await ground.back()
    await asyncio.sleep(0.3)
    traffic.over = True
    await asyncio.gather(*running)
    victim = f"{MODEL}-r{ground.victim}"
    met = [
        waited
        for one in traffic.seen
        if one.stream
        and one.how.startswith((WHOLE, TOLD))
        and ((one.replica == victim) is (row != "all_but_one") or one.arrivals[0] > ground.struck)
        and (waited := one.waited(ground.struck)) is not None
    ]
    # Of streams: the first byte of a plain answer comes with its last token.
    later = [
        one.arrivals[0] - one.began for one in traffic.seen if one.stream and one.arrivals and one.began > ground.struck
    ]
    retries = await _retries(made) - before
    return {
        "seen": traffic.seen,
        "waited": met,
        "later": max(later, default=0.0),
        "retries": retries,
        "struck": ground.struck,
    }


async def _retries(made: Stage) -> float:
    """Second attempts so far, resumes not counted: what they ask for was not given yet."""
    total = await made.figure("nebula_proxy_retries_total")
    for outcome in ("served", "failed", "resumed", "resume_failed"):
        total -= await made.figure("nebula_proxy_retries_total", outcome=outcome)
    return total


async def measure(args: argparse.Namespace) -> dict[str, object]:
    rows = args.rows.split(",") if args.rows else list(ROWS)
    engines = [Engine() for _ in range(ENGINES)]
    found: dict[str, list[dict[str, object]]] = defaultdict(list)
    began = time.monotonic()
    try:
        await asyncio.gather(*(engine.start() for engine in engines))
        async with stage([engine.port for engine in engines], limits=Limits(inflight=1000), request_log=False) as made:
            for seed in range(args.seeds):
                dice = random.Random(seed)
                for row in rows:
                    found[row].append(await play(row, made, engines, dice, args.clients))
            inflight = await made.figure("nebula_proxy_inflight")
            hangs = found_hanging(made)
    finally:
        for engine in engines:
            await engine.stop()
    return {
        "benchmark": "fault_matrix",
        "seeds": args.seeds,
        "rows": {row: summed(runs) for row, runs in found.items()},
        "inflight_at_the_end": inflight,
        "found_hanging": hangs,
        "seconds": round(time.monotonic() - began),
        "load_average": os.getloadavg()[0],
    }


def found_hanging(made: Stage) -> dict[str, list[float]]:
    """By verdict, for how many seconds the replicas had been silent that the worker found hanging."""
    found: dict[str, list[float]] = defaultdict(list)
    with made.log.open("rb") as lines:
        for line in lines:
            if b'"engine_hangs"' in line:
                said = json.loads(line)
                found[said["verdict"]].append(round(said["silent_seconds"], 2))
    return {verdict: sorted(seconds) for verdict, seconds in found.items()}


def summed(runs: list[dict[str, object]]) -> dict[str, object]:
    seen: list[Outcome] = [one for run in runs for one in run["seen"]]  # type: ignore[attr-defined]
    waited: list[float] = [each for run in runs for each in run["waited"]]  # type: ignore[attr-defined]
    hows = Counter(one.how.split(" ")[0] for one in seen)
    retries = sum(run["retries"] for run in runs)  # type: ignore[misc]
    return {
        "requests": len(seen),
        "lost": hows["lost"] + hows["lost:"],
        "told": hows[TOLD],
        "bad": sum(count for how, count in hows.items() if how.startswith("bad")),
        "examples": [one.how for one in seen if one.how != WHOLE][:5],
        "attempts_per_request": round(1 + retries / max(1, len(seen)), 4),
        "most_attempts_in_a_run": round(
            max(1 + run["retries"] / max(1, len(run["seen"])) for run in runs),  # type: ignore[operator,arg-type]
            4,
        ),
        "met": len(waited),
        "waited_p50": _rounded(quantile(waited, 0.5)),
        "waited_p99": _rounded(quantile(waited, 0.99)),
        "waited_max": _rounded(max(waited, default=None)),
        "later_max": _rounded(max(run["later"] for run in runs)),  # type: ignore[type-var]
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rows", default="", help=", ".join(ROWS))
    parser.add_argument("--clients", type=int, default=24)
    return parser.parse_args(given)


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure(arguments(*sys.argv[1:])))
    rows: dict[str, dict[str, object]] = found["rows"]  # type: ignore[assignment]
    for name, row in rows.items():
        figures = ", ".join(f"{key} {value}" for key, value in row.items() if key != "examples")
        print(f"{name}: {figures} {row['examples'] or ''}")
    print(f"found hanging after {found['found_hanging']} s")
    print(json.dumps(found))
    sys.exit(1 if any(row["lost"] or row["bad"] for row in rows.values()) else 0)


if __name__ == "__main__":
    main()
