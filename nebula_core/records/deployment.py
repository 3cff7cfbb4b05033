"""Desired state of one model, as operators write it (CONTRACT, 6)."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from nebula_core.records.base import Record
from nebula_core.records.ids import DeploymentName, ReplicaId

EngineKind = Literal["vllm", "sglang", "llamacpp", "simulated", "external"]
RuntimeKind = Literal["auto", "docker", "process", "sidecar", "external"]
ArgValue = str | int | float | bool


class Autoscale(Record):
    min: int = Field(ge=0)
    max: int = Field(ge=1)
    #: Fill of the KV cache to aim at.
    target_kv_cache_usage: float = Field(default=0.8, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Autoscale":
        if self.min > self.max:
            raise ValueError(f"autoscale.min is {self.min}, above autoscale.max {self.max}")
        return self


class PlacementRules(Record):
    #: A node must carry all of these.
    labels: dict[str, str] = Field(default_factory=dict)
    spread: bool = True
    prefer_cached: bool = True


class Adapter(Record):
    """A LoRA adapter, routed as a model of its own."""

    name: str
    source: str


class Limits(Record):
    """When a replica counts as full: saturation = max(waiting/bound, KV/limit, in-flight/max) (CONTRACT, 3)."""

    #: Requests that may wait inside the engine.
    waiting: int = Field(default=8, ge=1)
    kv_cache_usage: float = Field(default=0.95, gt=0, le=1)
    #: Requests open at once per replica, over all proxies.
    inflight: int = Field(default=256, ge=1)


class DeploymentSpec(Record):
    """What an operator writes; everything that, when changed, makes a new generation."""

    source: str = Field(min_length=1, max_length=1024)
    engine: EngineKind = "vllm"
    runtime: RuntimeKind = "auto"
    replicas: int = Field(default=1, ge=0, le=10_000)
    autoscale: Autoscale | None = None
    gpus: int = Field(default=1, ge=0, le=1024)
    #: Memory one GPU must have free; None asks for a whole GPU whatever its size.
    gpu_memory_bytes: int | None = Field(default=None, ge=0)
    args: dict[str, ArgValue] = Field(default_factory=dict)
    image: str = "auto"
    placement: PlacementRules = PlacementRules()
    adapters: tuple[Adapter, ...] = ()
    on_node_lost: Literal["replace", "keep"] = "replace"
    strategy: str | None = None
    limits: Limits = Limits()
    #: Mid-stream resume on another replica.
    resume: bool = True
    start_deadline_seconds: float = Field(default=300.0, gt=0)
    drain_grace_seconds: float = Field(default=600.0, ge=0)

    @field_validator("args")
    @classmethod
    def _plain_args(cls, args: dict[str, ArgValue]) -> dict[str, ArgValue]:
        for name in args:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("-"):
                raise ValueError(f"args.{name!r} is not an option name; write it without leading dashes")
        return args


class Move(Record):
    """An operator wants this replica replaced by another, on whatever place is best."""

    replica: ReplicaId
    #: The deployment's generation with this order: it means placements made before, never a later one of that id.
    generation: int
    reason: str


class Deployment(Record):
    """A spec with its name and version. `generation` is raised by the Control API on every change of the spec."""

    name: DeploymentName
    generation: int = Field(ge=1)
    spec: DeploymentSpec
    #: Raised by `restart`: replicas of a smaller value are replaced one by one.
    restart_nonce: int = 0
    updated_by: str | None = None
    #: Unix seconds, for display.
    updated_at: float | None = None
    #: The specs before this one, newest first, for `undo` and `rollback`.
    history: tuple[DeploymentSpec, ...] = ()
    moves: tuple[Move, ...] = ()
