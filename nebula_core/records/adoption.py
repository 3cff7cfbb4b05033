"""The order to take in an engine that somebody started by hand: which one is meant, and on which place."""

from pydantic import Field

from nebula_core.records.base import Record
from nebula_core.records.ids import GpuId, NodeName, ReplicaId


class AdoptTarget(Record):
    """Which engine a placement takes in. The agent obeys only where it sees exactly this one now."""

    #: The id under which it was reported as unmanaged.
    found: ReplicaId
    pid: int = Field(ge=1)
    pid_born: float
    container_id: str | None = None
    #: How its node reaches it.
    host: str
    port: int = Field(ge=1, le=65535)
    #: What it calls the model.
    served_model: str = Field(min_length=1, max_length=1024)


class Adoption(Record):
    """An operator wants this engine to be a replica of the deployment, as it runs."""

    node: NodeName
    gpus: tuple[GpuId, ...] = ()
    target: AdoptTarget
    #: The deployment's generation with this order: as long as engines are started as they were then.
    generation: int = Field(ge=1)
