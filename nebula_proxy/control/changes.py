"""What each call makes of a record: the old one in, the new one out.

An edit answers the same object when there is nothing to do, so that saying a thing twice changes nothing. It is called
for the preview with what the snapshot has and again for the writing with what the store has.
"""

from collections.abc import Container, Mapping

from nebula_core.planning.revision import STARTED_WITH, spec_difference
from nebula_core.records.adoption import Adoption, AdoptTarget
from nebula_core.records.deployment import Deployment, DeploymentSpec, Move
from nebula_core.records.node import DrainIntent, NodeIntent
from nebula_core.records.views import ReplicaView
from nebula_proxy.control.refusals import CallRefused, conflict

HISTORY_KEPT = 10
#: Orders to take an engine in that are remembered beside a new one.
MOST_ADOPTIONS = 255
#: Expected by a caller to whom any will do, as long as there is one.
ANY_GENERATION = -1


def apply_spec(former: Deployment | None, name: str, spec: DeploymentSpec, *, by: str, at: float) -> Deployment:
    """The deployment as the file says, made or changed."""
    if former is None:
        return Deployment(name=name, generation=1, spec=spec, updated_by=by, updated_at=at)
    return former if former.spec == spec else _next(former, spec, by=by, at=at)


def with_free_names(following: Deployment, others: Mapping[str, Deployment]) -> Deployment:
    """The same deployment; raises CallRefused when a model name of it is another's already.

    Clients know deployments and adapters by one kind of name: two of the same would make it chance who answers.
    """
    taken = {
        adapter.name: f"an adapter of {name}"
        for name, other in others.items()
        if name != following.name
        for adapter in other.spec.adapters
    } | {name: "a deployment" for name in others if name != following.name}
    names = [(following.name, "the deployment")]
    names += [(adapter.name, "the adapter") for adapter in following.spec.adapters]
    for name, what in names:
        if name in taken:
            raise conflict(f"{what} {name!r} cannot be: {taken[name]} has that name", hint="choose another name")
    if any(adapter.name == following.name for adapter in following.spec.adapters):
        raise conflict(f"{following.name} has an adapter of its own name", hint="choose another name for the adapter")
    return following


def adopt(
    former: Deployment | None, name: str, found: ReplicaView, served_model: str, *, by: str, at: float
) -> Deployment:
    """The deployment with one more replica: this engine, as it runs. Made from its command line where there is none."""
    target = _target(found, served_model)
    told = found.found.spec if found.found is not None else None
    if former is None:
        spec = told or DeploymentSpec.model_validate(
            {"source": served_model, "engine": found.engine, "runtime": found.runtime, "gpus": len(found.gpus)}
        )
        order = Adoption(node=found.node, gpus=found.gpus, target=target, generation=1)
        return Deployment(name=name, generation=1, spec=spec, updated_by=by, updated_at=at, adoptions=(order,))
    if any(one.target == target for one in former.adoptions):
        return former
    if former.spec.engine != found.engine:
        raise conflict(
            f"{name} runs {former.spec.engine}, and {found.id} is {found.engine}", hint="take it in under another name"
        )
    if former.spec.autoscale is not None:
        raise conflict(f"{name} scales itself: nothing is taken into it", hint="take it in under another name")
    spec = former.spec.model_copy(update={"replicas": former.spec.replicas + 1})
    following = _next(former, spec, by=by, at=at)
    order = Adoption(node=found.node, gpus=found.gpus, target=target, generation=following.generation)
    return following.model_copy(update={"adoptions": (*former.adoptions[-MOST_ADOPTIONS:], order)})


def _target(found: ReplicaView, served_model: str) -> AdoptTarget:
    """Raises CallRefused where the engine cannot be taken in as it stands."""
    told = found.found
    if told is None or found.managed:
        raise conflict(f"{found.id} is managed already", hint="`nebula replicas` marks those that are not")
    if told.why_not is not None:
        raise conflict(f"{found.id} cannot be taken in: {told.why_not}", hint="put that right, then repeat")
    if found.pid is None or told.pid_born is None or told.probe_host is None or found.endpoint is None:
        raise conflict(
            f"{found.id} cannot be taken in: its agent does not say which process it is", hint="update the agent"
        )
    if served_model not in told.served_models:
        raise conflict(f"{found.id} does not serve {served_model!r}", hint=f"it serves {', '.join(told.served_models)}")
    return AdoptTarget(
        found=found.id,
        pid=found.pid,
        pid_born=told.pid_born,
        container_id=found.container_id,
        host=told.probe_host,
        port=found.endpoint.port,
        served_model=served_model,
    )


def scale(former: Deployment, replicas: int, *, by: str, at: float) -> Deployment:
    limits = former.spec.autoscale
    if limits is not None and not limits.min <= replicas <= limits.max:
        raise conflict(
            f"{former.name} scales itself between {limits.min} and {limits.max} replicas",
            hint="change `autoscale` in its file and apply it",
        )
    if former.spec.replicas == replicas:
        return former
    return _next(former, former.spec.model_copy(update={"replicas": replicas}), by=by, at=at)


def restart(former: Deployment, *, by: str, at: float) -> Deployment:
    """Every replica that runs is replaced, one after the other."""
    following = _next(former, former.spec, by=by, at=at)
    return following.model_copy(update={"restart_nonce": former.restart_nonce + 1})


def undo(former: Deployment, *, by: str, at: float) -> Deployment:
    """The spec before the last change of it. Doing it twice brings the change back."""
    earlier = next((spec for spec in former.history if spec != former.spec), None)
    if earlier is None:
        raise conflict(f"{former.name} has no earlier spec", hint="it was never changed: there is nothing to undo")
    return _next(former, earlier, by=by, at=at)


def rollback(former: Deployment, generation: int | None, *, by: str, at: float) -> Deployment:
    """What engines are started with, as it was before it last changed or in a generation; the number of replicas stays."""
    earlier = _earlier(former, generation)
    started = {name: getattr(earlier, name) for name, _ in STARTED_WITH}
    spec = former.spec.model_copy(update=started)
    return former if spec == former.spec else _next(former, spec, by=by, at=at)


def _earlier(former: Deployment, generation: int | None) -> DeploymentSpec:
    oldest = former.generation - len(former.history)
    if generation is None:
        for spec in former.history:
            if spec_difference(spec, former.spec) is not None:
                return spec
        raise conflict(
            f"in the generations kept of {former.name} ({oldest} to {former.generation}) its engines never changed",
            hint="`undo` takes back other changes; or apply the file you want",
        )
    if generation == former.generation:
        return former.spec
    if not oldest <= generation < former.generation:
        raise conflict(
            f"generation {generation} of {former.name} is not kept", hint=f"kept are {oldest} to {former.generation}"
        )
    return former.history[former.generation - generation - 1]


def move(former: Deployment, replica: str, reason: str, alive: Container[str], *, by: str, at: float) -> Deployment:
    """One replica is to be replaced by another. Orders for replicas that are gone are dropped on the way."""
    following = _next(former, former.spec, by=by, at=at)
    kept = tuple(one for one in former.moves if one.replica in alive and one.replica != replica)
    order = Move(replica=replica, generation=following.generation, reason=reason)
    return following.model_copy(update={"moves": (*kept, order)})


def _next(former: Deployment, spec: DeploymentSpec, *, by: str, at: float) -> Deployment:
    # Also a change that leaves the spec as it was goes into the history: place there and generation belong together.
    return former.model_copy(
        update={
            "generation": former.generation + 1,
            "spec": spec,
            "updated_by": by,
            "updated_at": at,
            "history": (former.spec, *former.history)[:HISTORY_KEPT],
        }
    )


def cordon(former: NodeIntent | None, node: str, *, by: str) -> NodeIntent:
    intent = former or NodeIntent(node=node)
    return intent if intent.cordoned else _intended(intent, by=by, cordoned=True)


def uncordon(former: NodeIntent | None, node: str, *, by: str) -> NodeIntent:
    """Opens the node again and ends its drain; GPUs that were cordoned one by one stay so."""
    intent = former or NodeIntent(node=node)
    return _intended(intent, by=by, cordoned=False, drain=None) if intent.closed else intent


def drain(
    former: NodeIntent | None, node: str, grace_seconds: float, reason: str | None, *, by: str, at: float
) -> NodeIntent:
    """Said again, it keeps the moment when it was first said."""
    intent = former or NodeIntent(node=node)
    since = at if intent.drain is None else intent.drain.since
    order = DrainIntent(by=by, since=since, grace_seconds=grace_seconds, reason=reason)
    return intent if intent.drain == order else _intended(intent, by=by, drain=order)


def cordon_gpu(former: NodeIntent | None, node: str, gpu: str, *, by: str) -> NodeIntent:
    intent = former or NodeIntent(node=node)
    if gpu in intent.cordoned_gpus:
        return intent
    return _intended(intent, by=by, cordoned_gpus=(*intent.cordoned_gpus, gpu))


def uncordon_gpu(former: NodeIntent | None, node: str, gpu: str, *, by: str) -> NodeIntent:
    intent = former or NodeIntent(node=node)
    if gpu not in intent.cordoned_gpus:
        return intent
    return _intended(intent, by=by, cordoned_gpus=tuple(one for one in intent.cordoned_gpus if one != gpu))


def _intended(intent: NodeIntent, *, by: str, **changes: object) -> NodeIntent:
    return intent.model_copy(update={**changes, "by": by, "generation": intent.generation + 1})


def expect_generation(what: str, expected: int | None, found: int) -> None:
    """Raises CallRefused when the record is not the one the caller has read (0: there is none)."""
    if expected is None or expected == found or (expected == ANY_GENERATION and found):
        return
    is_at = "does not exist" if found == 0 else f"is at generation {found}"
    wanted = {0: "none was expected", ANY_GENERATION: "one was expected"}.get(
        expected, f"generation {expected} was expected"
    )
    raise conflict(
        f"{what} {is_at}, {wanted}", hint="somebody changed it first: look at it and decide anew", generation=found
    )


def must_exist(former: Deployment | None, missing: CallRefused) -> Deployment:
    if former is None:
        raise missing
    return former
