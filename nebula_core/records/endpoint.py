"""Routable addresses of ready replicas: always derived from the snapshot, never stored.

An endpoint is routable when its agent says `ready`, its placement still says `run`, and its node is not lost.
A proxy adds its own direct evidence on top (a refused connection drops one at once, flowing bytes keep it):
that is the proxy's, not the snapshot's.
"""

from dataclasses import dataclass

from nebula_core.records.deployment import Limits
from nebula_core.records.placement import Wanted
from nebula_core.records.replica import STARTING, Phase, ReplicaStatus
from nebula_core.records.sample import EngineSample
from nebula_core.records.snapshot import ClusterSnapshot, NodeState


@dataclass(frozen=True, slots=True)
class Endpoint:
    replica: str
    deployment: str
    model: str
    node: str
    host: str
    port: int
    engine: str
    engine_epoch: str | None
    sealed_key: str | None
    limits: Limits
    resume: bool
    strategy: str | None
    sample: EngineSample | None
    #: Monotonic seconds of the reader when the node's figures last came.
    sampled_at: float
    #: The node has been silent for a moment: prefer others, keep this one.
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class ModelView:
    """All there is of one model name: what may take a request, and what is on its way."""

    model: str
    deployment: str
    endpoints: tuple[Endpoint, ...]
    starting: int
    wanted: int


def endpoints_by_model(snapshot: ClusterSnapshot, now: float) -> dict[str, ModelView]:
    """Every known model (each deployment, and engines somebody started by hand), with its endpoints in stable order."""
    ready: dict[str, list[Endpoint]] = {}
    starting: dict[str, int] = {}
    for received in snapshot.reports.values():
        state = snapshot.node_state(received.report.node, now)
        if state is NodeState.LOST:
            continue
        for status in received.report.replicas:
            if is_routable(snapshot, status):
                endpoint = _endpoint(snapshot, status, received.at, suspect=state is NodeState.SUSPECT)
                ready.setdefault(status.model, []).append(endpoint)
            elif status.phase in STARTING:
                starting[status.model] = starting.get(status.model, 0) + 1
    views: dict[str, ModelView] = {}
    for name, deployment in snapshot.deployments.items():
        found = tuple(sorted(ready.pop(name, ()), key=lambda endpoint: endpoint.replica))
        views[name] = ModelView(name, name, found, starting.get(name, 0), deployment.spec.replicas)
    for model, found_by_hand in ready.items():
        ordered = tuple(sorted(found_by_hand, key=lambda endpoint: endpoint.replica))
        views[model] = ModelView(model, ordered[0].deployment, ordered, starting.get(model, 0), len(ordered))
    return views


def is_routable(snapshot: ClusterSnapshot, status: ReplicaStatus) -> bool:
    """Whether new requests may go to this replica, by what is written and reported of it."""
    if status.phase is not Phase.READY or status.endpoint is None:
        return False
    if not status.managed:
        return True
    placement = snapshot.placements.get(status.id)
    # Absence is no order: a ready engine whose placement vanished with the store goes on serving.
    return placement is None or (placement.wanted is Wanted.RUN and placement.node == status.node)


def _endpoint(snapshot: ClusterSnapshot, status: ReplicaStatus, sampled_at: float, *, suspect: bool) -> Endpoint:
    deployment = snapshot.deployments.get(status.deployment)
    address = status.endpoint
    if address is None:  # pragma: no cover - is_routable said otherwise
        raise ValueError(f"replica {status.id} has no address")
    return Endpoint(
        replica=status.id,
        deployment=status.deployment,
        model=status.model,
        node=status.node,
        host=address.host,
        port=address.port,
        engine=status.engine,
        engine_epoch=status.engine_epoch,
        sealed_key=address.sealed_key,
        limits=deployment.spec.limits if deployment else Limits(),
        resume=deployment.spec.resume if deployment else False,
        strategy=deployment.spec.strategy if deployment else None,
        sample=status.sample,
        sampled_at=sampled_at,
        suspect=suspect,
    )
