"""How the planner judges, and what a leader remembers between passes: both are arguments, so a pass stays pure.

Some verdicts need more than one snapshot: since when a replica drains, whether it was quiet in two reports running,
which nodes vanished together. That is `Memory`: frozen data that `observe` (memory.py) carries from one snapshot to
the next. A new leader starts with an empty one; everything in it then begins anew on the safe side (a grace restarts,
a silent node is given its ten seconds).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nebula_core.records.base import frozen_map
from nebula_core.records.store_memory import StoreDoubt


@dataclass(frozen=True, slots=True)
class DrainSeen:
    """A draining replica as this leader saw it begin."""

    #: Monotonic seconds when the drain was first seen.
    since: float
    #: Revision of the first snapshot that had it: a proxy that routes by this one, or a later one, knows of the drain.
    revision: int
    #: Monotonic seconds since when nothing is in flight; None while something is, or nobody can tell.
    quiet_at: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What one leader has seen; all times are its own monotonic seconds."""

    #: Since when reports come in without a break: before that, silence says nothing of a node.
    listening_since: float | None = None
    drains: Mapping[str, DrainSeen] = field(default_factory=frozen_map)
    #: Since when a placement says `stop`.
    stops: Mapping[str, float] = field(default_factory=frozen_map)
    #: Nodes that vanished together: while most of them stay away, nothing is changed.
    braked: frozenset[str] = frozenset()
    #: Nodes and deployments whose absence an operator has accepted.
    released: frozenset[str] = frozenset()
    #: Deployments seen being deleted, as opposed to found missing.
    deleted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PlanPolicy:
    """Settings of the planner and the memory of its leader."""

    epoch: int = 0
    #: Replicas above the wanted number while replacements come up, per deployment.
    surge: int = 1
    #: Node losses so close together count as one event (reliability, rule 9).
    brake_window_seconds: float = 60.0
    #: Share of running replicas that may lose their deployment at once without anybody having deleted it.
    vanished_ratio: float = 0.3
    #: A `stop` the agent never answers, and does not report any more, is done after so long.
    forgotten_after_seconds: float = 10.0
    #: The store lost its memory, or the latest of it: absence is no order.
    doubt: StoreDoubt | None = None
    #: A leader that knows nothing yet takes nothing away for so long: those who remember more must be heard first.
    listen_seconds: float = 3.0
    memory: Memory = field(default_factory=Memory)
