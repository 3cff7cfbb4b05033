"""A production trace replayed on simulated replicas with every strategy (GOALS S7), in virtual time.

    python benchmarks/routing_replay.py [--rate 0.9] [--replicas 8] [--workers 1] [--strategies a,b] [--seconds N]

The trace is Mooncake's conversations (`../shared/traces/mooncake_conversation.jsonl`: an hour, 12,031 requests of 12,000
tokens on average): times of arrival, lengths, and a hash for every 512 tokens of prompt. Prompts are written from the
hashes, so equal hashes are equal text. What decides is the proxy's own code, table, index and ledger, one set for each
of `--workers` (requests fall to them by chance; each hears of the others once a second). What is decided about is the
simulated engine's own scheduler and prefix cache (`nebula_agent.simulator`, preset h100-8b) in a discrete-event
simulation: exact, the same on every machine, a minute for all strategies. Figures of engines come once a second.

`--rate` is how fast the trace is played. At 0.9 round_robin just holds: its queues do not grow from the first quarter to
the last, from 0.95 on they do. Cache-hit tokens are the engines' own count; load is the mean number of open requests.
"""

import argparse
import heapq
import itertools
import json
import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from nebula_agent.simulator.scheduler import Limits, ScheduledRequest, Scheduler, Step
from nebula_agent.simulator.timing import PRESETS
from nebula_core.records.compact import ReplicaDelta
from nebula_core.records.deployment import Limits as ReplicaLimits
from nebula_core.records.endpoint import Endpoint, ModelView
from nebula_core.records.report import ProxyReport
from nebula_core.records.sample import EngineSample
from nebula_core.records.snapshot import ReceivedProxy
from nebula_core.wire.openai import Dialect, Facts, read_facts
from nebula_proxy.adapters.engine_keys import EngineKeys
from nebula_proxy.decisions.field import Weighed
from nebula_proxy.decisions.prompt import ENDS
from nebula_proxy.decisions.routing import Choice, choose
from nebula_proxy.decisions.strategies import BUILT_IN, Ask, Strategy
from nebula_proxy.traffic.ejections import Ejections
from nebula_proxy.traffic.ledger import Ledger, Ticket
from nebula_proxy.traffic.routing_table import RoutingTable

TRACE = Path(__file__).parent.parent.parent / "shared" / "traces" / "mooncake_conversation.jsonl"
BLOCK_TOKENS = 512
PRESET = PRESETS["h100-8b"]
#: No replica is ever full: the question is where requests go, not whether.
UNBOUNDED = ReplicaLimits(waiting=1_000_000, kv_cache_usage=1.0, inflight=1_000_000)


class Arrival(NamedTuple):
    at: float
    prompt_tokens: int
    output_tokens: int
    hashes: tuple[int, ...]

    def facts(self) -> Facts:
        """As a client would send it: four bytes of text a token."""
        text = "".join(f"{number:08x}" * 256 for number in self.hashes)[: self.prompt_tokens * 4]
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": self.output_tokens}
        facts = read_facts(json.dumps(body).encode())
        if not isinstance(facts, Facts):
            raise TypeError(facts)
        return facts


def read_trace(path: Path, rate: float, seconds: float) -> list[Arrival]:
    found = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        at = row["timestamp"] / 1000.0 / rate
        if at > seconds:
            break
        found.append(Arrival(at, row["input_length"], max(1, row["output_length"]), tuple(row["hash_ids"])))
    return found


class Engine:
    """One simulated engine: its scheduler, the step it is at, and its books."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(
            Limits(
                max_num_batched_tokens=PRESET.max_num_batched_tokens,
                max_num_seqs=PRESET.max_num_seqs,
                num_blocks=PRESET.num_blocks * PRESET.block_size // BLOCK_TOKENS,
                block_size=BLOCK_TOKENS,
            )
        )
        self.step: Step | None = None
        self.requests = 0
        self._open = 0
        self._area = 0.0
        self._since = 0.0

    def count(self, change: int, now: float) -> None:
        self._area += self._open * (now - self._since)
        self._since = now
        self._open += change

    def load(self, now: float) -> float:
        self.count(0, now)
        return self._area / now

    def begin(self) -> float | None:
        """Seconds of the next step; None when nothing can move."""
        step = self.scheduler.schedule()
        self.step = step if step.tokens else None
        return PRESET.step_seconds(step.decode_requests, step.prefill_tokens) if step.tokens else None


class Worker:
    """One proxy process: its table, its index, its ledger."""

    def __init__(self, name: str, replicas: list[str]) -> None:
        self.name = name
        self.ledger: Ledger[int] = Ledger()
        self.table = RoutingTable(EngineKeys(None), Ejections(), name, self.ledger.replicas)
        self.table.tells_prefixes = True
        endpoints = tuple(
            Endpoint(
                replica=replica, deployment="m", model="m", node=replica, host="127.0.0.1", port=9000, engine="simulated",
                engine_epoch="e", sealed_key=None, limits=UNBOUNDED, resume=False, strategy=None, sampled_at=0.0,
                sample=EngineSample(
                    requests_waiting=0, requests_running=0, kv_cache_usage=0.0,
                    kv_cache_tokens=PRESET.num_blocks * PRESET.block_size,
                ),
            )
            for replica in replicas
        )  # fmt: skip
        self.table.update({"m": ModelView("m", "m", endpoints, 0, len(replicas))})
        self._turn = 0
        self.strategies: Mapping[str, Strategy] = {**BUILT_IN, "sglang_cache_aware": CacheAware()}

    def route(self, number: int, facts: Facts, strategy: str, now: float) -> tuple[str, Ticket[int]]:
        """Picks and keeps the books, as `traffic.picking` does."""
        model = self.table.models["m"]
        ask = Ask(facts, Dialect.CHAT, {}, model.index)
        field = self.table.field(model, now)
        choice = choose(
            field,
            strategy,
            self._turn,
            inflight=self.ledger.replicas,
            unread=self.ledger.unread,
            ask=ask,
            strategies=self.strategies,
        )
        self._turn += 1
        if not isinstance(choice, Choice):
            raise TypeError(choice)
        ticket = self.ledger.open(number, "m")
        unread = 0
        route = model.route(choice.replica)
        if ask.looked_up is not None and route is not None:
            model.index.insert(ask.looked_up, route.seat, now)
            unread = ask.size - ask.held(choice.place)
        ticket.move(choice.replica, unread)
        return choice.replica, ticket

    def report(self, now: float) -> ReceivedProxy:
        ledger = self.ledger
        return ReceivedProxy(
            ProxyReport(
                proxy=self.name, sequence=int(now) + 1, pid=1, version="", at=0.0, started_at=0.0, revision=0,
                inflight=dict(ledger.replicas), unread_bytes=dict(ledger.unread), prefixes=self.table.told_prefixes(),
            ),
            now,
        )  # fmt: skip


class CacheAware:
    """What sglang-router's `cache_aware` does by its documentation (an imitation, not its code), with its defaults.

    Loads far apart: the shortest queue. Else the replica with the longest match, if that is more than `threshold` of the
    prompt. Else the smallest tree. Its tree is never full here, as its own bound of 67 M nodes is not in this trace.
    """

    threshold, absolute, relative = 0.3, 64, 1.5

    def __init__(self) -> None:
        self._trees: dict[str, set[int]] = {}

    def __call__(self, ask: Ask, weighed: Weighed) -> list[float]:
        replicas, own, digests = weighed.field.replicas, weighed.own, ask.chain
        trees = [self._trees.setdefault(replica, set()) for replica in replicas]
        if max(own) - min(own) > self.absolute and max(own) > self.relative * min(own):
            place = own.index(min(own))
        else:
            matched = [
                next((n for n, digest in enumerate(digests) if digest not in tree), len(digests)) for tree in trees
            ]
            best = max(matched)
            if best and ENDS[best - 1] / ask.size > self.threshold:
                place = matched.index(best)
            else:
                sizes = [len(tree) for tree in trees]
                place = sizes.index(min(sizes))
        trees[place].update(digests)
        return [float(each != place) for each in range(len(replicas))]


class Open:
    """A request under way."""

    __slots__ = ("arrival", "got", "ticket")

    def __init__(self, arrival: Arrival, ticket: Ticket[int]) -> None:
        self.arrival = arrival
        self.ticket = ticket
        self.got = 0


def replay(arrivals: list[Arrival], strategy: str, replicas: int, workers: int) -> dict[str, float]:
    names = [f"m-r{number}" for number in range(replicas)]
    engines = {name: Engine() for name in names}
    proxies = [Worker(f"w{number}", names) for number in range(workers)]
    dice = random.Random(7)
    open_requests: dict[str, Open] = {}
    first_tokens: list[tuple[float, float]] = []
    events: list[tuple[float, int, str]] = []
    order = itertools.count()
    now = 0.0

    def go_on(name: str) -> None:
        seconds = engines[name].begin()
        if seconds is not None:
            heapq.heappush(events, (now + seconds, next(order), name))

    def arrive(number: int, arrival: Arrival) -> None:
        worker = proxies[dice.randrange(workers)]
        name, ticket = worker.route(number, arrival.facts(), strategy, now)
        tokens = [hashed for hashed in arrival.hashes for _ in range(BLOCK_TOKENS)][: arrival.prompt_tokens]
        open_requests[str(number)] = Open(arrival, ticket)
        engine = engines[name]
        engine.requests += 1
        engine.count(1, now)
        engine.scheduler.add(ScheduledRequest(str(number), tokens))
        if engine.step is None:
            go_on(name)

    def step_over(name: str) -> None:
        engine = engines[name]
        if engine.step is None:
            raise RuntimeError("a step ended that had not begun")
        for request in list(engine.scheduler.advance(engine.step)):
            mine = open_requests[request.request_id]
            if mine.got == 0:
                first_tokens.append((mine.arrival.at, now - mine.arrival.at))
                mine.ticket.read()
            mine.got += 1
            if mine.got < mine.arrival.output_tokens:
                request.tokens.append(-1 - int(request.request_id))
                continue
            engine.scheduler.remove(request.request_id)
            engine.count(-1, now)
            mine.ticket.close()
            del open_requests[request.request_id]
        go_on(name)

    def tell() -> None:
        figures = {
            name: (
                ReplicaDelta(
                    id=name,
                    phase="ready",
                    running=len(engine.scheduler.running),
                    waiting=len(engine.scheduler.waiting),
                    kv=engine.scheduler.pool.usage,
                ),
            )
            for name, engine in engines.items()
        }
        reports = {worker.name: worker.report(now) for worker in proxies}
        for worker in proxies:
            worker.table.heard(figures, now)
            worker.table.count_elsewhere(reports, now)

    waiting = iter(enumerate(arrivals))
    following = next(waiting, None)
    second = 1.0
    while following is not None or events:
        due = min(following[1].at if following else float("inf"), events[0][0] if events else float("inf"))
        if second <= due:
            now, second = second, second + 1.0
            tell()
        elif following is not None and following[1].at <= due:
            now = following[1].at
            arrive(*following)
            following = next(waiting, None)
        else:
            now, _, name = heapq.heappop(events)
            step_over(name)
    if len(first_tokens) != len(arrivals):
        raise RuntimeError(f"{len(arrivals) - len(first_tokens)} requests were never answered")
    asked = sum(engine.scheduler.prefix_queries for engine in engines.values())
    found = sum(engine.scheduler.prefix_hits for engine in engines.values())
    loads = [engine.load(now) for engine in engines.values()]
    ttft = sorted(seconds for _, seconds in first_tokens)
    last = arrivals[-1].at
    quarters = [
        statistics.median(seconds for at, seconds in first_tokens if low * last <= at <= high * last)
        for low, high in ((0.0, 0.25), (0.75, 1.0))
    ]
    return {
        "hit_tokens": found,
        "hit_ratio": round(found / asked, 4),
        "ttft_p50_seconds": round(ttft[len(ttft) // 2], 2),
        "ttft_p99_seconds": round(ttft[int(len(ttft) * 0.99)], 2),
        "max_to_mean_load": round(max(loads) / statistics.fmean(loads), 3),
        "max_to_mean_requests": round(max(e.requests for e in engines.values()) / (len(arrivals) / replicas), 3),
        "ttft_p50_first_quarter": round(quarters[0], 2),
        "ttft_p50_last_quarter": round(quarters[1], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--rate", type=float, default=0.9)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of virtual time")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--strategies", default=",".join([*BUILT_IN, "sglang_cache_aware"]))
    args = parser.parse_args()
    arrivals = read_trace(args.trace, args.rate, args.seconds)
    results: dict[str, dict[str, float]] = {}
    began = time.process_time()
    for strategy in args.strategies.split(","):
        found = results[strategy] = replay(arrivals, strategy, args.replicas, args.workers)
        print(
            f"{strategy:19} hits {found['hit_tokens'] / 1e6:6.2f} M tokens ({found['hit_ratio']:.1%}), TTFT p50 "
            f"{found['ttft_p50_seconds']:6.2f} p99 {found['ttft_p99_seconds']:7.2f} s, max/mean load "
            f"{found['max_to_mean_load']:.2f}, requests {found['max_to_mean_requests']:.2f}; median by quarter "
            f"{found['ttft_p50_first_quarter']:.1f} … {found['ttft_p50_last_quarter']:.1f} s",
            flush=True,
        )
    figures: dict[str, object] = {
        "benchmark": "routing_replay",
        "requests": len(arrivals),
        "rate": args.rate,
        "replicas": args.replicas,
        "workers": args.workers,
        "cpu_seconds": round(time.process_time() - began, 1),
        "strategies": results,
    }
    aware = results.get("prefix_cache_aware")
    if aware is not None and "least_pending" in results and "round_robin" in results:
        figures["hits_to_least_pending"] = round(aware["hit_tokens"] / results["least_pending"]["hit_tokens"], 2)
        figures["p99_to_round_robin"] = round(aware["ttft_p99_seconds"] / results["round_robin"]["ttft_p99_seconds"], 3)
        print(
            f"hits {figures['hits_to_least_pending']} x least_pending (goal 1.5), p99 {figures['p99_to_round_robin']} x "
            f"round_robin (goal 0.25), max/mean load {aware['max_to_mean_load']} (goal 1.3)"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
