"""What the Control API answers: joined from the records for people and scripts (CONTRACT, 4).

The TUI and the CLI know the cluster only through these. Ages are seconds at the moment of the answer.
"""

from typing import Generic, Literal, TypeVar

from pydantic import Field

from nebula_core.records.access import KeyLimits
from nebula_core.records.base import Record
from nebula_core.records.command import CommandArgument, CommandState
from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.engine_health import EngineHealth, MetricsSchema
from nebula_core.records.event import Event
from nebula_core.records.found import FoundEngine
from nebula_core.records.inflight import RequestPhase
from nebula_core.records.node import DrainIntent
from nebula_core.records.plan import Plan, PlannedFetch
from nebula_core.records.replica import EndpointAddress, Phase
from nebula_core.records.report import (
    CachedModel,
    ImagePull,
    ModelCacheFacts,
    ModelFetch,
    ModelTraffic,
    NodeImage,
    Problem,
)
from nebula_core.records.sample import EngineSample, GpuSample, HostSample
from nebula_core.records.store_memory import StoreDoubt

Item = TypeVar("Item")


class Page(Record, Generic[Item]):
    """`next` is the cursor of the following page, None on the last."""

    items: tuple[Item, ...]
    next: str | None = None


class GpuView(Record):
    """A GPU with what it does and who has it."""

    id: str
    index: int
    name: str
    memory_total_bytes: int | None = None
    simulated: bool = False
    cordoned: bool = False
    sample: GpuSample | None = None
    replica: str | None = None


class NodeView(Record):
    id: str
    agent_pid: int | None = None
    version: str | None = None
    hostname: str | None = None
    address: str | None = None
    state: Literal["ready", "suspect", "lost"]
    cordoned: bool = False
    draining: bool = False
    drain: DrainIntent | None = None
    heartbeat_age_seconds: float | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    gpus: tuple[GpuView, ...] = ()
    host: HostSample = HostSample()
    driver_version: str | None = None
    engines: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    replicas: tuple[str, ...] = ()
    simulated: bool = False
    #: Difference of the node's clock to the control process in seconds at the last report, to be seen, not used.
    clock_skew_seconds: float | None = None


class ReplicaView(Record):
    id: str
    deployment: str
    model: str
    node: str
    gpus: tuple[str, ...] = ()
    gpu_indexes: tuple[int, ...] = ()
    engine: str
    engine_version: str | None = None
    runtime: str | None = None
    image: str | None = None
    phase: Phase
    phase_reason: str | None = None
    phase_seconds: float | None = None
    #: What its placement asks: run, drain, stop; None when it has no placement.
    wanted: str | None = None
    generation: int = 0
    endpoint: EndpointAddress | None = None
    pid: int | None = None
    container_id: str | None = None
    started_at: float | None = None
    restarts: int = 0
    managed: bool = True
    simulated: bool = False
    #: Open requests over all proxies.
    inflight: int = 0
    sample: EngineSample | None = None
    sample_age_seconds: float | None = None
    load_seconds: float | None = None
    failure_log: tuple[str, ...] = ()
    first_failure_reason: str | None = None
    first_failure_log: tuple[str, ...] = ()
    evidence: str | None = None
    health: EngineHealth | None = None
    metrics_schema: MetricsSchema | None = None
    #: Of an unmanaged engine: what it is, and whether it can be taken in.
    found: FoundEngine | None = None
    #: Proxies that put it out of routing, with their reason.
    ejected: dict[str, str] = Field(default_factory=dict)


class DeploymentView(Record):
    name: str
    generation: int
    spec: DeploymentSpec
    replicas_wanted: int
    replicas_ready: int
    replicas_starting: int
    #: One line: "ready", "starting 1", "blocked: needs 2 GPUs, …".
    status: str
    #: Why the missing replicas are missing, from the last pass of the planner.
    reasons: tuple[str, ...] = ()
    updated_by: str | None = None
    updated_at: float | None = None
    simulated: bool = False
    traffic: ModelTraffic | None = None


class ProxyView(Record):
    id: str
    pid: int
    version: str
    heartbeat_age_seconds: float
    inflight: int
    connections: int
    draining: bool = False


class ClusterView(Record):
    """The whole at a glance; also the head of the watch."""

    version: str
    revision: int
    incarnation: str
    leader: str | None = None
    epoch: int | None = None
    store_reachable: bool
    snapshot_age_seconds: float
    brake: str | None = None
    #: The store came back empty or older than it was: changes are refused until that is settled (`nebula adopt --store`).
    store_doubt: StoreDoubt | None = None
    proxies: tuple[ProxyView, ...] = ()
    simulated: bool = False
    control_pid: int | None = None
    #: Where clients send their requests; None when nobody told the control process.
    openai_base_url: str | None = None


class LeaderView(Record):
    """Who plans; `here` when it is the process that answers."""

    holder: str | None = None
    epoch: int | None = None
    here: bool = False
    brake: str | None = None


class KeyView(KeyLimits):
    """An API key without anything that could be used."""

    id: str
    name: str
    role: str
    models: tuple[str, ...] | None = None
    created_at: float
    created_by: str
    expires_at: float | None = None
    revoked: bool = False


class NewKey(Record):
    """The only time the key itself is shown."""

    key: str | None
    record: KeyView


class WhoAmI(Record):
    name: str
    role: str
    key_id: str


class PlanView(Record):
    """The answer to every mutating call: what will be done (`dry_run`) or is being done."""

    dry_run: bool
    summary: str
    plan: Plan
    deployment: DeploymentView | None = None
    #: Open requests on replicas that would stop or move.
    inflight_affected: int = 0
    #: The last ready replica of a model would go: dialogs ask for the name.
    last_ready: bool = False
    #: Seconds until new replicas are ready, from the latest loads of this deployment; None when never loaded.
    #: What has to be fetched first comes before that.
    estimated_ready_seconds: float | None = None
    #: What has to come to the nodes' disks first.
    fetches: tuple[PlannedFetch, ...] = ()


class AdoptedDeployment(Record):
    name: str
    generation: int
    replicas: int


class AdoptedReplica(Record):
    id: str
    node: str
    deployment: str
    #: What its order asks: run, drain, stop.
    wanted: str


class AdoptedKey(Record):
    id: str
    name: str
    role: str
    revoked: bool = False


class AdoptNote(Record):
    """Something to look at before a store is adopted. `object` is `kind/name`."""

    object: str
    message: str


class StoreAdoptView(PlanView):
    """What a store in doubt is given back; `plan` is what the planner does next."""

    #: None: it is not in doubt, and nothing is written.
    doubt: StoreDoubt | None = None
    #: Whose word counts where the nodes have none, and its age.
    base: str | None = None
    base_age_seconds: float | None = None
    deployments: tuple[AdoptedDeployment, ...] = ()
    replicas: tuple[AdoptedReplica, ...] = ()
    keys: tuple[AdoptedKey, ...] = ()
    #: Nodes of which it is known what operators want: cordons, drains.
    intents: tuple[str, ...] = ()
    notes: tuple[AdoptNote, ...] = ()
    #: They do not answer: what they hold is known only as far as the base knows it.
    silent_nodes: tuple[str, ...] = ()
    #: Of all the above; sent back with the order, nothing else is written than what was looked at.
    digest: str | None = None


class RequestView(Record):
    """A request that is open (`state` is its phase) or has ended; what is not known of it is None."""

    id: str
    proxy: str
    state: RequestPhase | Literal["ended"]
    stalled: Literal["engine", "client"] | None = None
    outcome: str | None = None
    status: int | None = None
    model: str | None = None
    replica: str | None = None
    path: str
    stream: bool = False
    key_id: str | None = None
    key_name: str | None = None
    client: str | None = None
    #: Unix seconds of its arrival, of one that has ended.
    at: float | None = None
    #: Since its arrival; of one that has ended, the whole duration.
    age_seconds: float | None = None
    wait_seconds: float | None = None
    ttft_seconds: float | None = None
    silent_seconds: float | None = None
    prompt_tokens: int | None = None
    #: Of the answer; while it is open, events of the stream so far.
    tokens: int | None = None
    tokens_per_second: float | None = None
    request_bytes: int | None = None
    sent_bytes: int | None = None
    attempts: int = 0
    resumes: int = 0
    kept_because: str | None = None
    #: Cursor of a recorded one.
    entry: str | None = None


class RequestsPage(Record):
    """What is open over all proxies, the oldest first, then what was recorded, the newest first."""

    items: tuple[RequestView, ...] = ()
    #: Cursor of older recorded ones.
    next: str | None = None
    #: Open in all proxies that answered, by phase; `shown` of them are known one by one, `stalled` counts those.
    inflight: int = 0
    waiting: int = 0
    prefill: int = 0
    streaming: int = 0
    running: int = 0
    stalled: int = 0
    shown: int = 0
    #: Proxies that did not answer.
    silent: tuple[str, ...] = ()


class LogLine(Record):
    """`at` is Unix seconds; `gap` counts lines that were left out just before this one."""

    at: float
    source: str
    text: str
    stream: Literal["stdout", "stderr", "agent"] = "stdout"
    gap: int = 0
    id: str | None = None


class WatchSnapshot(Record):
    """First message of `/watch` (SSE event `snapshot`)."""

    cluster: ClusterView
    nodes: tuple[NodeView, ...] = ()
    deployments: tuple[DeploymentView, ...] = ()
    replicas: tuple[ReplicaView, ...] = ()
    events: tuple[Event, ...] = ()


class WatchDelta(Record):
    """Every following message (SSE event `delta`): whole views of what changed, ids of what is gone, new events."""

    cluster: ClusterView | None = None
    nodes: tuple[NodeView, ...] = ()
    deployments: tuple[DeploymentView, ...] = ()
    replicas: tuple[ReplicaView, ...] = ()
    gone_nodes: tuple[str, ...] = ()
    gone_deployments: tuple[str, ...] = ()
    gone_replicas: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()


class ErrorBody(Record):
    """The one error shape of both APIs (OpenAI's envelope with an origin)."""

    message: str
    type: str
    code: str
    param: str | None = None
    origin: Literal["nebula", "engine"] = "nebula"
    hint: str | None = None


class OperationPart(Record):
    """One node's share of a long piece of work."""

    node: str
    state: CommandState
    message: str = ""
    hint: str | None = None
    #: 0..1; None is unknown.
    progress: float | None = None
    facts: dict[str, CommandArgument] = Field(default_factory=dict)


class OperationView(Record):
    """Work that takes its time: asked for by one call, carried out by nodes; kept for an hour."""

    #: None: nothing was begun (`dry_run`).
    id: str | None = None
    kind: str
    summary: str = ""
    #: `running` while any part is under way; else `failed` when any part is, else `done`.
    state: Literal["running", "done", "failed"] = "running"
    #: The mean over its parts; None is unknown.
    progress: float | None = None
    by: str = ""
    at: float | None = None
    parts: tuple[OperationPart, ...] = ()
    dry_run: bool = False


class NodeCacheView(Record):
    """The models on one node's disk, and those on their way there."""

    node: str
    #: Seconds since the node said so.
    age_seconds: float | None = None
    models: tuple[CachedModel, ...] = ()
    fetches: tuple[ModelFetch, ...] = ()
    room: ModelCacheFacts | None = None


class NodeImagesView(Record):
    """The images of one node, and those on their way there."""

    node: str
    #: Seconds since the node said so.
    age_seconds: float | None = None
    images: tuple[NodeImage, ...] = ()
    pulls: tuple[ImagePull, ...] = ()
