"""Where a new replica goes: feasible nodes, the best of them, and which of its GPUs; or why not, for each node.

*Feasible*: the node answers and is open, carries the labels, can run the engine, and has the GPUs free (or a CPU
slot, for engines without a GPU). *Best*: with `spread`, the node with the fewest replicas of the same deployment;
among equals one that has the model on its disk (`prefer_cached`); then the one that will be left with the fewest free
GPUs, so that large blocks stay whole for large models; then one whose free GPUs stand side by side; then the name, so that the same view always gives the same answer.

A `Chooser` answers for many replicas of one deployment in turn: it sorts the nodes once and afterwards re-weighs
only the node it has just used, so ten thousand replicas over a thousand nodes stay cheap.
"""

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nebula_core.planning.rooms import GIB, GpuRoom, Room, held_by
from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.model_source import SourceKind, sources_of
from nebula_core.records.plan import NodeVerdict

#: Verdicts a plan carries for one unplaceable replica.
NEAREST = 20


@dataclass(frozen=True, slots=True)
class Request:
    """A replica to place. `neighbours`: how many of its deployment are on each node already."""

    deployment: str
    spec: DeploymentSpec
    neighbours: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    node: str
    gpus: tuple[str, ...]
    indexes: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    reason: str
    verdicts: tuple[NodeVerdict, ...]


def place(request: Request, rooms: Mapping[str, Room]) -> Placed | Rejected:
    """One replica; the rooms are left as they are."""
    return Chooser(request, dict(rooms)).choose()


class Chooser:
    """Places replicas of one deployment one after another out of `rooms`; `take` after each that is accepted."""

    def __init__(self, request: Request, rooms: dict[str, Room]) -> None:
        self._request = request
        self._rooms = rooms
        self._neighbours = dict(request.neighbours)
        self._cached = _nodes_with(request.spec, rooms)
        self._heap: list[tuple[tuple[int, int, int, int, str], str]] = []
        for name, room in rooms.items():
            if fits(room, request.spec):
                self._heap.append((self._cost(room), name))
        heapq.heapify(self._heap)

    def choose(self) -> Placed | Rejected:
        """The best node now. Costs are looked at again on the way: others may have taken places meanwhile."""
        while self._heap:
            cost, name = self._heap[0]
            room = self._rooms[name]
            if not fits(room, self._request.spec):
                heapq.heappop(self._heap)
                continue
            if (fresh := self._cost(room)) != cost:
                heapq.heapreplace(self._heap, (fresh, name))
                continue
            chosen = choose_gpus(fitting(room, self._request.spec), gpus_of(self._request.spec))
            return Placed(
                node=name,
                gpus=tuple(place.gpu.id for place in chosen),
                indexes=tuple(place.gpu.index for place in chosen),
                reason=self._why(name),
            )
        return self._rejected()

    def take(self, placed: Placed, replica: str) -> None:
        self._rooms[placed.node] = self._rooms[placed.node].taken(placed.gpus, replica)
        self._neighbours[placed.node] = self._neighbours.get(placed.node, 0) + 1

    def _cost(self, room: Room) -> tuple[int, int, int, int, str]:
        spec = self._request.spec
        crowd = self._neighbours.get(room.node.name, 0) if spec.placement.spread else 0
        absent = 0 if room.node.name in self._cached else 1
        count = gpus_of(spec)
        if count == 0:
            return (crowd, absent, room.cpu_used, 0, room.node.name)
        broken = 0 if count == 1 or _is_block(choose_gpus(fitting(room, spec), count)) else 1
        return (crowd, absent, len(room.free), broken, room.node.name)

    def _why(self, node: str) -> str:
        others = self._neighbours.get(node, 0)
        model = ", has its model on disk" if node in self._cached else ""
        if not self._request.spec.placement.spread:
            return f"fullest node that fits{model}"
        return f"{'no other replica of it there' if others == 0 else f'fewest others of it there ({others})'}{model}"

    def _rejected(self) -> Rejected:
        spec = self._request.spec
        nearest = heapq.nsmallest(NEAREST, ((nearness(room, spec), name) for name, room in self._rooms.items()))
        if not nearest:
            return Rejected(f"needs {needs(spec)}; there is no node", ())
        verdicts = tuple(
            NodeVerdict(node=name, fits=False, reason=why_unfit(self._rooms[name], spec) or "does not fit")
            for _, name in nearest
        )
        return Rejected(f"needs {needs(spec)}; nearest is {verdicts[0].node}: {verdicts[0].reason}", verdicts)


def _nodes_with(spec: DeploymentSpec, rooms: Mapping[str, Room]) -> frozenset[str]:
    """Nodes that say they have the whole model; none where that is not to count, or there is nothing to fetch."""
    source = next((each for each in sources_of(spec) if each.text == spec.source), None)
    if not spec.placement.prefer_cached or source is None or source.kind is SourceKind.PATH:
        return frozenset()
    # By its id: the same repository is another model for an engine that loads another form of its weights.
    return frozenset(
        name
        for name, room in rooms.items()
        if room.facts.received is not None
        and any(one.id == source.id and one.complete for one in room.facts.received.report.models or ())
    )


def gpus_of(spec: DeploymentSpec) -> int:
    """GPUs one replica takes: an external engine runs elsewhere and takes none."""
    return 0 if spec.engine == "external" else spec.gpus


def needs(spec: DeploymentSpec) -> str:
    """`2 × 40.0 GiB`, `2 GPUs`, `a CPU slot`."""
    count = gpus_of(spec)
    if count == 0:
        return "a CPU slot"
    if spec.gpu_memory_bytes is not None:
        return f"{count} × {spec.gpu_memory_bytes / GIB:.1f} GiB"
    return "1 GPU" if count == 1 else f"{count} GPUs"


def fits(room: Room, spec: DeploymentSpec) -> bool:
    """Whether this node takes one replica of `spec`: as `why_unfit`, without the words."""
    if room.closed is not None:
        return False
    count = gpus_of(spec)
    if count == 0:
        if room.node.cpu_slots is not None and room.cpu_used >= room.node.cpu_slots:
            return False
    elif len(room.free) < count or len(fitting(room, spec)) < count:
        return False
    return why_unsuited(room, spec) is None


def why_unfit(room: Room, spec: DeploymentSpec) -> str | None:
    """Why this node does not take one replica of `spec`, as a sentence; None when it does."""
    if room.closed is not None:
        return room.closed
    reason = why_unsuited(room, spec)
    if reason is not None:
        return reason
    if fits(room, spec):
        return None
    count = gpus_of(spec)
    if count == 0:
        return f"no CPU slot free, {room.cpu_used} of {room.node.cpu_slots} used"
    return _why_too_full(room, spec, count)


def why_unsuited(room: Room, spec: DeploymentSpec) -> str | None:
    """What of this node would have to be changed by hand: its labels, its engines, its number of GPUs."""
    for name, value in spec.placement.labels.items():
        if room.facts.labels.get(name) != value:
            return f"has no label {name}={value}"
    engines, runtimes = room.node.engines, room.node.runtimes
    if spec.engine == "external":
        return None
    if spec.runtime not in {"auto", "external"} and spec.runtime not in runtimes:
        return f"has no runtime {spec.runtime} (has {', '.join(runtimes) or 'none'})"
    in_a_container = spec.runtime in {"auto", "docker"} and "docker" in runtimes and spec.engine != "simulated"
    if spec.engine not in engines and not in_a_container:
        return f"cannot run {spec.engine} (runs {', '.join(engines) or 'no engine'})"
    if len(room.node.gpus) < gpus_of(spec):
        return f"has {_gpus(len(room.node.gpus))}"
    return None


def _why_too_full(room: Room, spec: DeploymentSpec, count: int) -> str:
    fit = len(fitting(room, spec))
    full = [place for place in room.free if place.in_use is not None]
    if spec.gpu_memory_bytes is not None:
        known = [place.free_bytes for place in room.free if place.free_bytes is not None]
        best = f"the best free one has {max(known) / GIB:.1f} GiB" if known else "none is free"
        return f"{fit} of {count} GPUs have {spec.gpu_memory_bytes / GIB:.1f} GiB free; {best}"
    if full and len(room.free) >= count:
        return f"gpu {full[0].gpu.index} has {full[0].in_use}"
    why = held_by(room)
    return f"{fit} of {count} GPUs free (held: {', '.join(why[:4])}{', …' if len(why) > 4 else ''})"


def fitting(room: Room, spec: DeploymentSpec) -> Sequence[GpuRoom]:
    """The free GPUs that would do for `spec`."""
    need = spec.gpu_memory_bytes
    if need is None:
        return room.idle
    return [place for place in room.free if place.free_bytes is not None and place.free_bytes >= need]


def choose_gpus(free: Sequence[GpuRoom], count: int) -> Sequence[GpuRoom]:
    """`count` of the free GPUs (in index order): the smallest block side by side that holds them, else the first ones."""
    if count == 0 or len(free) == count:
        return free[:count]
    blocks: list[list[GpuRoom]] = []
    for place in free:
        if blocks and blocks[-1][-1].gpu.index + 1 == place.gpu.index:
            blocks[-1].append(place)
        else:
            blocks.append([place])
    whole = [block for block in blocks if len(block) >= count]
    return min(whole, key=len)[:count] if whole else free[:count]


def nearness(room: Room, spec: DeploymentSpec) -> tuple[int, int]:
    """Order of verdicts: nodes that only lack free GPUs first, then closed ones, then those that never would."""
    if why_unsuited(room, spec) is not None:
        return (2, -len(room.node.gpus))
    if room.closed is not None:
        return (1, -len(room.node.gpus))
    return (0, -len(fitting(room, spec)))


def _is_block(chosen: Sequence[GpuRoom]) -> bool:
    return all(after.gpu.index == before.gpu.index + 1 for before, after in itertools.pairwise(chosen))


def _gpus(count: int) -> str:
    return "no GPU" if count == 0 else "1 GPU" if count == 1 else f"{count} GPUs"
