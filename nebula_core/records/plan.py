"""The planner's answer: what is kept, what must change, and why; the same data whether it is done or only shown."""

from enum import StrEnum
from typing import Literal

from nebula_core.records.base import Record
from nebula_core.records.ids import NodeName
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


_GIB = 1024**3
_ORIGINS = {"hub": "the hub", "modelscope": "ModelScope", "s3": "S3", "copy": "its folder"}


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB // 10 else f"{count / 1024**2:.1f} MiB"


class PlannedFetch(Record):
    """What a node has to bring to its disk before replicas that this plan starts can start there."""

    node: NodeName
    kind: Literal["model", "image"]
    #: A source as the deployment names it, or an image; None: the image the node's own catalog chooses.
    name: str | None
    #: Of a model the kind of its source (hub, modelscope, s3, copy), of an image its registry; None is unknown.
    origin: str | None = None
    #: What it takes on disk, where another node has it or it is on its way; None is unknown.
    size_bytes: int | None = None
    #: How much of it is there already; None is unknown.
    here_bytes: int | None = None
    #: It is on its way already, whatever becomes of this plan.
    under_way: bool = False
    #: False: whether the node has it is not known.
    certain: bool = True
    replicas: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """One line for a person."""
        verb, doing = ("fetches", "is fetching") if self.kind == "model" else ("pulls", "is pulling")
        name = self.name or "the image of its catalog"
        origin = f" from {_ORIGINS.get(self.origin, self.origin)}" if self.origin else ""
        unless = "" if self.certain else " unless it has it"
        size = "size unknown" if self.size_bytes is None else _size(self.size_bytes)
        here = f", {_size(self.here_bytes)} of it there" if self.here_bytes else ""
        return f"{self.node} {doing if self.under_way else verb} {name}{origin}{unless} ({size}{here})"


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
