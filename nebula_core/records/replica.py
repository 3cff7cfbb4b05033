"""One running copy of a model: its phases, and what its agent says of it.

The phase table is the law: an agent may only report a move that stands in it, and the documents draw it from here.

    pending → pulling → creating → loading → ready → draining → stopped
                    any of them → failed → pending (again, after the backoff)
    `lost` is never reported: readers derive it when the node has gone silent.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from nebula_core.records.base import Record
from nebula_core.records.engine_health import EngineHealth, MetricsSchema
from nebula_core.records.found import FoundEngine
from nebula_core.records.ids import DeploymentName, GpuId, NodeName, ReplicaId
from nebula_core.records.sample import EngineSample


class Phase(StrEnum):
    PENDING = "pending"
    PULLING = "pulling"
    CREATING = "creating"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"


STARTING = frozenset({Phase.PENDING, Phase.PULLING, Phase.CREATING, Phase.LOADING})
#: Phases in which a process may hold its GPUs.
OCCUPYING = STARTING | {Phase.READY, Phase.DRAINING, Phase.LOST}

TRANSITIONS: Mapping[Phase, frozenset[Phase]] = MappingProxyType(
    {
        Phase.PENDING: frozenset({Phase.PULLING, Phase.CREATING, Phase.DRAINING, Phase.STOPPED, Phase.FAILED}),
        Phase.PULLING: frozenset({Phase.CREATING, Phase.DRAINING, Phase.STOPPED, Phase.FAILED}),
        Phase.CREATING: frozenset({Phase.LOADING, Phase.DRAINING, Phase.STOPPED, Phase.FAILED}),
        Phase.LOADING: frozenset({Phase.READY, Phase.DRAINING, Phase.STOPPED, Phase.FAILED}),
        Phase.READY: frozenset({Phase.LOADING, Phase.DRAINING, Phase.STOPPED, Phase.FAILED}),
        Phase.DRAINING: frozenset({Phase.READY, Phase.LOADING, Phase.STOPPED, Phase.FAILED}),
        Phase.STOPPED: frozenset({Phase.PENDING}),
        Phase.FAILED: frozenset({Phase.PENDING, Phase.DRAINING, Phase.STOPPED}),
        Phase.LOST: frozenset(),
    }
)


def may_move(current: Phase, following: Phase) -> bool:
    """Whether the table allows the move; staying is always allowed."""
    return current == following or following in TRANSITIONS[current]


class EndpointAddress(Record):
    """Where an engine listens, and the key of this start, sealed so that only the proxies can open it."""

    host: str
    port: int
    #: `nebula_core.security.sealing`: base64; None when the engine takes no key.
    sealed_key: str | None = None
    #: What the engine calls the model, where that is not the name clients send; None: the same.
    served_model: str | None = None


class ReplicaStatus(Record):
    """One replica as its agent sees it."""

    id: ReplicaId
    deployment: DeploymentName
    #: The name clients send in `model`.
    model: str
    node: NodeName
    gpus: tuple[GpuId, ...] = ()
    engine: str
    engine_version: str | None = None
    runtime: str
    image: str | None = None
    #: What the registry calls the content that runs.
    image_digest: str | None = None
    phase: Phase
    phase_reason: str | None = None
    #: Seconds in this phase when the report was made: an age, so that no clocks are compared.
    phase_seconds: float | None = None
    generation: int = 0
    #: Epoch and revision of the placement that is obeyed.
    placement_epoch: int = 0
    placement_revision: int = 0
    endpoint: EndpointAddress | None = None
    #: Changes with every start of the engine: counters and prefix caches of another start say nothing of this one.
    engine_epoch: str | None = None
    pid: int | None = None
    container_id: str | None = None
    #: Unix seconds, for display only.
    started_at: float | None = None
    restarts: int = 0
    managed: bool = True
    simulated: bool = False
    #: How long the start took, once ready.
    load_seconds: float | None = None
    sample: EngineSample | None = None
    #: Age of `sample` in seconds when the report was made.
    sample_age_seconds: float | None = None
    #: Last lines of the last failure, cleaned for a terminal.
    failure_log: tuple[str, ...] = ()
    #: The first failure since it last ran well: often the cause, while later ones are its consequences.
    first_failure_reason: str | None = None
    first_failure_log: tuple[str, ...] = ()
    #: Where on its node the evidence of the last hang lies; None: there was none.
    evidence: str | None = None
    health: EngineHealth | None = None
    metrics_schema: MetricsSchema | None = None
    #: Of an engine that nobody ordered (`managed` is false): what it is, and how it would be taken in.
    found: FoundEngine | None = None
