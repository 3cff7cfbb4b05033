"""A machine with one agent: what it has (inventory, by its agent) and what operators want of it (intent)."""

from pydantic import Field

from nebula_core.records.base import Record
from nebula_core.records.ids import GpuId, NodeName


class Gpu(Record):
    """An accelerator as it is built in; what it does is a `GpuSample`."""

    id: GpuId
    index: int
    name: str
    memory_total_bytes: int | None = None
    vendor: str = "nvidia"
    simulated: bool = False
    #: The card this is a part of (MIG), by its id; None is a whole card.
    parent: GpuId | None = None


class Node(Record):
    """Inventory, written by that node's agent when it starts and when it changes."""

    name: NodeName
    #: One word per boot and agent incarnation of the machine (`/proc/sys/kernel/random/boot_id`).
    boot_id: str
    version: str
    hostname: str
    #: Address on which engines of this node are reached by proxies.
    address: str
    gpus: tuple[Gpu, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    cpu_count: int | None = None
    memory_total_bytes: int | None = None
    driver_version: str | None = None
    #: Engine kinds this node can start by itself, e.g. `simulated`, `vllm`, `llamacpp`.
    engines: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    simulated: bool = False
    #: Most replicas without a GPU that fit at once (CPU engines); None is no limit.
    cpu_slots: int | None = None


class DrainIntent(Record):
    """Move everything off, gracefully, then stay empty."""

    by: str
    #: Unix seconds, for display.
    since: float
    #: After so many seconds of draining one replica its streams are cut.
    grace_seconds: float = 600.0
    reason: str | None = None


class NodeIntent(Record):
    """What operators said of a node; absent means nothing was said."""

    node: NodeName
    generation: int = 0
    cordoned: bool = False
    cordoned_gpus: tuple[GpuId, ...] = ()
    drain: DrainIntent | None = None
    by: str | None = None

    @property
    def closed(self) -> bool:
        """No new placements here."""
        return self.cordoned or self.drain is not None
