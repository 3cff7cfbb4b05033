"""The cluster as the TUI knows it: one snapshot kept up to date by deltas, how old it is, and ten minutes of history.

Screens read from here and never from the network. Everything shown carries its age: views say how old they were when
the server answered, and the time since then is added here. While the link is live, a node the server calls ready is at
most `SUSPECT_AFTER_SECONDS` old whatever the last view of it said (the server sends a view when it changes), so ages
do not climb only because nothing happened.

`version` rises with every change, so a view knows whether it must rebuild its rows. `now` is the caller's monotonic
seconds everywhere.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nebula_core.records.event import Event
from nebula_core.records.snapshot import SUSPECT_AFTER_SECONDS
from nebula_core.records.views import (
    ClusterView,
    DeploymentView,
    NodeView,
    ReplicaView,
    WatchDelta,
    WatchSnapshot,
)
from nebula_tui.presenters.history import History
from nebula_tui.presenters.summary import NodeSummary, summarise

EVENTS_KEPT: Final = 2000
#: A watch of a cluster with live nodes says something every second; after this long without a word it is called quiet.
QUIET_AFTER_SECONDS: Final = 2.5
#: Without live nodes only the keepalive of every 5 s comes.
IDLE_QUIET_AFTER_SECONDS: Final = 7.0
#: The control process' own view of the store counts as old after this.
STORE_STALE_AFTER_SECONDS: Final = 5.0


class LinkState(StrEnum):
    CONNECTING = "connecting"
    LIVE = "live"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Link:
    """How the watch stands; `heard_at` is when anything last came."""

    state: LinkState = LinkState.CONNECTING
    heard_at: float | None = None
    reason: str = ""
    since: float = 0.0
    retry_at: float | None = None


class FleetState:
    """Mutable, owned by the app; views hold a reference and read."""

    def __init__(self, *, utc_offset_seconds: float = 0.0) -> None:
        self.cluster: ClusterView | None = None
        self.nodes: dict[str, NodeView] = {}
        self.deployments: dict[str, DeploymentView] = {}
        self.replicas: dict[str, ReplicaView] = {}
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.link = Link()
        self.version = 0
        self.events_version = 0
        self.history_version = 0
        self.utc_offset_seconds = utc_offset_seconds
        self.gpus = History()
        self.series = History()
        self._node_at: dict[str, float] = {}
        self._replica_at: dict[str, float] = {}
        self._cluster_at = 0.0
        self._summaries: dict[str, tuple[NodeView, NodeSummary]] = {}
        self._event_ids: set[tuple[str | None, float, str, str]] = set()

    # ---------------------------------------------------------------------------------------------------- the watch

    def connected(self, now: float) -> None:
        if self.link.state is not LinkState.LIVE:
            # Live only with the snapshot: until then what is shown is still old.
            self.link = Link(LinkState.CONNECTING, self.link.heard_at, self.link.reason, self.link.since or now)

    def alive(self, now: float) -> None:
        if self.link.state is LinkState.LIVE:
            self.link = Link(LinkState.LIVE, now)

    def lost(self, reason: str, retry_seconds: float, now: float) -> None:
        since = self.link.since if self.link.state is LinkState.LOST else now
        self.link = Link(LinkState.LOST, self.link.heard_at, reason, since, now + retry_seconds)
        self.version += 1

    def take_snapshot(self, snapshot: WatchSnapshot, now: float) -> None:
        """Replaces everything but the events, which are joined, and the history, which goes on."""
        self.link = Link(LinkState.LIVE, now)
        self.cluster, self._cluster_at = snapshot.cluster, now
        self.nodes = {node.id: node for node in snapshot.nodes}
        self._summaries = {}
        self.deployments = {deployment.name: deployment for deployment in snapshot.deployments}
        self.replicas = {replica.id: replica for replica in snapshot.replicas}
        self._node_at = dict.fromkeys(self.nodes, now)
        self._replica_at = dict.fromkeys(self.replicas, now)
        self.add_events(snapshot.events)
        self.version += 1

    def take_delta(self, delta: WatchDelta, now: float) -> None:
        self.link = Link(LinkState.LIVE, now)
        if delta.cluster is not None:
            self.cluster, self._cluster_at = delta.cluster, now
        for node in delta.nodes:
            self.nodes[node.id] = node
            self._node_at[node.id] = now
        for deployment in delta.deployments:
            self.deployments[deployment.name] = deployment
        for replica in delta.replicas:
            self.replicas[replica.id] = replica
            self._replica_at[replica.id] = now
        for gone in delta.gone_nodes:
            self.nodes.pop(gone, None)
            self._summaries.pop(gone, None)
            self._node_at.pop(gone, None)
        for gone in delta.gone_deployments:
            self.deployments.pop(gone, None)
        for gone in delta.gone_replicas:
            self.replicas.pop(gone, None)
            self._replica_at.pop(gone, None)
        self.add_events(delta.events)
        self.version += 1

    def add_events(self, events: Iterable[Event]) -> None:
        """Joins events that may partly be known; kept in order of time, oldest first."""
        fresh = []
        for event in events:
            key = (event.id, event.at, event.object, event.message)
            if key not in self._event_ids:
                self._event_ids.add(key)
                fresh.append(event)
        if not fresh:
            return
        late = self.events and fresh[0].at < self.events[-1].at
        joined = [*self.events, *fresh]
        if late:
            joined.sort(key=lambda event: event.at)
        self.events = deque(joined, maxlen=EVENTS_KEPT)
        self._event_ids = {(event.id, event.at, event.object, event.message) for event in self.events}
        self.events_version += 1

    # --------------------------------------------------------------------------------------------------------- ages

    def link_age(self, now: float) -> float | None:
        """Seconds since the server last said anything; None before it ever did."""
        return None if self.link.heard_at is None else max(0.0, now - self.link.heard_at)

    def is_live(self, now: float) -> bool:
        """What is on the screen is what the server says now, and actions may be taken on it."""
        if self.link.state is not LinkState.LIVE:
            return False
        busy = any(node.state == "ready" for node in self.nodes.values())
        return (self.link_age(now) or 0.0) <= (QUIET_AFTER_SECONDS if busy else IDLE_QUIET_AFTER_SECONDS)

    def store_age(self, now: float) -> float:
        """How old the control process' own view is, as far as it told."""
        if self.cluster is None:
            return 0.0
        behind = now - self._cluster_at if not self.cluster.store_reachable else 0.0
        return self.cluster.snapshot_age_seconds + max(0.0, behind)

    def store_is_stale(self, now: float) -> bool:
        cluster = self.cluster
        return cluster is not None and (not cluster.store_reachable or self.store_age(now) > STORE_STALE_AFTER_SECONDS)

    def node_age(self, node: NodeView, now: float) -> float | None:
        """Seconds since the node's agent was last heard by anybody."""
        if node.heartbeat_age_seconds is None:
            return None
        age = node.heartbeat_age_seconds + max(0.0, now - self._node_at.get(node.id, now))
        return min(age, SUSPECT_AFTER_SECONDS) if node.state == "ready" and self.is_live(now) else age

    def replica_age(self, replica: ReplicaView, now: float) -> float | None:
        """Seconds since the replica's engine was last read."""
        node = self.nodes.get(replica.node)
        since = max(0.0, now - self._replica_at.get(replica.id, now))
        if node is not None and node.state == "ready" and self.is_live(now):
            since = min(since, SUSPECT_AFTER_SECONDS)
        return None if replica.sample_age_seconds is None else replica.sample_age_seconds + since

    # ------------------------------------------------------------------------------------------------------ queries

    @property
    def simulated(self) -> bool:
        """Anything on the screen that is not a real machine or engine."""
        return bool(
            (self.cluster is not None and self.cluster.simulated)
            or any(node.simulated for node in self.nodes.values())
            or any(replica.simulated for replica in self.replicas.values())
        )

    def summary(self, node: NodeView) -> NodeSummary:
        """Its sums, worked out once for each view."""
        known = self._summaries.get(node.id)
        if known is not None and known[0] is node:
            return known[1]
        made = summarise(node)
        self._summaries[node.id] = (node, made)
        return made

    def replicas_by_node(self) -> dict[str, list[ReplicaView]]:
        """For a pass over all nodes: one walk over the replicas instead of one per node."""
        found: dict[str, list[ReplicaView]] = {}
        for replica in self.replicas.values():
            found.setdefault(replica.node, []).append(replica)
        return found

    def replicas_of(self, deployment: str) -> list[ReplicaView]:
        return [replica for replica in self.replicas.values() if replica.deployment == deployment]

    def replicas_on(self, node: str) -> list[ReplicaView]:
        return [replica for replica in self.replicas.values() if replica.node == node]

    def gpu_label(self, gpu: str) -> str:
        """The index people say, for the id machines use."""
        for node in self.nodes.values():
            for view in node.gpus:
                if view.id == gpu:
                    return str(view.index)
        return gpu

    # ------------------------------------------------------------------------------------------------------ history

    def sample(self, now: float) -> None:
        """One frame of history; unknown while the link is down, so that charts show the hole."""
        live = self.is_live(now)
        self.gpus.record(
            {
                gpu.id: gpu.sample.utilization_ratio if gpu.sample is not None and node.state == "ready" else None
                for node in self.nodes.values()
                for gpu in node.gpus
            }
            if live
            else {}
        )
        self.series.record(self._figures() if live else {})
        self.history_version += 1

    def _figures(self) -> dict[str, float | None]:
        """Every series by name: `out`, `in`, `ttft95`, `deployment/NAME/out`, `replica/ID/kv`, `node/ID/util` …"""
        figures: dict[str, float | None] = {}
        out: dict[str, float | None] = {}
        prompts: float | None = None
        kv: dict[str, list[float]] = {}
        waiting: dict[str, float] = {}
        for replica in self.replicas.values():
            sample = replica.sample
            if sample is None:
                continue
            name = f"replica/{replica.id}"
            figures[f"{name}/out"] = sample.generation_tokens_per_second
            figures[f"{name}/in"] = sample.prompt_tokens_per_second
            figures[f"{name}/kv"] = sample.kv_cache_usage
            figures[f"{name}/running"] = sample.requests_running
            figures[f"{name}/waiting"] = sample.requests_waiting
            figures[f"{name}/ttft95"] = sample.ttft_p95_seconds
            figures[f"{name}/itl95"] = sample.itl_p95_seconds
            figures[f"{name}/hit"] = sample.prefix_cache_hit_ratio
            out[replica.deployment] = add(out.get(replica.deployment), sample.generation_tokens_per_second)
            prompts = add(prompts, sample.prompt_tokens_per_second)
            if sample.kv_cache_usage is not None:
                kv.setdefault(replica.deployment, []).append(sample.kv_cache_usage)
            if sample.requests_waiting is not None:
                waiting[replica.deployment] = waiting.get(replica.deployment, 0) + sample.requests_waiting
        total: float | None = None
        running: float | None = None
        for replica in self.replicas.values():
            running = add(running, replica.sample.requests_running if replica.sample is not None else None)
        for name, value in out.items():
            figures[f"deployment/{name}/out"] = value
            total = add(total, value)
        figures["out"], figures["in"] = total, prompts
        figures["running"] = running
        for name, fills in kv.items():
            figures[f"deployment/{name}/kv"] = max(fills)
        for name, queued in waiting.items():
            figures[f"deployment/{name}/waiting"] = queued
        self._add_traffic(figures)
        power: float | None = None
        for node in self.nodes.values():
            if node.state == "ready":
                sums = self.summary(node)
                power = add(power, sums.watts)
                if sums.util_count:
                    figures[f"node/{node.id}/util"] = sums.util
        figures["power"] = power
        return figures

    def _add_traffic(self, figures: dict[str, float | None]) -> None:
        for deployment in self.deployments.values():
            traffic = deployment.traffic
            if traffic is None:
                continue
            figures[f"deployment/{deployment.name}/ttft95"] = traffic.ttft_p95_seconds
            for name, value in (
                ("ttft50", traffic.ttft_p50_seconds),
                ("ttft95", traffic.ttft_p95_seconds),
                ("ttft99", traffic.ttft_p99_seconds),
                ("itl95", traffic.itl_p95_seconds),
                ("e2e95", traffic.duration_p95_seconds),
            ):
                # Quantiles of several models cannot be averaged: the worst one is shown, and said to be that.
                figures[name] = largest(figures.get(name), value)
            figures["waiting"] = add(figures.get("waiting"), traffic.waiting)
            figures["requests"] = add(figures.get("requests"), traffic.requests_per_second)


def add(total: float | None, value: float | None) -> float | None:
    """A sum in which unknown adds nothing, and a sum of nothing known is unknown."""
    if value is None:
        return total
    return value if total is None else total + value


def largest(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return max(first, second)
