"""Ten times more than the engines can serve (GOALS R15): goodput, first tokens of those let in, refusals, memory.

    python benchmarks/overload.py [--seconds 300] [--times 10] [--short]

Two simulated engines with eight slots each stand behind a real worker. Peak is what they serve in a closed loop that
keeps them just full. Then requests come at `times` that rate, open loop, in the gaps of a Poisson process, and nobody
obeys a Retry-After: that is the worst client there is. Prints one readable line and one of JSON.

A refusal as the load sees it holds three things: the proxy's work, the load's own, and the time for which the machine let
neither run. So beside the load a *probe*, a process that does nothing else, asks on one connection and reads the kernel's
books (`/proc/PID/schedstat`) around each refusal: what the worker computed, how long it was ready and did not run, how long
the probe itself did not. `refusal_probe_own` is what is left when both waits for a core are taken off.
"""

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.stage import Stage, chat, client, quantile, request, simulated_engine, stage
from nebula_core.records.deployment import Limits
from nebula_core.runtime.http import Failure, Headers

SLOTS = 8
TOKENS = 40


class Outcome:
    """One request of the load."""

    __slots__ = ("_done", "ended", "failed", "first", "retry_after", "sent", "status", "whole")

    def __init__(self, done: Any) -> None:
        self._done = done
        self.sent = time.monotonic()
        self.status = 0
        self.first: float | None = None
        self.ended: float | None = None
        self.retry_after: int | None = None
        self.whole = False
        self.failed: str | None = None

    def response_started(self, status: int, headers: Headers) -> None:
        self.status = status
        for name, value in headers:
            if name == b"retry-after":
                self.retry_after = int(value)

    def response_body(self, body: bytes, *, ended: bool) -> None:
        if self.first is None and body:
            self.first = time.monotonic()
        if b"[DONE]" in body:
            self.whole = True
        if ended:
            self.ended = time.monotonic()
            self._done(self)

    def response_failed(self, failure: Failure) -> None:
        self.failed = f"{failure.kind}: {failure.detail}"
        self.ended = time.monotonic()
        self._done(self)


class Load:
    def __init__(self, made: Stage) -> None:
        self._stage = made
        self._client = client()
        self._wire = request(chat(tokens=TOKENS), made.token, made.port)
        self.outcomes: list[Outcome] = []
        self.open = 0
        self._empty = asyncio.Event()

    def send(self, then: Any = None) -> None:
        self.open += 1

        def done(outcome: Outcome) -> None:
            self.open -= 1
            self.outcomes.append(outcome)
            if then is not None:
                then()
            if not self.open:
                self._empty.set()

        self._client.request(self._stage.address, self._wire, Outcome(done))

    async def closed(self, concurrency: int, seconds: float) -> list[Outcome]:
        """So many at once, each followed by the next."""
        self.outcomes = []
        until = time.monotonic() + seconds

        def again() -> None:
            if time.monotonic() < until:
                self.send(again)

        for _ in range(concurrency):
            self.send(again)
        await self._drain()
        return self.outcomes

    async def offered(
        self, rate: float, seconds: float, dice: random.Random, rss: list[tuple[float, int]]
    ) -> list[Outcome]:
        """So many a second, whatever becomes of them."""
        self.outcomes = []
        began = due = time.monotonic()
        next_look = began
        while due < began + seconds:
            now = time.monotonic()
            if now >= next_look:
                rss.append((now - began, self._stage.rss_bytes()))
                next_look += 1.0
            while due <= now:
                self.send()
                due += dice.expovariate(rate)
            await asyncio.sleep(max(0.0, min(due, next_look) - time.monotonic()))
        await self._drain()
        return self.outcomes

    async def _drain(self) -> None:
        if self.open:
            self._empty.clear()
            await asyncio.wait_for(self._empty.wait(), 120)

    async def aclose(self) -> None:
        await self._client.aclose()


def served_per_second(outcomes: list[Outcome], after: float, until: float) -> float:
    return sum(1 for one in outcomes if one.whole and one.ended is not None and after <= one.ended < until) / (
        until - after
    )


def first_tokens(outcomes: list[Outcome], q: float) -> float | None:
    return quantile([one.first - one.sent for one in outcomes if one.whole and one.first is not None], q)


def refusals_inside(made: Stage) -> list[float]:
    """Seconds from a whole request to its refusal by the worker's own log: without this tool's part and the kernel's."""
    with made.log.open("rb") as lines:
        return [json.loads(line)["duration_seconds"] for line in lines if b'"status":429' in line]


class Probed(NamedTuple):
    """One refusal as the probe saw it; seconds."""

    took: float
    #: The worker computed, for this request and for others.
    computed: float
    #: The worker was ready to run and had no core; the probe likewise.
    worker_waited: float
    probe_waited: float

    @property
    def own(self) -> float:
        """What the proxy answers for."""
        return max(0.0, self.took - self.worker_waited - self.probe_waited)


def _books(pid: int | str) -> tuple[float, float]:
    """Seconds on a core and seconds ready without one, of a process's first thread."""
    ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


def probe(pid: int, port: int, token: str, seconds: float) -> None:
    """In a process of its own: asks every 20 ms, prints what it saw of each refusal."""
    wire = request(chat(tokens=1), token, port)
    end = time.monotonic() + seconds
    seen: list[Probed] = []
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < end:
            time.sleep(0.02)
            (computed, worker_waited), (_, probe_waited) = _books(pid), _books("self")
            began = time.monotonic()
            raw.sendall(wire)
            answer = raw.recv(65536)
            took = time.monotonic() - began
            after, own = _books(pid), _books("self")
            if answer.startswith(b"HTTP/1.1 429 "):
                seen.append(Probed(took, after[0] - computed, after[1] - worker_waited, own[1] - probe_waited))
            while answer.startswith(b"HTTP/1.1 200 ") and not answer.endswith(b"\r\n0\r\n\r\n"):
                answer += raw.recv(65536)
    print(json.dumps(seen))


def slope(points: list[tuple[float, int]]) -> float:
    """Bytes per second, least squares over the second half: what is warm stays."""
    half = points[len(points) // 2 :]
    mean_x = sum(x for x, _ in half) / len(half)
    mean_y = sum(y for _, y in half) / len(half)
    under = sum((x - mean_x) ** 2 for x, _ in half)
    return sum((x - mean_x) * (y - mean_y) for x, y in half) / under if under else 0.0


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    dice = random.Random(1)
    arguments = ("--preset", args.preset, "--max-num-seqs", str(SLOTS))
    async with simulated_engine(*arguments) as one, simulated_engine(*arguments) as two:
        limits = Limits(waiting=args.waiting)
        settings = {"waiting__seconds": args.wait, "drain_seconds": 0, "workers": args.workers}
        async with stage([one, two], limits=limits, **settings) as made:
            load = Load(made)
            quiet = await load.closed(4, args.warm)
            began = time.monotonic()
            peak_outcomes = await load.closed(2 * (SLOTS + 2), args.peak)
            peak = served_per_second(peak_outcomes, began + 1, began + args.peak)
            rss: list[tuple[float, int]] = []
            began = time.monotonic()
            aside = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, "--probe", str(made.worker.pid), str(made.port), made.token),
                *("--seconds", str(args.seconds - 1)),
                stdout=subprocess.PIPE,
            )
            outcomes = await load.offered(peak * args.times, args.seconds, dice, rss)
            said, _ = await asyncio.wait_for(aside.communicate(), 60)
            probed = [Probed(*one) for one in json.loads(said)]
            goodput = served_per_second(outcomes, began + 2, began + args.seconds)
            # And whether it is itself again afterwards.
            after = await load.closed(4, min(5.0, args.warm))
            admission = {
                f"{decision}": await made.figure("nebula_proxy_admission_total", decision=decision)
                for decision in ("admit", "wait", "reject")
            }
            inflight = await made.figure("nebula_proxy_inflight")
            inside = refusals_inside(made)
            await load.aclose()
    refused = [item for item in outcomes if item.status == 429]
    expired = [item for item in outcomes if item.status == 503]
    broken = [item for item in outcomes if item.failed or (item.status == 200 and not item.whole)]
    latencies = [item.ended - item.sent for item in refused if item.ended is not None]
    return {
        "benchmark": "overload",
        "seconds": args.seconds,
        "times": args.times,
        "workers": args.workers,
        "offered": len(outcomes),
        "peak_per_second": round(peak, 2),
        "goodput_per_second": round(goodput, 2),
        "goodput_of_peak": round(goodput / peak, 3),
        "ttft_p99_unloaded_ms": _ms(first_tokens(quiet, 0.99)),
        "ttft_p99_at_peak_ms": _ms(first_tokens(peak_outcomes, 0.99)),
        "ttft_p50_overload_ms": _ms(first_tokens(outcomes, 0.5)),
        "ttft_p99_overload_ms": _ms(first_tokens(outcomes, 0.99)),
        "ttft_p99_after_ms": _ms(first_tokens(after, 0.99)),
        "refused": len(refused),
        "refusal_p50_ms": _ms(quantile(latencies, 0.5)),
        "refusal_p99_ms": _ms(quantile(latencies, 0.99)),
        "refusal_max_ms": _ms(max(latencies, default=0.0)),
        "refusal_inside_p99_ms": _ms(quantile(inside, 0.99)),
        "refusal_inside_max_ms": _ms(max(inside, default=0.0)),
        "probed": len(probed),
        "refusal_probe_p99_ms": _ms(quantile([one.took for one in probed], 0.99)),
        "refusal_probe_max_ms": _ms(max((one.took for one in probed), default=0.0)),
        "refusal_probe_own_p99_ms": _ms(quantile([one.own for one in probed], 0.99)),
        "refusal_probe_own_max_ms": _ms(max((one.own for one in probed), default=0.0)),
        "slowest_probes_ms": [
            {name: _ms(value) for name, value in one._asdict().items()} for one in sorted(probed, reverse=True)[:3]
        ],
        "without_retry_after": sum(item.retry_after is None for item in [*refused, *expired]),
        "expired": len(expired),
        "broken": len(broken),
        "rss_first_mb": round(rss[0][1] / 1e6, 1),
        "rss_last_mb": round(rss[-1][1] / 1e6, 1),
        "rss_slope_kb_per_minute": round(slope(rss) * 60 / 1e3, 1),
        "inflight_after": inflight,
        "admission": admission,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="how long the overload lasts")
    parser.add_argument("--times", type=float, default=10.0, help="of the peak")
    parser.add_argument("--warm", type=float, default=10.0)
    parser.add_argument("--peak", type=float, default=15.0)
    parser.add_argument("--wait", type=float, default=10.0, help="the proxy's waiting.seconds; 0 has no room")
    parser.add_argument("--waiting", type=int, default=4, help="the deployment's limits.waiting")
    parser.add_argument("--workers", type=int, default=1, help="data workers on the port")
    parser.add_argument("--preset", default="h100-8b")
    parser.add_argument("--short", action="store_true", help="20 s of overload")
    parser.add_argument("--probe", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        probe(int(args.probe[0]), int(args.probe[1]), args.probe[2], args.seconds)
        return
    if args.short:
        args.seconds, args.warm, args.peak = 20.0, 4.0, 6.0
    figures = asyncio.run(measure(args))
    print(
        f"goodput {figures['goodput_of_peak']:.0%} of {figures['peak_per_second']}/s at {args.times:g} x for {args.seconds:g} s;"
        f" first token p99 {figures['ttft_p99_overload_ms']} ms (unloaded {figures['ttft_p99_unloaded_ms']});"
        f" {figures['refused']} refused, p99 {figures['refusal_p99_ms']} ms (the proxy's own {figures['refusal_probe_own_p99_ms']}),"
        f" {figures['without_retry_after']} without Retry-After;"
        f" memory {figures['rss_first_mb']} to {figures['rss_last_mb']} MB; {figures['broken']} broken"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
