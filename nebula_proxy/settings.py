"""Settings of nebula-proxy: one TOML file, every value also as `NEBULA_PROXY_…` (nested names joined by `__`)."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from nebula_core.runtime.settings import NebulaSettings
from nebula_core.store.connection import StoreSettings
from nebula_proxy.decisions.parameters import ParameterLimits
from nebula_proxy.decisions.prefix_index import MOST_ENTRIES
from nebula_proxy.decisions.sampling import Sampling
from nebula_proxy.decisions.strategies import DEFAULT_STRATEGY
from nebula_proxy.traffic.plane import Limits
from nebula_proxy.traffic.waiting_room import RoomLimits

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


class RecordSettings(_Section):
    """Which requests leave a record for `why`; counts are per second and worker."""

    #: Share of ordinary requests; errors, retries, resumes and slow ones are always kept, up to `most`.
    ratio: float = Field(default=0.05, ge=0, le=1)
    #: Ordinary requests kept whatever the share says: a quiet proxy records all.
    floor: int = Field(default=5, ge=0, le=1000)
    most: int = Field(default=50, ge=0, le=1000)
    #: Of `most`, requests that were turned away before any replica was tried.
    most_rejected: int = Field(default=10, ge=0, le=1000)
    #: To the first token of a stream, or the whole of a plain answer.
    slow_seconds: float = Field(default=10.0, gt=0)

    def plain(self) -> Sampling:
        return Sampling(**self.model_dump())


class WaitingSettings(_Section):
    """The waiting room, for requests that find every replica full; a deployment's `limits` may say otherwise."""

    #: Requests that may wait, per model and worker; 0 turns away at once.
    places: int = Field(default=128, ge=0, le=100_000)
    #: Bytes of bodies that may be held by those who wait, over all models of a worker.
    held_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    #: Longest wait; a client may ask for less with `x-nebula-wait`.
    seconds: float = Field(default=10.0, ge=0, le=3600)
    #: Longest wait for a model of which no replica is ready and one is starting.
    starting_seconds: float = Field(default=5.0, ge=0, le=3600)

    def plain(self) -> RoomLimits:
        return RoomLimits(**self.model_dump())


class TraceSettings(_Section):
    """Traces by OTLP over HTTP; needs the extra `otel`. OpenTelemetry's own variables (`OTEL_…`) hold as well."""

    #: Base address of a collector, e.g. `http://127.0.0.1:4318`; `/v1/traces` is added.
    endpoint: str | None = None
    #: Share of the requests whose caller did not decide; those of a caller follow it.
    ratio: float = Field(default=1.0, ge=0, le=1)


class ParameterSettings(_Section):
    """The most a request may ask of an engine; 0 forbids a parameter."""

    #: `n` and `best_of`.
    max_choices: int = Field(default=8, ge=0)
    #: `logprobs`, `top_logprobs`, `prompt_logprobs`.
    max_logprobs: int = Field(default=20, ge=0)
    #: Entries of `stop`.
    max_stops: int = Field(default=16, ge=0)
    max_messages: int = Field(default=4096, ge=0)
    max_json_depth: int = Field(default=64, ge=4)
    #: Length of a regular expression or grammar for structured output, in bytes.
    max_pattern_bytes: int = Field(default=4096, ge=0)
    #: On: a client's `chat_template`, a program, runs on the engine.
    allow_chat_template: bool = False

    def plain(self) -> ParameterLimits:
        return ParameterLimits(**self.model_dump())


class GuardSettings(_Section):
    """When a worker turns new requests away to save those it has (`decisions/overload_guard`); counts are per worker."""

    #: Open connections of clients; beyond it they are closed as they come. None: what the limit on open files allows.
    max_connections: int | None = Field(default=None, ge=1)
    #: Of one address. Behind a load balancer all come from its address: set it high, or leave it to the balancer.
    max_connections_per_client: int | None = Field(default=4096, ge=1)
    #: Resident memory of one worker; None: the limit of its control group, where there is one.
    memory_limit_bytes: int | None = Field(default=None, ge=64 * 1024 * 1024)
    #: A loop that is later than this three seconds in a row takes no new requests; None: never.
    loop_lag_seconds: float | None = Field(default=0.25, gt=0)


class RoutingSettings(_Section):
    """How the data plane chooses replicas."""

    #: For deployments that name none: `prefix_cache_aware`, `least_pending`, `least_kv_cache`, `session_affinity`, a plug-in's.
    default_strategy: str = DEFAULT_STRATEGY
    #: Entries of the prefix indexes of all models, per worker: about 110 bytes each, 43 for a prompt of 32,000 tokens.
    prefix_entries: int = Field(default=MOST_ENTRIES, ge=0, le=10_000_000)
    #: Off: what is known of one key's prompts says nothing about another's. Engines share all the same.
    prefixes_shared: bool = True


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
    #: A worker that starts while the store is silent routes by the snapshot in `data_dir` unless it is older; 0 keeps none.
    snapshot_max_age_seconds: float = Field(default=24 * 3600.0, ge=0)
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
    #: After SIGTERM the port stays open for so long while `/readyz` says no: for a load balancer that must notice first.
    lame_duck_seconds: float = Field(default=0.0, ge=0, le=300)
    limits: LimitSettings = LimitSettings()
    guards: GuardSettings = GuardSettings()
    parameters: ParameterSettings = ParameterSettings()
    #: Web pages (`https://host`) whose scripts may call the data plane; `*` is every page. A page can spend its user's key.
    allowed_origins: tuple[str, ...] = ()
    records: RecordSettings = RecordSettings()
    traces: TraceSettings = TraceSettings()
    routing: RoutingSettings = RoutingSettings()
    waiting: WaitingSettings = WaitingSettings()
