"""The prefix index: what it finds, what it forgets, and that it keeps its bound."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nebula_proxy.decisions.prefix_index import GENERATIONS, KEPT_SECONDS, MOST_TOLD, PrefixIndex
from nebula_proxy.decisions.prompt import ENDS


def chain_of(*parts: int) -> list[int]:
    """A chain whose digests stand for all before them, as real ones do."""
    digests: list[int] = []
    for part in parts:
        digests.append(hash((digests[-1] if digests else 0, part)))
    return digests


def depths(index: PrefixIndex, chain: list[int]) -> dict[int, int]:
    """Depth by seat."""
    found: dict[int, int] = {}
    for depth, mask in index.match(chain):
        for place in range(mask.bit_length()):
            if mask >> place & 1:
                assert 1 << place not in found
                found[1 << place] = depth
    return found


def test_the_longest_match_of_each_replica() -> None:
    index = PrefixIndex()
    a, b, c = (index.seat(name, "e") for name in "abc")
    index.insert(chain_of(1, 2, 3, 4, 5), a, 0.0)
    index.insert(chain_of(1, 2, 9), b, 0.0)
    assert depths(index, chain_of(1, 2, 3, 4, 5, 6)) == {a: 5, b: 2}
    assert depths(index, chain_of(1, 2, 9, 9)) == {b: 3, a: 2}
    assert depths(index, chain_of(7)) == {}
    assert depths(index, []) == {}
    assert c not in depths(index, chain_of(1))


def test_an_engine_that_was_started_anew_holds_nothing() -> None:
    index = PrefixIndex()
    old, other = index.seat("r", "first"), index.seat("other", "e")
    index.insert(chain_of(1, 2), old, 0.0)
    index.insert(chain_of(1), other, 0.0)
    index.keep_only({"r": "second", "other": "e"})
    new = index.seat("r", "second")
    assert new not in {old, other}
    assert depths(index, chain_of(1, 2)) == {other: 1}
    # Its bit comes back only when no generation can have it in an entry.
    index.keep_only({"other": "e"})
    assert index.seat("later", "e") not in {old, new, other}
    for turn in range(GENERATIONS + 1):
        index.insert(chain_of(turn), other, KEPT_SECONDS * turn)
    assert index.seat("reborn", "e") in {old, new}
    assert depths(index, chain_of(1, 2)) == {}


def test_it_forgets_by_volume_what_was_not_used() -> None:
    index = PrefixIndex()
    seat = index.seat("r", "e")
    index.capacity_bytes = ENDS[9] * 80
    used, unused = chain_of(*range(10)), chain_of(*range(100, 110))
    index.insert(used, seat, 0.0)
    index.insert(unused, seat, 0.0)
    for turn in range(120):
        index.insert(chain_of(*range(1000 + turn * 10, 1010 + turn * 10)), seat, 1.0)
        if turn % 20 == 0:
            index.insert(used, seat, 1.0)
    assert depths(index, used) == {seat: 10}
    assert depths(index, unused) == {}
    assert depths(index, chain_of(*range(1000 + 1190, 1010 + 1190))) == {seat: 10}


def test_it_forgets_by_time() -> None:
    index = PrefixIndex()
    seat = index.seat("r", "e")
    index.insert(chain_of(1, 2), seat, 0.0)
    for step in range(1, GENERATIONS * 2):
        index.insert(chain_of(50 + step), seat, step * KEPT_SECONDS / GENERATIONS)
    assert depths(index, chain_of(1, 2)) == {}


def test_what_one_process_sent_the_other_finds() -> None:
    mine, other = PrefixIndex(), PrefixIndex()
    mine.telling = True
    seats = {name: other.seat(name, "e") for name in ("y", "x")}
    mine.insert(chain_of(1, 2, 3), mine.seat("x", "e"), 0.0)
    mine.insert(chain_of(1, 2, 3), mine.seat("x", "e"), 0.0)  # nothing new
    mine.insert(chain_of(4), mine.seat("y", "e"), 0.0)
    told = mine.told()
    assert told == {"x": [chain_of(1, 2, 3)[-1]], "y": [chain_of(4)[-1]]}
    assert mine.told() == {}
    for replica, digests in told.items():
        other.learn(digests, seats[replica])
    # The next turn of the conversation; not another that only begins alike.
    assert depths(other, chain_of(1, 2, 3, 7, 8)) == {seats["x"]: 3}
    assert depths(other, chain_of(1, 2, 9)) == {}
    other.keep_only({"x": "anew", "y": "e"})
    assert depths(other, chain_of(1, 2, 3, 7)) == {}
    assert other.seat("x", "anew") not in seats.values()


def test_what_is_told_is_bounded() -> None:
    index = PrefixIndex()
    seat = index.seat("r", "e")
    index.insert(chain_of(0), seat, 0.0)
    index.telling = True
    for number in range(MOST_TOLD + 50):
        index.insert(chain_of(1 + number), seat, 0.0)
    assert len(index.told()["r"]) == MOST_TOLD


PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


class Laws(RuleBasedStateMachine):
    """Against a plain memory of what was inserted since each seat was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(most_entries=64)
        self.now = 0.0
        self.epochs: dict[str, int] = {}
        self.sent: dict[str, set[int]] = {}

    def seat(self, name: str) -> int:
        return self.index.seat(name, str(self.epochs[name]))

    @rule(name=st.sampled_from("abcde"))
    def start_anew(self, name: str) -> None:
        self.epochs[name] = self.epochs.get(name, 0) + 1
        self.sent[name] = set()
        self.index.keep_only({each: str(epoch) for each, epoch in self.epochs.items()})
        self.seat(name)

    @precondition(lambda self: self.epochs)
    @rule(data=st.data(), parts=PROMPTS, seconds=st.floats(0, 400))
    def send(self, data: st.DataObject, parts: list[int], seconds: float) -> None:
        self.now += seconds
        name = data.draw(st.sampled_from(sorted(self.epochs)))
        chain = chain_of(*parts)
        self.index.insert(chain, self.seat(name), self.now)
        self.sent[name].update(chain)
        assert depths(self.index, chain)[self.seat(name)] == len(chain)

    @precondition(lambda self: self.epochs)
    @rule(data=st.data(), parts=PROMPTS)
    def hear(self, data: st.DataObject, parts: list[int]) -> None:
        name = data.draw(st.sampled_from(sorted(self.epochs)))
        self.index.learn([chain_of(*parts)[-1]], self.seat(name))
        self.sent[name].update(chain_of(*parts))

    @precondition(lambda self: self.epochs)
    @rule(parts=PROMPTS)
    def look(self, parts: list[int]) -> None:
        chain = chain_of(*parts)
        found = depths(self.index, chain)
        seats = {self.seat(name): name for name in self.epochs}
        assert found.keys() <= seats.keys()
        for seat, depth in found.items():
            # It never says more than was sent to this start of the engine.
            assert chain[depth - 1] in self.sent[seats[seat]]

    @invariant()
    def keeps_its_bound(self) -> None:
        # Own entries, and half as many again of what others sent.
        assert len(self.index) <= 64 * 3 // 2 + 6


TestLaws = Laws.TestCase


@given(st.lists(PROMPTS, min_size=1, max_size=30), PROMPTS)
def test_the_longest_match_is_found_whatever_else_is_there(sent: list[list[int]], asked: list[int]) -> None:
    """With room for all of it: exactly the longest common beginning, for every replica."""
    index = PrefixIndex()
    expected: dict[int, int] = {}
    for number, parts in enumerate(sent):
        seat = index.seat(f"r{number % 3}", "e")
        index.insert(chain_of(*parts), seat, 0.0)
        common = next(
            (n for n, (a, b) in enumerate(zip(parts, asked, strict=False)) if a != b), min(len(parts), len(asked))
        )
        expected[seat] = max(expected.get(seat, 0), common)
    assert depths(index, chain_of(*asked)) == {seat: depth for seat, depth in expected.items() if depth}
