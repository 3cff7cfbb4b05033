"""The decision: this replica, on this node, on these GPUs. Signed for one node; it is state and does not expire.

Absence is never an order: a replica stops only by a placement that says so. Its life is
`run` → `drain` (out of routing, streams go on) → `stop` (all proxies acknowledged, nothing in flight, or the
deadline passed) → removed by the leader once the agent reports it stopped.
"""

from enum import StrEnum

from pydantic import Field

from nebula_core.records.adoption import AdoptTarget
from nebula_core.records.base import Record
from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.ids import DeploymentName, GpuId, NodeName, ReplicaId

#: The store's scripts count in doubles. No cluster comes near these, so a report above one is broken or forged.
HIGHEST_CREDIBLE_EPOCH = 1 << 40
HIGHEST_CREDIBLE_REVISION = 1 << 50


class Wanted(StrEnum):
    """What a placement asks of the agent."""

    RUN = "run"
    DRAIN = "drain"
    STOP = "stop"


class Placement(Record):
    replica: ReplicaId
    deployment: DeploymentName
    node: NodeName
    gpus: tuple[GpuId, ...] = ()
    wanted: Wanted = Wanted.RUN
    generation: int
    restart_nonce: int = 0
    #: The spec of that generation: all the agent needs to start the engine.
    spec: DeploymentSpec
    #: The leader that decided, and the revision of the cluster it had seen. (epoch, revision) only rises per replica.
    epoch: int = Field(ge=0)
    revision: int = Field(ge=0)
    reason: str = ""
    #: For an external engine: the one of its deployment's addresses that this replica stands for.
    address: str | None = None
    #: It begins with an engine that runs already, and is not started; when that ends, it is started as `spec` says.
    adopt: AdoptTarget | None = None

    @property
    def order(self) -> tuple[int, int]:
        return (self.epoch, self.revision)


class SignedPlacement(Record):
    """`payload` is a Placement's JSON, byte for byte what was signed (Ed25519, base64)."""

    payload: str
    key_id: str
    signature: str
