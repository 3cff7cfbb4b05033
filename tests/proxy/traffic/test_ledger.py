"""The ledger: whatever is done to tickets, the counts are those of the open ones."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nebula_proxy.traffic.ledger import Ledger, Ticket


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger: Ledger[int] = Ledger()
        self.all: list[Ticket[int]] = []
        self.open: dict[int, str | None] = {}

    @rule(key=st.none() | st.sampled_from(["k1", "k2"]), model=st.sampled_from(["a", "b"]))
    def enter(self, key: str | None, model: str) -> None:
        number = len(self.all)
        self.all.append(self.ledger.open(number, model, key))
        self.open[number] = None

    @rule(data=st.data(), replica=st.sampled_from(["r0", "r1", "r2"]))
    def move(self, data: st.DataObject, replica: str) -> None:
        if self.all:
            ticket = data.draw(st.sampled_from(self.all))
            ticket.move(replica)
            if ticket.holder in self.open:
                self.open[ticket.holder] = replica

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        if self.all:
            ticket = data.draw(st.sampled_from(self.all))
            assert ticket.close() is (ticket.holder in self.open)
            self.open.pop(ticket.holder, None)

    @invariant()
    def counts_are_those_of_the_open(self) -> None:
        expected: dict[str, int] = {}
        for replica in self.open.values():
            if replica is not None:
                expected[replica] = expected.get(replica, 0) + 1
        assert self.ledger.replicas == expected
        assert set(self.ledger) == set(self.open)
        assert len(self.ledger) == len(self.open)
        assert sum(self.ledger.models().values()) == len(self.open)
        keys = [self.all[number].key for number in self.open]
        assert self.ledger.keys == {key: keys.count(key) for key in set(keys) if key is not None}


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=40)
