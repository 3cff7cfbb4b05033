"""What is free on each node: GPUs nobody has, nobody blocks and nobody fills, and CPU slots.

A GPU belongs to one replica. It is taken by every placement that names it, whatever it asks for (a stopping engine
still holds its memory), by every replica an agent reports on it, ours or not, and by memory that is measurably full:
what the device says counts more than our own books (a foreign process, an orphan of a dead engine).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from nebula_core.planning.index import ClusterIndex, NodeFacts
from nebula_core.records.node import Gpu, Node
from nebula_core.records.replica import OCCUPYING
from nebula_core.records.sample import GpuSample
from nebula_core.records.snapshot import NodeState

GIB = 1024**3
#: A GPU nobody has may still carry a display or a driver context; above this (and a tenth of it) it is in use.
IDLE_BYTES = 2 * GIB
IDLE_RATIO = 0.1


@dataclass(frozen=True, slots=True)
class GpuRoom:
    gpu: Gpu
    #: Memory measured as free, else all there is, else unknown.
    free_bytes: int | None
    #: Why a replica that asks for the whole GPU may not have it ("12.0 GiB in use by pid 4711 python").
    in_use: str | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """One node's free places."""

    node: Node
    facts: NodeFacts
    #: Why nothing at all may be placed here; None is open.
    closed: str | None
    #: By index.
    free: tuple[GpuRoom, ...] = ()
    #: Those of `free` that nobody fills either.
    idle: tuple[GpuRoom, ...] = ()
    cpu_used: int = 0
    #: What was given away in this pass.
    given: tuple[str, ...] = ()

    def taken(self, gpus: Collection[str], replica: str) -> "Room":
        """The room that is left when these GPUs, or a CPU slot, are given away."""
        if not gpus:
            return replace(self, cpu_used=self.cpu_used + 1, given=(*self.given, replica))
        return replace(
            self,
            free=tuple(place for place in self.free if place.gpu.id not in gpus),
            idle=tuple(place for place in self.idle if place.gpu.id not in gpus),
            given=(*self.given, replica),
        )


def build_rooms(index: ClusterIndex) -> dict[str, Room]:
    """Rooms of all nodes, by name."""
    return {
        name: build_room(facts, facts.node)
        for name in sorted(index.nodes)
        if (facts := index.nodes[name]).node is not None
    }


def build_room(facts: NodeFacts, node: Node, *, without: str | None = None) -> Room:
    """A replica named `without` is taken for gone, and its memory for free."""
    closed = why_closed(facts)
    if closed is not None:
        return Room(node, facts, closed)
    free, cpu_used = _unheld(facts, node, without)
    if not free:
        return Room(node, facts, None, cpu_used=cpu_used)
    samples: dict[str, GpuSample] = {}
    if facts.received is not None:
        ids = {gpu.id for gpu in free}
        samples = {sample.gpu: sample for sample in facts.received.report.gpus if sample.gpu in ids}
    places = tuple(_measured(gpu, samples.get(gpu.id), without) for gpu in free)
    return Room(node, facts, None, places, tuple(place for place in places if place.in_use is None), cpu_used)


def _unheld(facts: NodeFacts, node: Node, without: str | None) -> tuple[tuple[Gpu, ...], int]:
    """GPUs (by index) that nobody has and nothing blocks, and how many CPU slots are in use."""
    if without is None and facts.unheld is not None:
        return facts.unheld
    holders, cpu_used = _holders(facts, without)
    blocked = () if facts.intent is None else facts.intent.cordoned_gpus
    free = [gpu for gpu in node.gpus if gpu.id not in holders and gpu.id not in facts.faults and gpu.id not in blocked]
    found = (tuple(sorted(free, key=lambda gpu: gpu.index)), cpu_used)
    if without is None:
        facts.unheld = found
    return found


def held_by(room: Room) -> tuple[str, ...]:
    """What the GPUs that are not free are: "cordoned", "chat-r1", "Xid 79"; for a verdict."""
    holders, _ = _holders(room.facts, None)
    cordoned = () if room.facts.intent is None else room.facts.intent.cordoned_gpus
    words = set(room.given)
    for gpu in room.node.gpus:
        if (fault := room.facts.faults.get(gpu.id)) is not None:
            words.add(fault)
        elif gpu.id in cordoned:
            words.add("cordoned")
        elif (holder := holders.get(gpu.id)) is not None:
            words.add(holder)
    return tuple(sorted(words))


def _holders(facts: NodeFacts, without: str | None) -> tuple[dict[str, str], int]:
    """Who has which GPU of a node, and how many have none."""
    holders: dict[str, str] = {}
    on_cpu: set[str] = set()
    for replica, placement in facts.placements.items():
        if replica == without:
            continue
        if not placement.gpus:
            on_cpu.add(replica)
        for gpu in placement.gpus:
            holders[gpu] = replica
    for replica, status in facts.statuses.items():
        if replica == without or status.phase not in OCCUPYING:
            continue
        if not status.gpus and status.managed:
            on_cpu.add(replica)
        for gpu in status.gpus:
            holders.setdefault(gpu, replica)
    return holders, len(on_cpu)


def why_closed(facts: NodeFacts) -> str | None:
    """Why nothing may be placed on this node, as an operator reads it."""
    if facts.state is not NodeState.READY:
        silent = facts.silent_seconds
        return "has not reported yet" if silent is None else f"{facts.state}: silent for {silent:.0f} s"
    intent = facts.intent
    if intent is not None and intent.drain is not None:
        return f"draining, by {intent.drain.by}"
    if intent is not None and intent.cordoned:
        return f"cordoned by {intent.by}" if intent.by else "cordoned"
    return None


def _measured(gpu: Gpu, sample: GpuSample | None, without: str | None) -> GpuRoom:
    total = gpu.memory_total_bytes
    if sample is None or sample.memory_used_bytes is None:
        return GpuRoom(gpu, total)
    total = sample.memory_total_bytes or total
    used = sample.memory_used_bytes
    if without is not None:
        # Where nobody can be told apart, trust that what leaves is what fills it.
        going = [process.memory_used_bytes or 0 for process in sample.processes if process.replica == without]
        used = max(0, used - sum(going)) if sample.processes else 0
    free = None if total is None else max(0, total - used)
    limit = IDLE_BYTES if total is None else max(IDLE_BYTES, int(total * IDLE_RATIO))
    if used <= limit:
        return GpuRoom(gpu, free)
    return GpuRoom(gpu, free, f"{used / GIB:.1f} GiB in use by {_users(sample)}")


def _users(sample: GpuSample) -> str:
    named = [
        process.replica or f"pid {process.pid}{f' {process.name}' if process.name else ''}"
        for process in sorted(sample.processes, key=lambda process: -(process.memory_used_bytes or 0))
    ]
    return ", ".join(named[:3]) or "an unknown process"
