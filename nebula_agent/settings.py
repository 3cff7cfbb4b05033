"""Settings of nebula-agent: one TOML file, every value also as `NEBULA_AGENT_…` (nested names joined by `__`)."""

import re
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from platformdirs import user_state_path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from nebula_core.records.ids import NodeName
from nebula_core.runtime.settings import NebulaSettings
from nebula_core.store.connection import StoreSettings

Port = Annotated[int, Field(ge=0, le=65535)]
_SIMULATED = re.compile(r"^simulated:(\d{1,3})$")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class EngineSection(_Section):
    """One kind of engine on this node."""

    #: Its program; without it `NEBULA_<KIND>` and PATH are looked at.
    program: Path | None = None
    #: Added to the environment of every start.
    env: dict[str, str] = Field(default_factory=dict)


class EnginesSettings(_Section):
    vllm: EngineSection = EngineSection()
    sglang: EngineSection = EngineSection()
    llamacpp: EngineSection = EngineSection()
    xllm: EngineSection = EngineSection()

    def of(self, kind: str) -> EngineSection:
        """That of a kind; kinds without settings have the defaults."""
        found = getattr(self, kind, None)
        return found if isinstance(found, EngineSection) else EngineSection()


class SimulatedSettings(_Section):
    """The simulated engine."""

    enabled: bool = True
    #: How fast and how big: tiny, h100-8b, h100-70b, instant.
    preset: str = "h100-8b"


class DockerSettings(_Section):
    """Containers on this node. What they may be is said by the policy."""

    #: None: when the socket is there as the agent starts.
    enabled: bool | None = None
    #: `unix:///…` or `tcp://…`; None is `DOCKER_HOST`, else the usual socket.
    host: str | None = None
    #: `bridge` publishes the engine's port alone; `host` needs the policy's word.
    network: str = "bridge"
    #: Shared memory of each container, for engines on several GPUs; only what is used is taken.
    shm_bytes: int = Field(default=16 * 1024**3, ge=1024**2)
    #: Most memory of each container; None is nine tenths of the node's.
    memory_bytes: int | None = Field(default=None, ge=6 * 1024**2)
    #: Most processes and threads of each container.
    pids: int = Field(default=8192, ge=64)
    #: Docker's own copy of an engine's log: so large, so many.
    log_max_bytes: int = Field(default=64 * 1024**2, ge=64 * 1024)
    log_files: int = Field(default=2, ge=1, le=100)
    #: Given back after all capabilities were taken; the policy must name them too.
    capabilities: tuple[str, ...] = ()
    #: `uid:gid` of the engine; None is the image's own user.
    user: Annotated[str, StringConstraints(pattern=r"^\d{1,10}:\d{1,10}$")] | None = None
    host_ipc: bool = False
    #: Ask for unlimited pinned memory where the daemon can give it.
    memlock: bool = True
    #: Where engines keep what they download; None is `cache` in the data folder.
    cache_dir: Path | None = None
    #: TOML with images for `image = "auto"`, before those Nebula comes with.
    catalog_file: Path | None = None
    #: Longest a call to Docker may take.
    call_seconds: float = Field(default=10.0, gt=0)
    #: A pull of which nothing moves for so long is tried again.
    pull_stall_seconds: float = Field(default=30.0, gt=0)


class SidecarSettings(_Section):
    """The engine's container of a pod beside this agent, see deploy/sidecar-entrypoint.sh."""

    #: The volume both share; None: there is no such container.
    directory: Path | None = None
    #: Where its engine listens.
    port: Port = 8000
    #: Programs of engines inside that container, by kind; those left out are found on its PATH by their usual names.
    programs: dict[str, Path] = Field(default_factory=dict)


class S3Settings(_Section):
    """Where `s3:` sources are; what is left out is taken from the agent's environment (`AWS_…`) and botocore's usual places."""

    #: `https://host[:port]`; None is AWS's own.
    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^/\s@]+/?$")] | None = None
    region: str | None = None
    profile: str | None = None
    #: In AWS's own form, mode 0600.
    credentials_file: Path | None = None
    #: Certificates that sign the endpoint's, where the system's do not.
    ca_file: Path | None = None
    #: `endpoint/bucket` instead of `bucket.endpoint`; None: where there is an endpoint.
    path_style: bool | None = None
    #: Ask without credentials, for public buckets.
    anonymous: bool = False


class ModelCacheSettings(_Section):
    """Models that are fetched to this node's disk. Where from is said by the policy."""

    #: False: engines fetch hub ids themselves, and other places cannot be used.
    enabled: bool = True
    #: None is `models` in the data folder.
    dir: Path | None = None
    #: Most bytes of all models together; None: as much as the disk has.
    max_bytes: int | None = Field(default=None, ge=0)
    #: Fill of the disk, 0..1, above which no download leaves it; eviction goes on down to the low one.
    high_watermark: float = Field(default=0.9, gt=0, le=1)
    low_watermark: float = Field(default=0.8, gt=0, le=1)
    #: Downloads at once.
    at_once: int = Field(default=2, ge=1, le=16)
    s3: S3Settings = S3Settings()

    @model_validator(mode="after")
    def _ordered(self) -> "ModelCacheSettings":
        if self.low_watermark > self.high_watermark:
            raise ValueError(f"low_watermark {self.low_watermark} is above high_watermark {self.high_watermark}")
        return self


class MetricsSettings(_Section):
    """`/metrics` and `/healthz` of the agent itself."""

    host: str = "127.0.0.1"
    #: 0 is off.
    port: Port = 0


class HealthSettings(_Section):
    """When a running engine counts as hung. Seconds."""

    #: Requests run and no counter moves: no new request is routed there.
    suspect_seconds: float = Field(default=8.0, gt=0)
    #: And still none moves: the engine is ended and started again.
    frozen_seconds: float = Field(default=30.0, gt=0)
    #: The process lives and answers nothing at all.
    silent_seconds: float = Field(default=60.0, gt=0)
    #: `/health` says no and no token flows.
    unhealthy_seconds: float = Field(default=30.0, gt=0)
    #: An engine that has had nothing to do for so long is asked for one token, and has so long to give it.
    canary_idle_seconds: float = Field(default=60.0, gt=0)
    canary_seconds: float = Field(default=15.0, gt=0)


class DiscoverySettings(_Section):
    """Engines that somebody started by hand, shown as unmanaged."""

    enabled: bool = True


def _default_node() -> str:
    name = re.sub(r"[^a-z0-9.-]+", "-", socket.gethostname().lower()).strip("-.")[:63]
    return name or "node"


class AgentSettings(NebulaSettings):
    """Everything `nebula-agent run` can be told."""

    program_prefix: ClassVar[str] = "NEBULA_AGENT_"

    node: NodeName = Field(default_factory=_default_node)
    store: StoreSettings = StoreSettings()
    #: Under which proxies reach the engines of this node.
    address: str = Field(default="127.0.0.1", min_length=1)
    #: Where engines listen; None is `address` if that is an IP address, else all interfaces.
    listen_host: str | None = None
    #: First and last port that engines may use.
    port_range: tuple[Port, Port] = (20000, 20999)
    data_dir: Path = Field(default_factory=lambda: user_state_path("nebula-agent"))
    #: Public keys of the control plane: a file of base64 lines, or a folder of *.pub.
    verify_keys: Path | None = None
    #: The proxies' public key, for the keys of engines: a file with base64, or the base64 itself.
    sealing_public_key: str | None = None
    #: `auto` (every maker found), `nvidia`, `ascend`, `amd`, `none`, or `simulated:N`.
    gpus: str = "auto"
    #: Where the kernel's log is read for the NVIDIA driver's Xid errors.
    kernel_log: Path = Path("/dev/kmsg")
    labels: dict[str, str] = Field(default_factory=dict)
    #: Most replicas without a GPU at once; None is no limit.
    cpu_slots: int | None = Field(default=None, ge=0)
    engines: EnginesSettings = EnginesSettings()
    simulated: SimulatedSettings = SimulatedSettings()
    policy_file: Path | None = None
    docker: DockerSettings = DockerSettings()
    model_cache: ModelCacheSettings = ModelCacheSettings()
    sidecar: SidecarSettings = SidecarSettings()
    #: SIGTERM stops the engines too (`nebula up`); else they go on and are adopted by the next agent.
    stop_engines: bool = False
    #: From SIGTERM to SIGKILL of an engine.
    term_seconds: float = Field(default=10.0, gt=0)
    health: HealthSettings = HealthSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    metrics: MetricsSettings = MetricsSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("gpus")
    @classmethod
    def _known_gpus(cls, value: str) -> str:
        if value not in {"auto", "nvidia", "ascend", "amd", "none"} and _SIMULATED.match(value) is None:
            raise ValueError(f'{value!r} is not "auto", "nvidia", "ascend", "amd", "none" or "simulated:N"')
        return value

    @model_validator(mode="after")
    def _ordered_ports(self) -> "AgentSettings":
        low, high = self.port_range
        if low < 1 or low > high:
            raise ValueError(f"port_range is [{low}, {high}]: the first port must be above 0 and not above the last")
        return self

    @property
    def simulated_gpus(self) -> int | None:
        """How many simulated GPUs; None: real ones or none."""
        found = _SIMULATED.match(self.gpus)
        return None if found is None else int(found[1])

    @property
    def engine_host(self) -> str:
        """What engines bind to."""
        if self.listen_host is not None:
            return self.listen_host
        try:
            ip_address(self.address)
        except ValueError:
            return "127.0.0.1" if self.address == "localhost" else "0.0.0.0"
        return self.address
