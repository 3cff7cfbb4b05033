"""What is free on each node: GPUs nobody has, nobody blocks and nobody fills, and CPU slots.

A GPU belongs to one replica. It is taken by every placement that names it, whatever it asks for (a stopping engine
still holds its memory), by every replica an agent reports on it, ours or not, and by memory that is measurably full:
what the device says counts more than our own books (a foreign process, an orphan of a dead engine).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from nebula_core.planning.index import ClusterIndex, NodeFacts
from nebula_core.records.node import Gpu, Node
from nebula_core.records.replica import OCCUPYING
from nebula_core.records.sample import GpuSample
from nebula_core.records.snapshot import ClusterSnapshot, NodeState

GIB = 1024**3
#: A GPU nobody has may still carry a display or a driver context; above this (and a tenth of it) it is in use.
IDLE_BYTES = 2 * GIB
IDLE_RATIO = 0.1


@dataclass(slots=True)
class GpuRoom:
    gpu: Gpu
    #: Memory measured as free, else all there is, else unknown.
    free_bytes: int | None
    #: Why a replica that asks for the whole GPU may not have it ("12.0 GiB in use by pid 4711 python").
    in_use: str | None = None


@dataclass(slots=True)
class Room:
    """One node's free places; `take` makes it smaller while a pass goes on."""

    node: Node
    facts: NodeFacts
    #: Why nothing at all may be placed here; None is open.
    closed: str | None
    #: By index.
    free: list[GpuRoom] = field(default_factory=list)
    #: The GPUs that are not free, with what they are: "cordoned", "chat-r1", "Xid 79".
    held: dict[str, str] = field(default_factory=dict)
    cpu_used: int = 0

    def take(self, gpus: Iterable[str], replica: str) -> None:
        taken = set(gpus)
        if not taken:
            self.cpu_used += 1
            return
        self.free = [place for place in self.free if place.gpu.id not in taken]
        self.held.update(dict.fromkeys(taken, replica))


def build_rooms(
    view: ClusterSnapshot, index: ClusterIndex, *, without: frozenset[str] = frozenset()
) -> dict[str, Room]:
    """Rooms of all nodes, by name; replicas in `without` are taken for gone, and their memory for free."""
    holders: dict[str, dict[str, str]] = {}
    cpu_used: dict[str, set[str]] = {}

    def hold(node: str, gpus: tuple[str, ...], replica: str) -> None:
        if replica in without:
            return
        if gpus:
            by_gpu = holders.setdefault(node, {})
            for gpu in gpus:
                by_gpu.setdefault(gpu, replica)
        else:
            cpu_used.setdefault(node, set()).add(replica)

    for placement in view.placements.values():
        hold(placement.node, placement.gpus, placement.replica)
    for name, received in view.reports.items():
        for status in received.report.replicas:
            if status.phase in OCCUPYING and (status.gpus or status.managed):
                hold(name, status.gpus, status.id)
    rooms: dict[str, Room] = {}
    for name in sorted(view.nodes):
        node = view.nodes[name]
        facts = index.nodes[name]
        room = Room(node, facts, why_closed(facts), cpu_used=len(cpu_used.get(name, ())))
        if room.closed is None:
            received_report = view.reports.get(name)
            samples = {} if received_report is None else {gpu.gpu: gpu for gpu in received_report.report.gpus}
            _fill(room, holders.get(name, {}), samples, without)
        rooms[name] = room
    return rooms


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


def _fill(room: Room, holders: dict[str, str], samples: dict[str, GpuSample], without: frozenset[str]) -> None:
    cordoned = () if room.facts.intent is None else room.facts.intent.cordoned_gpus
    for gpu in sorted(room.node.gpus, key=lambda gpu: gpu.index):
        if (fault := room.facts.faults.get(gpu.id)) is not None:
            room.held[gpu.id] = fault
        elif gpu.id in cordoned:
            room.held[gpu.id] = "cordoned"
        elif (holder := holders.get(gpu.id)) is not None:
            room.held[gpu.id] = holder
        else:
            room.free.append(_measured(gpu, samples.get(gpu.id), without))


def _measured(gpu: Gpu, sample: GpuSample | None, without: frozenset[str]) -> GpuRoom:
    total = gpu.memory_total_bytes
    if sample is None or sample.memory_used_bytes is None:
        return GpuRoom(gpu, total)
    total = sample.memory_total_bytes or total
    used = sample.memory_used_bytes
    going = sum(process.memory_used_bytes or 0 for process in sample.processes if process.replica in without)
    if without and not sample.processes:
        going = used  # nobody can be told apart: trust that what leaves is what fills it
    used = max(0, used - going)
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
