"""The planner's answer: what is kept, what must change, and why; the same data whether it is done or only shown."""

from enum import StrEnum

from nebula_core.records.base import Record
from nebula_core.records.placement import Placement


class Bucket(StrEnum):
    """Where one replica falls in a pass (the words of DESIGN, 4)."""

    KEEP = "keep"
    MISSING = "missing"
    SURPLUS = "surplus"
    LOST = "lost"
    MOVING = "moving"
    REPLACED = "replaced"
    STOPPING = "stopping"


class NodeVerdict(Record):
    """Why one node does not take a replica, or how well it would."""

    node: str
    fits: bool
    reason: str
    score: float | None = None


class PlanEntry(Record):
    """One replica in this pass: its bucket, and the reason a person reads."""

    bucket: Bucket
    deployment: str
    replica: str | None = None
    node: str | None = None
    gpus: tuple[str, ...] = ()
    reason: str


class Unplaceable(Record):
    """A missing replica that fits nowhere; `verdicts` says why for each node (bounded to the 20 nearest)."""

    deployment: str
    count: int
    reason: str
    verdicts: tuple[NodeVerdict, ...] = ()


class PlacementChange(Record):
    """Write this placement, or remove it when the agent has reported it stopped."""

    replica: str
    placement: Placement | None
    reason: str


class Plan(Record):
    """`changes` applied in order bring the cluster one step on; a plan applied to its own result is empty."""

    entries: tuple[PlanEntry, ...] = ()
    changes: tuple[PlacementChange, ...] = ()
    unplaceable: tuple[Unplaceable, ...] = ()
    #: Set when the planner refuses to act at all (most nodes vanished at once).
    brake: str | None = None
    revision: int = 0

    @property
    def summary(self) -> str:
        """One line for a person: "starts 1 on gpu-b2 [4,5]; stops chat-r3; 1 blocked: …"."""
        words: list[str] = []
        if self.brake:
            words.append(f"brake: {self.brake}")
        words.extend(change.reason for change in self.changes)
        words.extend(f"{blocked.count} blocked: {blocked.reason}" for blocked in self.unplaceable)
        return "; ".join(words) or "nothing to do"
