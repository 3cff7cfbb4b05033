"""Desired state of one model, as operators write it (CONTRACT, 6)."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from nebula_core.records.adoption import Adoption
from nebula_core.records.base import Record
from nebula_core.records.ids import DeploymentName, ReplicaId

EngineKind = Literal["vllm", "sglang", "llamacpp", "xllm", "simulated", "external"]
RuntimeKind = Literal["auto", "docker", "process", "sidecar", "external"]
ArgValue = str | int | float | bool


_ADDRESS = re.compile(r"http://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})/?")


def why_no_address(address: str) -> str | None:
    """Why this is not `http://host:port`, in words; None: it is."""
    if address.startswith("https://"):
        return "engines are reached over plain HTTP inside the cluster; put what ends TLS before the proxy"
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return "write http://host:port, without a path"
    return None if 0 < int(found.group(1)) < 65536 else "there is no such port"


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

    #: What clients send in `model`: a name of its own among deployments and adapters.
    name: DeploymentName
    source: str = Field(min_length=1, max_length=1024)


class Limits(Record):
    """When a replica counts as full: saturation = max(waiting/bound, KV/limit, in-flight/max) (CONTRACT, 3).

    And what happens then: how many requests may wait for it, and how long.
    """

    #: Requests that may wait inside the engine.
    waiting: int = Field(default=8, ge=1)
    kv_cache_usage: float = Field(default=0.95, gt=0, le=1)
    #: Requests open at once per replica, over all proxies.
    inflight: int = Field(default=256, ge=1)
    #: Requests that may wait in each proxy worker while every replica is full; None is the proxy's setting, 0 is none.
    room: int | None = Field(default=None, ge=0, le=100_000)
    #: Longest such a wait; None is the proxy's setting.
    wait_seconds: float | None = Field(default=None, ge=0, le=3600)


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
    #: What a tag means: the content it named when this replica was placed, or whatever it names at each start.
    image_tag: Literal["pinned", "rolling"] = "pinned"
    placement: PlacementRules = PlacementRules()
    adapters: tuple[Adapter, ...] = ()
    on_node_lost: Literal["replace", "keep"] = "replace"
    strategy: str | None = None
    limits: Limits = Limits()
    #: Mid-stream resume on another replica.
    resume: bool = True
    start_deadline_seconds: float = Field(default=300.0, gt=0)
    drain_grace_seconds: float = Field(default=600.0, ge=0)

    @field_validator("adapters")
    @classmethod
    def _adapters_by_name(cls, adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
        names = [adapter.name for adapter in adapters]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"adapters: {double[0]!r} stands there twice; give each a name of its own")
        return adapters

    @field_validator("source", mode="before")
    @classmethod
    def _joined(cls, source: object) -> object:
        """A list of addresses, as an external engine may have one per replica, is kept as one line."""
        return (
            " ".join(source) if isinstance(source, list) and all(isinstance(each, str) for each in source) else source
        )

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of an external engine: one per replica."""
        return tuple(self.source.split()) if self.engine == "external" else ()

    @model_validator(mode="after")
    def _addressed(self) -> "DeploymentSpec":
        if self.engine != "external":
            return self
        for address in self.addresses:
            reason = why_no_address(address)
            if reason is not None:
                raise ValueError(f"source {address!r} is no address of an engine: {reason}")
        if len(set(self.addresses)) != len(self.addresses):
            raise ValueError("source names an address twice")
        if self.replicas > len(self.addresses) or self.autoscale is not None:
            raise ValueError(
                f"source has {len(self.addresses)} address(es) for {self.replicas} replicas: name one per replica"
            )
        return self

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
    #: Engines started by hand that are to be its replicas.
    adoptions: tuple[Adoption, ...] = ()
