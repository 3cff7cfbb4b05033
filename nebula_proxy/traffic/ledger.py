"""The ledger of requests in flight: each is entered once and closed exactly once, whatever happens to it.

Counts are kept by replica, and by key where a key has a limit. A ticket belongs to one request; it moves with it from one replica to
another on a retry. Closing twice is harmless, so every way out of a request may close it (control_plane, 4.24).
"""

from collections import Counter
from collections.abc import Iterator
from typing import Generic, TypeVar

Holder = TypeVar("Holder")


class Ticket(Generic[Holder]):
    """One request in flight."""

    __slots__ = ("_ledger", "closed", "holder", "key", "model", "replica", "unread")

    def __init__(self, ledger: "Ledger[Holder]", holder: Holder, model: str, key: str | None) -> None:
        self._ledger = ledger
        self.holder = holder
        self.model = model
        self.key = key
        self.replica: str | None = None
        #: Bytes of the prompt that the replica must compute before the first token.
        self.unread = 0
        self.closed = False

    def move(self, replica: str, unread: int = 0) -> None:
        """The request now runs on `replica`, which has so many bytes of its prompt to read."""
        if self.closed:
            return
        if self.unread:
            self.read()
        if unread:
            pending = self._ledger.unread
            pending[replica] = pending.get(replica, 0) + unread
            self.unread = unread
        if replica == self.replica:
            return
        replicas = self._ledger.replicas
        if self.replica is not None:
            _leave(replicas, self.replica)
        replicas[replica] = replicas.get(replica, 0) + 1
        self.replica = replica

    def read(self) -> None:
        """The replica has read the prompt: its first token is there."""
        if self.unread and self.replica is not None:
            _leave(self._ledger.unread, self.replica, self.unread)
            self.unread = 0

    def close(self) -> bool:
        """True the first time."""
        if self.closed:
            return False
        self.closed = True
        if self.unread:
            self.read()
        ledger = self._ledger
        ledger.tickets.discard(self)
        if self.replica is not None:
            _leave(ledger.replicas, self.replica)
        if self.key is not None:
            _leave(ledger.keys, self.key)
        return True


class Ledger(Generic[Holder]):
    """All that is in flight in this process."""

    def __init__(self) -> None:
        #: Open requests by replica; a replica without any is not in it.
        self.replicas: dict[str, int] = {}
        #: Bytes of prompts without a first token by replica, those it is not known to hold.
        self.unread: dict[str, int] = {}
        #: Open requests by key, of those keys that have a limit.
        self.keys: dict[str, int] = {}
        self.tickets: set[Ticket[Holder]] = set()

    def open(self, holder: Holder, model: str, limited_key: str | None = None) -> Ticket[Holder]:
        """Enters a request. `limited_key` is its key when that has a limit to be kept."""
        ticket = Ticket(self, holder, model, limited_key)
        self.tickets.add(ticket)
        if limited_key is not None:
            self.keys[limited_key] = self.keys.get(limited_key, 0) + 1
        return ticket

    def models(self) -> dict[str, int]:
        """Open requests by model."""
        return Counter(ticket.model for ticket in self.tickets)

    def __len__(self) -> int:
        return len(self.tickets)

    def __iter__(self) -> Iterator[Holder]:
        """The open requests, as they were at this moment."""
        return iter([ticket.holder for ticket in self.tickets])


def _leave(counts: dict[str, int], name: str, count: int = 1) -> None:
    left = counts[name] - count
    if left:
        counts[name] = left
    else:
        del counts[name]
