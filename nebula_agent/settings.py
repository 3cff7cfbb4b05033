"""Settings of nebula-agent: one TOML file, every value also as `NEBULA_AGENT_…` (nested names joined by `__`)."""

import re
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from platformdirs import user_state_path
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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

    def of(self, kind: str) -> EngineSection:
        """That of a kind; kinds without settings have the defaults."""
        found = getattr(self, kind, None)
        return found if isinstance(found, EngineSection) else EngineSection()


class SimulatedSettings(_Section):
    """The simulated engine."""

    enabled: bool = True
    #: How fast and how big: tiny, h100-8b, h100-70b, instant.
    preset: str = "h100-8b"


class MetricsSettings(_Section):
    """`/metrics` and `/healthz` of the agent itself."""

    host: str = "127.0.0.1"
    #: 0 is off.
    port: Port = 0


class HealthSettings(_Section):
    """When a running engine counts as hung. Seconds."""

    #: Requests run and no counter moves.
    frozen_seconds: float = Field(default=30.0, gt=0)
    #: The process lives and answers nothing at all.
    silent_seconds: float = Field(default=60.0, gt=0)
    #: `/health` says no and no token flows.
    unhealthy_seconds: float = Field(default=30.0, gt=0)


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
    #: `auto` (NVML), `none`, or `simulated:N`.
    gpus: str = "auto"
    labels: dict[str, str] = Field(default_factory=dict)
    #: Most replicas without a GPU at once; None is no limit.
    cpu_slots: int | None = Field(default=None, ge=0)
    engines: EnginesSettings = EnginesSettings()
    simulated: SimulatedSettings = SimulatedSettings()
    policy_file: Path | None = None
    #: SIGTERM stops the engines too (`nebula up`); else they go on and are adopted by the next agent.
    stop_engines: bool = False
    #: From SIGTERM to SIGKILL of an engine.
    term_seconds: float = Field(default=10.0, gt=0)
    health: HealthSettings = HealthSettings()
    metrics: MetricsSettings = MetricsSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("gpus")
    @classmethod
    def _known_gpus(cls, value: str) -> str:
        if value not in {"auto", "none"} and _SIMULATED.match(value) is None:
            raise ValueError(f'{value!r} is not "auto", "none" or "simulated:N"')
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
