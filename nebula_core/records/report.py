"""What one process says of itself: the full report (latest wins, with a TTL) and the compact one of each second.

Freshness is judged by the reader's monotonic time of receipt, never by comparing clocks.
"""

from pydantic import Field

from nebula_core.records.base import Record
from nebula_core.records.ids import NodeName
from nebula_core.records.replica import ReplicaStatus
from nebula_core.records.sample import GpuSample, HostSample


class Problem(Record):
    """Something on a node that an operator should know; `hint` is the next step."""

    code: str
    message: str
    severity: str = "warn"
    hint: str | None = None


class NodeReport(Record):
    """Everything an agent knows: set on change and every few seconds."""

    node: NodeName
    boot_id: str
    #: Rises by one per report or compact report of this agent process.
    sequence: int
    agent_pid: int
    version: str
    #: Unix seconds of the node, to see skew; never used for freshness.
    at: float
    host: HostSample = HostSample()
    gpus: tuple[GpuSample, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
    problems: tuple[Problem, ...] = ()
    #: Highest leader epoch obeyed, kept on the node's disk.
    max_epoch: int = 0
    simulated: bool = False
    #: The agent is going away on purpose and leaves its engines running.
    leaving: bool = False


#: (utilization 0..1, memory used bytes, Celsius, watts) in the order of the report's GPUs.
GpuDelta = tuple[float | None, int | None, float | None, float | None]


class ReplicaDelta(Record):
    """What routing and the dashboards need each second; everything else stands in the last full report."""

    id: str
    phase: str
    running: int | None = None
    waiting: int | None = None
    kv: float | None = None
    generation_rate: float | None = None
    prompt_rate: float | None = None
    ttft_p95: float | None = None
    hit: float | None = None


class NodeDelta(Record):
    """The compact record of one second (about 200 bytes for a node with one engine)."""

    node: NodeName
    sequence: int
    cpu: float | None = None
    gpus: tuple[GpuDelta, ...] = ()
    replicas: tuple[ReplicaDelta, ...] = ()


class ModelTraffic(Record):
    """What one proxy measured for one model over its last window (10 s unless said); rates are per second."""

    model: str
    requests_per_second: float | None = None
    generation_tokens_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    rejected_per_second: float | None = None
    failed_per_second: float | None = None
    retried_per_second: float | None = None
    waiting: int = 0
    ttft_p50_seconds: float | None = None
    ttft_p95_seconds: float | None = None
    ttft_p99_seconds: float | None = None
    itl_p95_seconds: float | None = None
    duration_p95_seconds: float | None = None


class ProxyReport(Record):
    """What one data-plane worker says of itself about once a second."""

    proxy: str
    sequence: int
    pid: int
    version: str
    at: float
    started_at: float
    #: Revision of the durable state this proxy routes by: its acknowledgement of drains up to it.
    revision: int
    #: Open requests per replica, only those above 0.
    inflight: dict[str, int] = Field(default_factory=dict)
    models: tuple[ModelTraffic, ...] = ()
    connections: int = 0
    #: Replicas this proxy has put out of routing on its own evidence, with the reason.
    ejected: dict[str, str] = Field(default_factory=dict)
    draining: bool = False
