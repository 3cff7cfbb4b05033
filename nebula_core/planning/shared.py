"""What all deployments of one pass share: the view, and the rooms they fill one after another."""

from dataclasses import dataclass, field

from nebula_core.planning.index import ClusterIndex, ReplicaFacts
from nebula_core.planning.policy import PlanPolicy
from nebula_core.planning.rooms import Room, build_room, build_rooms
from nebula_core.records.snapshot import ClusterSnapshot, NodeState


@dataclass(slots=True)
class Shared:
    view: ClusterSnapshot
    index: ClusterIndex
    policy: PlanPolicy
    now: float
    _rooms: dict[str, Room] | None = None
    #: (node, gpus, replica) given away in this pass.
    given: list[tuple[str, tuple[str, ...], str]] = field(default_factory=list)

    @property
    def rooms(self) -> dict[str, Room]:
        """Only a pass that places anything pays for them."""
        if self._rooms is None:
            self._rooms = build_rooms(self.index)
        return self._rooms

    def room_without(self, facts: ReplicaFacts) -> dict[str, Room]:
        """The room of a replica's node, if that replica were gone."""
        if facts.node.node is None:
            return {}
        room = build_room(facts.node, facts.node.node, without=facts.id)
        for node, gpus, taker in self.given:
            if node == facts.node.name:
                room = room.taken(gpus, taker)
        return {facts.node.name: room}

    @property
    def unsettled(self) -> str | None:
        """Why what fits nowhere now may fit in a second; None when waiting would help nothing."""
        if any(node.state is NodeState.SUSPECT for node in self.index.nodes.values()):
            return "a node is silent for a moment"
        for room in self.rooms.values():
            for place in room.free:
                if place.in_use is not None and _is_being_freed(room, place.gpu.id):
                    return f"gpu {place.gpu.index} of {room.node.name} still shows memory of a replica that has left it"
        return None


def _is_being_freed(room: Room, gpu: str) -> bool:
    """Whether all that fills it are replicas of ours which nothing holds there any more: figures follow a stop late."""
    received = room.facts.received
    samples = () if received is None else received.report.gpus
    users = [process.replica for sample in samples if sample.gpu == gpu for process in sample.processes]
    return bool(users) and all(user is not None and user not in room.facts.placements for user in users)
