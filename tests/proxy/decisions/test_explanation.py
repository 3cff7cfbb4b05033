"""Why a replica was taken and the others were not, as data."""

import json

from hypothesis import given
from hypothesis import strategies as st

from nebula_core.records.decision import CANDIDATES_KEPT, AttemptRecord
from nebula_core.wire.openai import Facts, read_facts
from nebula_proxy.decisions.candidates import Candidate, Standing
from nebula_proxy.decisions.explanation import explained
from nebula_proxy.decisions.field import field_of
from nebula_proxy.decisions.prefix_index import PrefixIndex
from nebula_proxy.decisions.routing import Choice, choose
from nebula_proxy.decisions.strategies import BUILT_IN, Ask
from tests.support.candidates import CANDIDATES, candidate


def told(
    candidates: list[Candidate],
    strategy: str = "least_pending",
    inflight: dict[str, int] | None = None,
    tried: str | None = None,
) -> AttemptRecord:
    held = inflight or {}
    choice = choose(field_of(candidates, without=tried), strategy, 0, inflight=held)
    return explained(choice if isinstance(choice, Choice) else None, candidates, tried, inflight=held)


def reasons(record: AttemptRecord) -> dict[str, str | None]:
    return {line.replica: line.lost_because for line in record.candidates}


def test_every_loser_has_its_reason() -> None:
    record = told(
        [
            candidate("best"),
            candidate("busy"),
            candidate("twin"),
            candidate("gone", standing=Standing.OUT),
            candidate("mute", standing=Standing.SUSPECT),
            candidate("queue", waiting=8),
            candidate("cache", kv_cache_usage=0.97),
            candidate("many", elsewhere=256),
            candidate("aside", weight=0.0),
            candidate("tried"),
        ],
        inflight={"busy": 3},
        tried="tried",
    )
    assert (record.replica, record.strategy, record.reason) == ("best", "least_pending", "tie")
    assert reasons(record) == {
        "best": None,
        "twin": "equal; it was another's turn",
        "busy": "score 3 above 0",
        "gone": "it cannot be reached",
        "mute": "its node has been silent for a moment",
        "queue": "full: 8 wait in it of 8",
        "cache": "full: KV cache 97% of 95%",
        "many": "full: 256 open of 256",
        "aside": "its share of the traffic is 0",
        "tried": "it was tried before",
    }
    assert record.candidates[0].chosen


def test_a_prefix_and_the_guard_are_told() -> None:
    facts = read_facts(json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 4000}]}).encode())
    assert isinstance(facts, Facts)
    index = PrefixIndex()
    rows = [candidate(f"r{n}", seat=index.seat(f"r{n}", "e")) for n in range(2)]
    ask = Ask(facts, index=index)
    index.insert(ask.chain, rows[1].seat, 0.0)
    field = field_of(rows)
    choice = choose(field, "prefix_cache_aware", 0, ask=ask)
    assert isinstance(choice, Choice)
    record = explained(choice, rows, ask=ask)
    assert (record.replica, record.reason, record.guard) == ("r1", "prefix", None)
    assert [line.prefix_ratio for line in record.candidates] == [3840 / ask.size, 0.0]
    choice = choose(field, "prefix_cache_aware", 0, ask=ask, inflight={"r1": 20})
    assert isinstance(choice, Choice)
    record = explained(choice, rows, ask=ask)
    assert record.replica == "r0"
    assert record.guard == "loads 0 to 20 apart: only up to their mean 10.0"
    assert record.candidates[1].inflight == 20
    assert record.candidates[1].lost_because == "its load is above the mean while loads are far apart"


def test_a_refusal_and_a_pin_are_told() -> None:
    record = told([candidate("full", waiting=9)])
    assert (record.replica, record.reason) == (None, None)
    assert reasons(record) == {"full": "full: 9 wait in it of 8"}
    pinned = explained(Choice("a", "pinned", "pinned", 0.0, 1), [candidate("a"), candidate("b")])
    assert reasons(pinned) == {"a": None, "b": "another one was asked for"}


@given(CANDIDATES, st.sampled_from(sorted(BUILT_IN)), st.none() | st.just("a"))
def test_all_are_told_or_counted_and_the_record_travels(
    candidates: list[Candidate], strategy: str, tried: str | None
) -> None:
    record = told(candidates, strategy, tried=tried)
    assert record.candidates_total == len(candidates)
    assert len(record.candidates) == min(len(candidates), CANDIDATES_KEPT)
    assert all((line.lost_because is None) == line.chosen for line in record.candidates)
    assert AttemptRecord.from_json(record.to_json()) == record
    assert record.replica is None or record.candidates[0].replica == record.replica
