"""Which placements may be obeyed: orders only rise, per replica and over all.

The agent keeps on disk the order (epoch, revision) of the last valid placement of each replica, also of replicas that are
gone, and the highest epoch of all. A replica it knows must not go back behind its own order: what it obeys already may
be read again any number of times. A replica it has never seen must not come from an epoch below the highest one that was
known before the batch: an old placement, replayed, starts nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nebula_core.records.base import frozen_map
from nebula_core.records.placement import Placement

#: Orders of replicas that are gone are remembered up to so many.
ORDERS_KEPT = 5_000

Order = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Orders:
    """What was obeyed, by replica; `max_epoch` never falls."""

    max_epoch: int = 0
    by_replica: Mapping[str, Order] = field(default_factory=frozen_map)

    def not_before(self, replica: str, floor: int) -> Order:
        """The lowest order that is still obeyed; `floor` is `max_epoch` as it was before this batch."""
        known = self.by_replica.get(replica)
        return (floor, 0) if known is None else known

    def obeyed(self, placement: Placement) -> "Orders":
        """With one more valid placement; the longest known are forgotten first."""
        orders = {name: order for name, order in self.by_replica.items() if name != placement.replica}
        orders[placement.replica] = placement.order
        surplus = len(orders) - ORDERS_KEPT
        if surplus > 0:
            orders = dict(list(orders.items())[surplus:])
        return Orders(max(self.max_epoch, placement.epoch), frozen_map(orders))
