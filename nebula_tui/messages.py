"""What views say to the screen around them: the thing chosen, and what should be done with it. Messages go up, data down."""

from dataclasses import dataclass
from typing import Literal

from textual.message import Message

from nebula_core.records.views import ReplicaView
from nebula_tui.presenters.fleet import FleetState
from nebula_tui.presenters.plan import Action

Kind = Literal["node", "deployment", "replica", "request", "cluster", "other"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The thing the cursor is on; `name` is its id."""

    kind: Kind
    name: str

    def node(self, fleet: FleetState) -> str | None:
        if self.kind == "node":
            return self.name if self.name in fleet.nodes else None
        replica = fleet.replicas.get(self.name) if self.kind == "replica" else None
        return replica.node if replica is not None else None

    def deployment(self, fleet: FleetState) -> str | None:
        if self.kind == "deployment":
            return self.name if self.name in fleet.deployments else None
        replica = fleet.replicas.get(self.name) if self.kind == "replica" else None
        return replica.deployment if replica is not None and replica.deployment in fleet.deployments else None

    def replicas(self, fleet: FleetState) -> list[ReplicaView]:
        """The replica itself, those of the deployment, or those on the node."""
        match self.kind:
            case "replica":
                found = [fleet.replicas[self.name]] if self.name in fleet.replicas else []
            case "deployment":
                found = fleet.replicas_of(self.name)
            case "node":
                found = fleet.replicas_on(self.name)
            case _:
                found = []
        return sorted(found, key=lambda replica: replica.id)


def selection_of(kind: str, name: str) -> Selection:
    """From the words of events and troubles."""
    match kind:
        case "node":
            return Selection("node", name)
        case "deployment" | "model":
            return Selection("deployment", name)
        case "replica":
            return Selection("replica", name)
        case "request":
            return Selection("request", name)
        case "cluster":
            return Selection("cluster", name)
        case _:
            return Selection("other", name)


class Open(Message):
    """Show this thing where it belongs."""

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self.selection = selection


class Jump(Message):
    """Show a screen, about this thing if there is one."""

    def __init__(self, screen: str, selection: Selection | None = None) -> None:
        super().__init__()
        self.screen = screen
        self.selection = selection


class Told(Message):
    """A short word for the operator; `severity` as in presenters.cells."""

    def __init__(self, text: str, severity: str = "info") -> None:
        super().__init__()
        self.text = text
        self.severity = severity


class HintsChanged(Message):
    """The keys that work now are others."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, HintsChanged)


class Ask(Message):
    """Open the command line in this mode."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode


class ActOn(Message):
    """Plan this and ask before doing it."""

    def __init__(self, action: Action) -> None:
        super().__init__()
        self.action = action
