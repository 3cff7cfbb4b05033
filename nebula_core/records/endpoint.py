"""Routable addresses of ready replicas: always derived from the snapshot, never stored.

An endpoint is routable when its agent says `ready`, its placement still says `run`, and its node is not lost.
A proxy adds its own direct evidence on top (a refused connection drops one at once, flowing bytes keep it):
that is the proxy's, not the snapshot's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nebula_core.records.deployment import ArgValue, Limits
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
    #: How long it had been ready when it was first heard of so; None is unknown, and counts as long.
    ready_seconds: float | None = None
    #: Share of the model's traffic against its other replicas; 0 takes none while others stand.
    share: float = 1.0
    #: Requests its engine runs at once, where its options say so.
    slots: int | None = None
    #: What its engine calls the model, where that is another name.
    served_model: str | None = None


#: What holds for a model without a deployment.
NO_LIMITS_SAID = Limits()


@dataclass(frozen=True, slots=True)
class ModelView:
    """All there is of one model name: what may take a request, and what is on its way."""

    model: str
    deployment: str
    endpoints: tuple[Endpoint, ...]
    starting: int
    wanted: int
    limits: Limits = NO_LIMITS_SAID
    #: LoRA adapters: model names under which the same endpoints are asked.
    adapters: tuple[str, ...] = ()
    #: Tokens of prompt and answer together, where the deployment says so.
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A replica as it was reported, and when (monotonic seconds of the reader)."""

    status: ReplicaStatus
    at: float
    suspect: bool = False


def endpoints_by_model(snapshot: ClusterSnapshot, now: float) -> dict[str, ModelView]:
    """Every known model (each deployment, and engines whose deployment is gone), with its endpoints in stable order."""
    ready: dict[str, list[Endpoint]] = {}
    starting: dict[str, int] = {}
    for received in snapshot.reports.values():
        state = snapshot.node_state(received.report.node, now)
        if state is NodeState.LOST:
            continue
        for status in received.report.replicas:
            endpoint = endpoint_of(snapshot, Seen(status, received.at, state is NodeState.SUSPECT))
            if endpoint is not None:
                ready.setdefault(status.model, []).append(endpoint)
            elif status.phase in STARTING and status.managed:
                starting[status.model] = starting.get(status.model, 0) + 1
    names = dict.fromkeys((*snapshot.deployments, *ready))
    views = ((name, view_of(snapshot, name, ready.get(name, ()), starting.get(name, 0))) for name in names)
    return {name: view for name, view in views if view is not None}


def endpoint_of(snapshot: ClusterSnapshot, seen: Seen) -> Endpoint | None:
    """Where this replica is reached; None when no request may go there."""
    if not is_routable(snapshot, seen.status):
        return None
    return _endpoint(snapshot, seen.status, seen.at, suspect=seen.suspect)


def view_of(snapshot: ClusterSnapshot, model: str, ready: Iterable[Endpoint], starting: int) -> ModelView | None:
    """One model from all its endpoints; None when nobody knows it."""
    found = tuple(sorted(ready, key=lambda endpoint: endpoint.replica))
    deployment = snapshot.deployments.get(model)
    if deployment is not None:
        spec = deployment.spec
        adapters = tuple(adapter.name for adapter in spec.adapters)
        longest = spec.args.get("max-model-len", spec.args.get("max_model_len"))
        return ModelView(
            model,
            model,
            found,
            starting,
            spec.replicas,
            spec.limits,
            adapters,
            longest if type(longest) is int else None,
        )
    # Of engines whose deployment is gone.
    return ModelView(model, found[0].deployment, found, starting, len(found)) if found else None


#: Two scrapes of the agent, and a half for the way.
SAMPLE_OLD_SECONDS = 2.5


def is_routable(snapshot: ClusterSnapshot, status: ReplicaStatus) -> bool:
    """Whether new requests may go to this replica, by what is written and reported of it."""
    if status.phase is not Phase.READY or status.endpoint is None:
        return False
    if not status.managed:
        # Anybody may start something that calls itself an engine of this model: no prompt goes there unasked.
        return False
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
        served_model=address.served_model,
        limits=deployment.spec.limits if deployment else Limits(),
        resume=deployment.spec.resume if deployment else False,
        strategy=deployment.spec.strategy if deployment else None,
        # Older than the second it came in: unknown, not as it was.
        sample=status.sample if (status.sample_age_seconds or 0.0) <= SAMPLE_OLD_SECONDS else None,
        sampled_at=sampled_at,
        suspect=suspect,
        ready_seconds=status.phase_seconds,
        slots=_slots(deployment.spec.args) if deployment else None,
    )


#: Options that bound how many requests an engine runs at once: vLLM and the simulated one, SGLang, llama.cpp.
_SLOT_OPTIONS = ("max-num-seqs", "max-running-requests", "parallel", "np")
#: Options that multiply it; how engines count then is their own affair.
_MULTIPLIERS = ("data-parallel-size", "dp-size", "dp")


def _slots(args: Mapping[str, ArgValue]) -> int | None:
    """How many requests an engine runs at once, if its options say so."""
    named = {name.replace("_", "-"): value for name, value in args.items()}
    if any(name in named for name in _MULTIPLIERS):
        return None
    said = [named[name] for name in _SLOT_OPTIONS if name in named]
    return said[0] if said and type(said[0]) is int and said[0] > 0 else None
