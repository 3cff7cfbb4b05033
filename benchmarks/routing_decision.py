"""What a routing decision costs (GOALS S9): 64 candidates, an index of 200,000 entries, prompts of 2k and 32k tokens.

    python benchmarks/routing_decision.py [--candidates 64] [--entries 200000] [--decisions 3000]

Everything of a decision is counted: candidates, the prompt's digests, the look-up, filter, scores, pick and the entry of
the prompt into the index. The columns of the candidates are made anew as often as figures come (every 100 ms, at 1,000
requests a second: every 100th decision); `rebuilt` makes them anew for each. Half of a prompt is known to the index. CPU
time of this process, median of batches.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

from nebula_core.records.deployment import Limits
from nebula_core.records.endpoint import Endpoint, ModelView
from nebula_core.records.sample import EngineSample
from nebula_core.wire.openai import Facts, read_facts
from nebula_proxy.adapters.engine_keys import EngineKeys
from nebula_proxy.decisions.calls import Dialect
from nebula_proxy.decisions.prompt import BYTES_PER_TOKEN
from nebula_proxy.decisions.routing import Choice, choose
from nebula_proxy.decisions.strategies import BUILT_IN, Ask
from nebula_proxy.traffic.ejections import Ejections
from nebula_proxy.traffic.routing_table import RoutingTable

FIGURES_EVERY = 100
BATCH = 100


def facts_of(beginning: str, end: str) -> Facts:
    messages = [{"role": "system", "content": beginning}, {"role": "user", "content": end}]
    facts = read_facts(json.dumps({"model": "m", "stream": True, "messages": messages, "user": "u"}).encode())
    if not isinstance(facts, Facts):
        raise TypeError(facts)
    return facts


class Bench:
    def __init__(self, candidates: int, entries: int) -> None:
        dice = random.Random(1)
        self.inflight = {f"m-r{n}": dice.randrange(4, 9) for n in range(candidates)}
        self.unread = {name: dice.randrange(50_000) for name in self.inflight}
        self.table = RoutingTable(EngineKeys(None), Ejections(), "bench", self.inflight, entries * 2)
        now = self.now = time.monotonic()
        endpoints = tuple(
            Endpoint(
                replica=name, deployment="m", model="m", node=f"n{name}", host="127.0.0.1", port=9000, engine="vllm",
                engine_epoch="e", sealed_key=None, limits=Limits(), resume=False, strategy=None,
                sample=EngineSample(requests_waiting=0, requests_running=5, kv_cache_usage=dice.random() * 0.9),
                sampled_at=now,
            )
            for name in self.inflight
        )  # fmt: skip
        self.table.update({"m": ModelView("m", "m", endpoints, 0, candidates)})
        self.model = self.table.models["m"]
        seats = [route.seat for route in self.model.routes]
        index = self.model.index
        while len(index) < entries:
            index.insert([dice.getrandbits(64) for _ in range(20)], dice.choice(seats), now)

    def decide(self, facts: Facts, strategy: str, turn: int) -> Choice:
        field = self.table.field(self.model, self.now)
        ask = Ask(facts, Dialect.CHAT, {}, self.model.index)
        choice = choose(field, strategy, turn, inflight=self.inflight, unread=self.unread, ask=ask)
        if not isinstance(choice, Choice):
            raise TypeError(choice)
        if (digests := ask.looked_up) is not None:
            route = self.model.route(choice.replica)
            if route is None:
                raise LookupError(choice.replica)
            self.model.index.insert(digests, route.seat, self.now)
        return choice

    def cost(self, tokens: int, strategy: str, decisions: int, every: int) -> float:
        """Microseconds of CPU per decision, median of batches."""
        half = tokens * BYTES_PER_TOKEN // 2
        shared = ["".join(random.Random(n).choices("abcdefghij klmn", k=half)) for n in range(16)]
        for text in shared:
            self.decide(facts_of(text, ""), strategy, 0)
        tails = [random.Random(n).choices("abcdefghij klmn", k=half) for n in range(4)]
        spent: list[float] = []
        turn = 0
        for batch in range(decisions // BATCH):
            asked = [facts_of(shared[(batch + n) % 16], f"{batch} {n} " + "".join(tails[n % 4])) for n in range(BATCH)]
            began = time.process_time()
            for facts in asked:
                if turn % every == 0:
                    self.table.forgive(0.0)  # new figures: the columns are made anew
                self.decide(facts, strategy, turn)
                turn += 1
            spent.append((time.process_time() - began) / BATCH * 1e6)
        return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--decisions", type=int, default=3000)
    args = parser.parse_args()
    bench = Bench(args.candidates, args.entries)
    figure: Callable[[int, str, int], float] = lambda tokens, strategy, every: round(  # noqa: E731
        bench.cost(tokens, strategy, args.decisions, every), 1
    )
    figures: dict[str, object] = {
        "benchmark": "routing_decision",
        "candidates": args.candidates,
        "entries": args.entries,
    }
    for tokens in (2_000, 32_000):
        figures[f"us_{tokens // 1000}k"] = figure(tokens, "prefix_cache_aware", FIGURES_EVERY)
        figures[f"us_{tokens // 1000}k_rebuilt"] = figure(tokens, "prefix_cache_aware", 1)
    figures["us_2k_by_strategy"] = {name: figure(2_000, name, FIGURES_EVERY) for name in BUILT_IN}
    print(
        f"{args.candidates} candidates, {args.entries} entries: 2k tokens {figures['us_2k']} us (goal 60), "
        f"32k tokens {figures['us_32k']} us (goal 150); columns made anew each time {figures['us_2k_rebuilt']} and "
        f"{figures['us_32k_rebuilt']} us; by strategy {figures['us_2k_by_strategy']}"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
