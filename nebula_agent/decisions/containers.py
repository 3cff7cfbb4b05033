"""Containers of this agent, told by their labels: which replica and start each is, and what is to be done about it.

Labels are how a container is found again by an agent that lost its notes: after its restart, after Docker's, after a
reboot. What they say is checked like anything from outside. Absence is no order: a container that runs and that no kept
order explains is reported, never ended; only what never ran, or doubles a replica that is kept, is cleared away.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from nebula_core.records.base import Record
from nebula_core.records.ids import ReplicaId

PREFIX = "nebula."
NODE, AGENT, REPLICA = f"{PREFIX}node", f"{PREFIX}agent", f"{PREFIX}replica"
EPOCH, DIGEST, GENERATION = f"{PREFIX}engine_epoch", f"{PREFIX}spec_digest", f"{PREFIX}generation"
DEPLOYMENT, ENGINE, SPEC = f"{PREFIX}deployment", f"{PREFIX}engine", f"{PREFIX}spec"
PORT, HOST, GPUS, LOG_FILE = f"{PREFIX}port", f"{PREFIX}host", f"{PREFIX}gpus", f"{PREFIX}log_file"
IMAGE, DIGEST_OF_IMAGE = f"{PREFIX}image", f"{PREFIX}image_digest"


class ContainerState(StrEnum):
    """As Docker says it."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"

    @property
    def alive(self) -> bool:
        """Whether processes of it may hold a GPU."""
        return self in {ContainerState.RUNNING, ContainerState.PAUSED, ContainerState.RESTARTING}


class Container(Record):
    """A container as it was last looked at."""

    id: str
    name: str = ""
    state: ContainerState
    image_id: str = ""
    labels: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    #: Of its first process, on the node; None when it does not run.
    pid: int | None = None
    exit_status: int | None = None
    #: On a bridge of this node; None: it has none of its own.
    address: str | None = None
    #: The reference it was made of.
    image: str = ""
    #: By its own port: the address and port of the node where that is published.
    published: dict[int, tuple[str, int]] = {}  # noqa: RUF012 - pydantic copies it
    #: What of the node it sees, and where: its own path → the node's.
    mounts: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    #: Whether Docker itself starts it again when it ends, or when Docker is restarted.
    restarted_by_docker: bool = False
    oom_killed: bool = False
    #: What Docker says of a start or an end that failed.
    error: str = ""
    #: Unix seconds; None when it never ran.
    started_at: float | None = None


class Labels(Record):
    """What the labels of one of our containers say."""

    replica: ReplicaId
    engine_epoch: str
    digest: str
    host: str = ""
    port: int = 0
    gpus: tuple[str, ...] = ()
    log_file: str = ""
    image: str = ""
    image_digest: str = ""


def read_labels(container: Container, agent: str) -> Labels | None:
    """None: it is not ours, or its labels are not as this agent writes them."""
    found = container.labels
    if found.get(AGENT) != agent:
        return None
    try:
        return Labels(
            replica=found[REPLICA],
            engine_epoch=found[EPOCH],
            digest=found[DIGEST],
            host=found.get(HOST, ""),
            port=int(found.get(PORT, "0")),
            gpus=tuple(filter(None, found.get(GPUS, "").split(","))),
            log_file=found.get(LOG_FILE, ""),
            image=found.get(IMAGE, ""),
            image_digest=found.get(DIGEST_OF_IMAGE, ""),
        )
    except (KeyError, ValueError):
        return None


def name_of(agent: str, replica: str, engine_epoch: str) -> str:
    """The name of one start: found again when the answer to its creation was lost."""
    return f"nebula-{agent[:8]}-{replica}-{engine_epoch}"


@dataclass(frozen=True, slots=True)
class Sorted:
    """What an agent does about the containers it finds when it starts."""

    #: Replica → container of a start that was made and not written down.
    adopted: Mapping[str, Container]
    #: Never ran, or ended and belong to no kept start: cleared away.
    cleared: tuple[Container, ...]
    #: A second one beside the start that is kept: ended.
    doubles: tuple[Container, ...]
    #: Run without any order: reported.
    unexplained: tuple[Container, ...]


def sort_containers(containers: Iterable[Container], agent: str, kept: Mapping[str, str | None]) -> Sorted:
    """`kept`: the engine epoch of the start that is written down, by replica; None: none is."""
    adopted: dict[str, Container] = {}
    cleared: list[Container] = []
    doubles: list[Container] = []
    unexplained: list[Container] = []
    ours = [(container, read_labels(container, agent)) for container in containers]
    # Newest first: of several that were not written down, the last one is the start.
    for container, labels in sorted(ours, key=lambda one: -(one[0].started_at or 0.0)):
        if container.labels.get(AGENT) != agent:
            continue
        if labels is not None and kept.get(labels.replica) == labels.engine_epoch:
            continue
        if not container.state.alive:
            cleared.append(container)
        elif labels is None or labels.replica not in kept:
            unexplained.append(container)
        elif kept[labels.replica] is None and labels.replica not in adopted:
            adopted[labels.replica] = container
        else:
            doubles.append(container)
    return Sorted(adopted, tuple(cleared), tuple(doubles), tuple(unexplained))
