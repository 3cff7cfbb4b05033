"""What each strategy prefers, and what the load guard allows: several processes, sessions, prefixes."""

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from nebula_core.wire.openai import Facts, read_facts
from nebula_proxy.decisions.field import Field, field_of
from nebula_proxy.decisions.prefix_index import PrefixIndex
from nebula_proxy.decisions.routing import Choice, choose
from nebula_proxy.decisions.strategies import GUARD_REQUESTS, Ask
from tests.support.candidates import candidate


def facts_of(*texts: str, **fields: object) -> Facts:
    messages = [{"role": "user", "content": text} for text in texts]
    facts = read_facts(json.dumps({"model": "m", "messages": messages, **fields}).encode())
    assert isinstance(facts, Facts)
    return facts


class Process:
    """One proxy process: its index, what it has open, and its turns."""

    def __init__(self, replicas: int = 4, strategy: str = "prefix_cache_aware") -> None:
        self.index = PrefixIndex()
        self.strategy = strategy
        self.inflight: dict[str, int] = {}
        self.elsewhere: dict[str, int] = {}
        self.turn = 0
        self.names = [f"r{number}" for number in range(replicas)]

    def field(self) -> Field:
        return field_of(
            [
                candidate(name, seat=self.index.seat(name, "e"), elsewhere=self.elsewhere.get(name, 0))
                for name in self.names
            ]
        )

    def route(self, facts: Facts, headers: dict[bytes, bytes] | None = None) -> Choice:
        ask = Ask(facts, headers=headers or {}, index=self.index)
        field = self.field()
        choice = choose(field, self.strategy, self.turn, inflight=self.inflight, ask=ask)
        assert isinstance(choice, Choice)
        self.turn += 1
        if ask.looked_up:
            self.index.insert(ask.chain, self.index.seat(choice.replica, "e"), 0.0)
        return choice


@given(st.integers(0, 1000), st.dictionaries(st.sampled_from(["r0", "r1", "r2", "r3"]), st.integers(0, 3)))
def test_the_same_prefix_goes_to_the_same_replica_while_load_allows(seed: int, inflight: dict[str, int]) -> None:
    process = Process()
    first = process.route(facts_of(f"{seed} " * 4000))
    process.inflight = inflight
    again = process.route(facts_of(f"{seed} " * 4000, "fine", "and then?"))
    assert (again.replica, again.reason) == (first.replica, "prefix")


def test_a_hot_prefix_spreads_before_it_drowns_a_replica() -> None:
    process = Process()
    text = "the same for everybody " * 4000
    for _ in range(400):
        replica = process.route(facts_of(text)).replica
        process.inflight[replica] = process.inflight.get(replica, 0) + 1
    loads = list(process.inflight.values())
    assert len(loads) == 4
    assert max(loads) <= 1.5 * sum(loads) / 4


def test_the_guard_looks_only_at_those_up_to_the_mean() -> None:
    process = Process()
    text = "x" * 50_000
    holder = process.route(facts_of(text)).replica
    process.inflight[holder] = GUARD_REQUESTS
    assert process.route(facts_of(text)).replica == holder
    process.inflight[holder] = GUARD_REQUESTS + 1
    moved = process.route(facts_of(text))
    assert moved.replica != holder
    assert moved.reason == "guard"
    assert moved.verdict is not None
    assert moved.verdict.guard == "loads 0 to 9 apart: only up to their mean 2.2"


def test_cold_prompts_go_where_least_is_to_be_done() -> None:
    process = Process()
    process.inflight = {"r0": 3, "r1": 2, "r2": 4}
    choice = process.route(facts_of("never seen " * 500))
    assert (choice.replica, choice.reason) == ("r3", "cold")


def test_prompts_that_are_not_read_yet_count() -> None:
    process = Process(2)
    field = process.field()
    ask = Ask(facts_of("new " * 1000), index=process.index)
    choice = choose(
        field, "prefix_cache_aware", 0, inflight={"r0": 1, "r1": 2}, unread={"r0": 200_000, "r1": 100}, ask=ask
    )
    assert isinstance(choice, Choice)
    assert choice.replica == "r1"
    elsewhere = field_of([candidate("r0", unread_elsewhere=200_000), candidate("r1", elsewhere=1)])
    choice = choose(elsewhere, "prefix_cache_aware", 0, ask=Ask(facts_of("new " * 1000), index=process.index))
    assert isinstance(choice, Choice)
    assert choice.replica == "r1"


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_processes_agree_on_prefixes_that_are_new_to_them(seed: int) -> None:
    """Turn by turn over two workers that know nothing of each other but the load: one replica holds it all."""
    workers = [Process(8), Process(8)]
    for worker in workers:
        worker.route(facts_of("the system prompt " * 100, "another user"))
    texts = ["the system prompt " * 100, f"conversation {seed}" * 50]
    replicas = set()
    for turn in range(6):
        replicas.add(workers[turn % 2].route(facts_of(*texts)).replica)
        texts.append(f"answer {turn} " * 60)
    assert len(replicas) == 1


def test_workers_with_their_own_indexes_lose_little_against_one() -> None:
    """60 conversations of 6 turns, spread over three workers by chance: how often a turn finds the one before."""

    def warm(workers: list[Process]) -> float:
        held: dict[int, str] = {}
        found = 0
        for turn in range(6):
            for talk in range(60):
                worker = workers[(talk * 7 + turn * 5) % len(workers)]
                replica = worker.route(facts_of(*[f"talk {talk}, turn {n} " * 400 for n in range(turn + 1)])).replica
                found += held.get(talk) == replica
                held[talk] = replica
                for each in workers:
                    store = each.inflight if each is worker else each.elsewhere
                    store[replica] = store.get(replica, 0) + 1
                    if sum(each.inflight.values()) + sum(each.elsewhere.values()) > 40:
                        each.inflight.clear()
                        each.elsewhere.clear()
        return found / 300

    one, three = warm([Process(8)]), warm([Process(8) for _ in range(3)])
    assert one > 0.9
    assert three > 0.6
    assert one > 0.9
    assert three > 0.6


def test_a_session_stays_and_few_move_when_replicas_come_and_go() -> None:
    def seats(process: Process) -> dict[int, str]:
        return {n: process.route(facts_of("hi", user=f"user-{n}")).replica for n in range(400)}

    eight = seats(Process(8, "session_affinity"))
    assert seats(Process(8, "session_affinity")) == eight
    assert min(Counter(eight.values()).values()) > 20
    nine = seats(Process(9, "session_affinity"))
    moved = [n for n in eight if eight[n] != nine[n]]
    assert all(nine[n] == "r8" for n in moved)
    assert len(moved) < 400 / 9 * 1.6
    seven = seats(Process(7, "session_affinity"))
    assert all(eight[n] == "r7" for n in eight if eight[n] != seven[n])


def test_where_a_session_comes_from() -> None:
    process = Process(8, "session_affinity")
    by_header = process.route(facts_of("hi", user="ignored"), {b"x-session-id": b"s1", b"x-nebula-session": b"s2"})
    assert by_header.replica == process.route(facts_of("hi"), {b"x-nebula-session": b"s2"}).replica
    assert by_header.replica == process.route(facts_of("hi"), {b"x-session-id": b"s2"}).replica
    assert by_header.replica == process.route(facts_of("hi", user="s2")).replica
    assert by_header.reason == "session"
    nobody = process.route(facts_of("hi"))
    assert nobody.reason == "no_session"


def test_an_overloaded_replica_sends_its_sessions_to_the_next() -> None:
    process = Process(4, "session_affinity")
    home = process.route(facts_of("hi", user="u")).replica
    process.inflight[home] = GUARD_REQUESTS + 1
    away = process.route(facts_of("hi", user="u"))
    assert away.reason == "guard"
    assert away.replica != home
    process.names.remove(home)
    process.inflight.clear()
    assert process.route(facts_of("hi", user="u")).replica == away.replica
