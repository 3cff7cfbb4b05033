"""The ledger of requests in flight: each is entered once and closed exactly once, whatever happens to it.

Counts are kept by replica, by model and by key. A ticket belongs to one request; it moves with it from one replica to
another on a retry. Closing twice is harmless, so every way out of a request may close it (control_plane, 4.24).
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

Holder = TypeVar("Holder")


class Ticket(Generic[Holder]):
    """One request in flight."""

    __slots__ = ("_ledger", "closed", "holder", "key", "model", "replica")

    def __init__(self, ledger: "Ledger[Holder]", holder: Holder, model: str, key: str) -> None:
        self._ledger = ledger
        self.holder = holder
        self.model = model
        self.key = key
        self.replica: str | None = None
        self.closed = False

    def move(self, replica: str | None) -> None:
        """The request now runs on `replica`; None while it runs on none."""
        if self.closed or replica == self.replica:
            return
        replicas = self._ledger.replicas
        if self.replica is not None:
            _leave(replicas, self.replica)
        if replica is not None:
            replicas[replica] = replicas.get(replica, 0) + 1
        self.replica = replica

    def close(self) -> bool:
        """True the first time."""
        if self.closed:
            return False
        self.move(None)
        self.closed = True
        self._ledger.forget(self)
        return True


class Ledger(Generic[Holder]):
    """All that is in flight in this process."""

    def __init__(self) -> None:
        #: Open requests by replica; a replica without any is not in it.
        self.replicas: dict[str, int] = {}
        self.models: dict[str, int] = {}
        self.keys: dict[str, int] = {}
        self._tickets: set[Ticket[Holder]] = set()

    def open(self, holder: Holder, model: str, key: str) -> Ticket[Holder]:
        ticket = Ticket(self, holder, model, key)
        self._tickets.add(ticket)
        self.models[model] = self.models.get(model, 0) + 1
        self.keys[key] = self.keys.get(key, 0) + 1
        return ticket

    def forget(self, ticket: Ticket[Holder]) -> None:
        """Called by the ticket when it closes."""
        self._tickets.discard(ticket)
        _leave(self.models, ticket.model)
        _leave(self.keys, ticket.key)

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Holder]:
        """The open requests, as they were at this moment."""
        return iter([ticket.holder for ticket in self._tickets])


def _leave(counts: dict[str, int], name: str) -> None:
    left = counts[name] - 1
    if left:
        counts[name] = left
    else:
        del counts[name]
