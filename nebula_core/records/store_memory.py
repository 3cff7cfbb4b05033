"""What is made of a store that knows less than those who read it: it came back empty, or older than it was.

Every change of a store raises its revision, and a store that begins anew has another incarnation. Whoever remembers both can
tell that a store lost something, and says so in the store itself (`meta`, field `doubt`), for those who remember nothing.
The doubt ends when an operator has decided what is true (`nebula adopt --store`), or when the store's own files are back.
"""

from enum import StrEnum

from nebula_core.records.base import Record
from nebula_core.records.ids import NodeName
from nebula_core.records.placement import SignedPlacement


class StoreDoubt(StrEnum):
    """Why the store is not taken at its word; until that is settled nothing is planned and nothing is changed."""

    #: It has another incarnation and holds neither deployments nor placements.
    EMPTIED = "emptied"
    #: It is the one it was, but went back behind a revision somebody has seen: an older copy of it.
    STALE = "stale"


class Remembered(Record):
    """The store as a process last trusted it."""

    incarnation: str
    #: Highest revision seen of it.
    revision: int = 0


class HeldOrders(Record):
    """The signed orders a node obeys, shown while the store is in doubt: what `adopt` writes back."""

    node: NodeName
    placements: tuple[SignedPlacement, ...] = ()
