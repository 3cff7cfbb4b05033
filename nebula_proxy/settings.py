"""Settings of nebula-proxy: one TOML file, every value also as `NEBULA_PROXY_…` (nested names joined by `__`)."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from nebula_core.runtime.settings import NebulaSettings
from nebula_core.store.connection import StoreSettings
from nebula_proxy.traffic.plane import Limits

Port = int


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ControlSettings(_Section):
    """The control process: Control API and planner."""

    host: str = "127.0.0.1"
    port: Port = Field(default=8082, ge=0, le=65535)
    #: Ed25519 private key for placements; only this process reads it.
    signing_key_file: Path | None = None
    #: Names under which this Control API is reached, beside those of loopback and `host`.
    allowed_hosts: tuple[str, ...] = ()
    #: Web pages (`https://host`) that may call it; a browser's request from any other is refused.
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)


class LimitSettings(_Section):
    """Bounds of the data plane. Seconds and bytes."""

    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    header_seconds: float = Field(default=10.0, gt=0)
    #: A body must come at `body_bytes_per_second` after this grace.
    body_grace_seconds: float = Field(default=5.0, gt=0)
    body_bytes_per_second: float = Field(default=1024.0, gt=0)
    #: Keep it above the idle time of a load balancer in front.
    idle_seconds: float = Field(default=65.0, gt=0)
    #: A client that takes nothing for so long is dropped.
    write_seconds: float = Field(default=30.0, gt=0)
    connect_seconds: float = Field(default=1.0, gt=0)
    #: For a plain answer this is the whole time of generation.
    first_byte_seconds: float = Field(default=600.0, gt=0)
    #: Longest silence between two events of a stream.
    gap_seconds: float = Field(default=120.0, gt=0)
    #: Plain answers up to this size are held back until complete.
    hold_bytes: int = Field(default=1024 * 1024, ge=0)
    event_bytes: int = Field(default=1024 * 1024, ge=1024)

    def plain(self) -> Limits:
        return Limits(**self.model_dump())


class ProxySettings(NebulaSettings):
    """Everything `nebula-proxy run` can be told."""

    program_prefix: ClassVar[str] = "NEBULA_PROXY_"

    store: StoreSettings = StoreSettings()
    host: str = "127.0.0.1"
    port: Port = Field(default=8081, ge=0, le=65535)
    #: Data-plane processes that share the port.
    workers: int = Field(default=1, ge=1, le=64)
    control: ControlSettings = ControlSettings()
    data_dir: Path | None = None
    #: X25519 private key that opens the keys of engines; None reaches only engines without a key.
    sealing_key_file: Path | None = None
    #: Address under which clients reach the data plane, as shown to people.
    public_url: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: One line per request on stderr.
    request_log: bool = True
    #: Off: whoever reaches the port may use every model. For a closed machine only.
    require_auth: bool = True
    #: Off: inference calls go through the plain ASGI route (slower; the oracle of the tests).
    hot_path: bool = True
    #: After SIGTERM open streams may go on for so long.
    drain_seconds: float = Field(default=600.0, ge=0)
    limits: LimitSettings = LimitSettings()
