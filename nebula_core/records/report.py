"""What one process says of itself: the full report, of which the latest wins. What it says each second is in `compact`.

Freshness is judged by the reader's monotonic time of receipt, never by comparing clocks.
"""

import hashlib

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


class NodeImage(Record):
    """An image of containers on a node."""

    #: `sha256:…` of its configuration.
    id: str
    #: `repository:tag`.
    tags: tuple[str, ...] = ()
    #: `repository@sha256:…`.
    digests: tuple[str, ...] = ()
    size_bytes: int | None = None
    #: A container is made of it; it cannot be pruned.
    in_use: bool = False
    #: A replica of this node will be started from it again; it is not pruned.
    pinned: bool = False


class ImagePull(Record):
    """An image on its way to a node."""

    image: str
    #: 0..1; None is unknown.
    progress: float | None = None
    #: For people: how far, or why it failed.
    message: str = ""
    failed: bool = False


class CachedModel(Record):
    """A model on a node's disk, fetched by its agent."""

    #: Of its entry in the node's cache.
    id: str
    #: As the deployment names it.
    source: str
    size_bytes: int = 0
    files: int = 0
    #: False: a download that was broken off; the next one goes on from it.
    complete: bool = True
    #: A replica runs it or will be started from it, or it is being fetched; it is not evicted.
    in_use: bool = False
    #: Unix seconds by the node's disk.
    used_at: float | None = None
    #: The commit, where there are commits.
    revision: str | None = None
    #: SHA-256 over names, sizes and digests of its files.
    digest: str | None = None


class ModelFetch(Record):
    """A model on its way to a node."""

    source: str
    #: Of the entry it will be.
    id: str | None = None
    #: 0..1; None is unknown.
    progress: float | None = None
    done_bytes: int = 0
    total_bytes: int | None = None
    #: For people: how far, or why it failed.
    message: str = ""
    failed: bool = False


class ModelCacheFacts(Record):
    """The node's room for models."""

    used_bytes: int
    #: Of these, what may be evicted.
    evictable_bytes: int
    #: What may still come before the disk is as full as it may be, without eviction.
    room_bytes: int
    #: By the node's settings; None: as much as the disk has.
    max_bytes: int | None = None
    #: How many there are, also those a report leaves out.
    models: int = 0


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
    #: None: this node runs no containers, or Docker has not answered yet.
    images: tuple[NodeImage, ...] | None = None
    pulls: tuple[ImagePull, ...] = ()
    #: The models used last; None: this node keeps none.
    models: tuple[CachedModel, ...] | None = None
    fetches: tuple[ModelFetch, ...] = ()
    model_cache: ModelCacheFacts | None = None
    #: The agent is going away on purpose and leaves its engines running.
    leaving: bool = False
    #: `routing_digest` of this report: whoever knows a report with the same one need not fetch this.
    routing: str | None = None


class RoutingReport(Record):
    """What a proxy reads of a full report; the rest of it is passed over unread."""

    node: NodeName
    boot_id: str
    sequence: int
    agent_pid: int
    at: float
    replicas: tuple[ReplicaStatus, ...] = ()
    routing: str | None = None


#: What moves from second to second in a replica's status: the compact record says it, or nobody routes by it.
_MOVING = {"phase_seconds", "sample_age_seconds", "sample"}


def routing_digest(report: NodeReport) -> str:
    """16 hex digits over everything of a report that routing may depend on and that a compact record does not carry.

    Whatever is added to a replica's status counts, so a reader that skips a report by its digest misses nothing of it.
    """
    parts = [report.node, report.boot_id, str(report.agent_pid), str(report.leaving)]
    parts += [status.model_dump_json(exclude=_MOVING, exclude_defaults=True) for status in report.replicas]
    # Of a sample, what an engine says once and routing remembers prefixes by.
    parts += [str(status.sample.kv_cache_tokens) for status in report.replicas if status.sample is not None]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


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


class EngineDeath(Record):
    """An engine that died while a request was in flight on it."""

    replica: str
    engine_epoch: str | None = None
    #: When the report was made.
    seconds_ago: float
    #: Requests that were in flight on it.
    company: int


class SuspectBody(Record):
    """The body of a request that was in flight when engines died."""

    #: Hex digits over the body, keyed with the proxies' secret.
    digest: str
    #: Bytes.
    length: int
    deaths: tuple[EngineDeath, ...]


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
    #: Bytes of prompts sent to each replica that it is not known to hold, of requests without a first token yet.
    unread_bytes: dict[str, int] = Field(default_factory=dict)
    #: Replica and engine epoch that hold the responses this proxy passed on in the last seconds, by their ids.
    responses: dict[str, tuple[str, str | None]] = Field(default_factory=dict)
    #: By replica, digests of whole prompts this proxy sent there since its last report; seeded with the proxies' secret.
    prefixes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    models: tuple[ModelTraffic, ...] = ()
    connections: int = 0
    #: Replicas this proxy has put out of routing on its own evidence, with the reason.
    ejected: dict[str, str] = Field(default_factory=dict)
    #: What this proxy holds against bodies of requests, those with the most against them.
    suspects: tuple[SuspectBody, ...] = ()
    #: Digests of suspect bodies that it saw answered of late.
    acquitted: tuple[str, ...] = ()
    draining: bool = False
