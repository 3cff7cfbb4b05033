"""The snapshot turned round for planning: every replica with its placement, its report and its node, by deployment."""

from dataclasses import dataclass, field

from nebula_core.planning.policy import PlanPolicy
from nebula_core.planning.revision import spec_of_generation
from nebula_core.records.ids import replica_ordinal
from nebula_core.records.node import NodeIntent
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.replica import STARTING, Phase, ReplicaStatus
from nebula_core.records.snapshot import LOST_AFTER_SECONDS, ClusterSnapshot, NodeState

#: A replica in one of these without a placement is taken in again (absence is no order).
ADOPTABLE = STARTING | {Phase.READY, Phase.DRAINING}


@dataclass(slots=True)
class NodeFacts:
    """What a pass needs to know of one node."""

    name: str
    state: NodeState
    #: Seconds since anything of it came; None when nothing ever did.
    silent_seconds: float | None
    intent: NodeIntent | None
    #: In the inventory: its agent has introduced it, and no operator has removed it.
    known: bool
    #: GPUs of this node on which nothing may run, with the fault.
    faults: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def lost(self) -> bool:
        return self.state is NodeState.LOST

    @property
    def draining(self) -> bool:
        return self.intent is not None and self.intent.drain is not None


@dataclass(slots=True)
class ReplicaFacts:
    """One replica that has a placement, or that an agent runs though its placement is gone."""

    id: str
    placement: Placement
    status: ReplicaStatus | None
    node: NodeFacts
    ordinal: int
    #: Its placement is not in the store: `placement` is what would be written to take it in.
    adopted: bool = False

    @property
    def phase(self) -> Phase | None:
        return None if self.status is None else self.status.phase

    @property
    def ready(self) -> bool:
        """Serves, and its node answers."""
        return self.phase is Phase.READY and self.node.state is NodeState.READY

    @property
    def may_serve(self) -> bool:
        """Was serving when last heard of: nothing may take it away in passing."""
        return self.phase is Phase.READY

    @property
    def never_served(self) -> bool:
        """Certainly not one request has reached it: it may be stopped without a drain."""
        if self.node.state is not NodeState.READY:
            return False
        if self.status is None:
            return not self.adopted
        return self.status.load_seconds is None and (self.phase in STARTING or self.phase is Phase.FAILED)

    @property
    def failed(self) -> bool:
        return self.phase is Phase.FAILED


@dataclass(slots=True)
class ClusterIndex:
    nodes: dict[str, NodeFacts]
    #: In the order of their ordinals.
    replicas: dict[str, list[ReplicaFacts]]
    #: Highest ordinal in any placement or report, per deployment: ids below it are not given again.
    top_ordinal: dict[str, int]
    taken_ids: set[str]
    #: Managed replicas without a placement whose deployment does not exist: shown, never touched.
    strays: list[ReplicaStatus]


def build_index(view: ClusterSnapshot, policy: PlanPolicy, now: float) -> ClusterIndex:
    nodes = {name: node_facts(view, policy, name, now) for name in sorted({*view.nodes, *view.reports})}
    statuses = view.replicas()
    index = ClusterIndex(nodes, {}, {}, {*view.placements, *statuses}, [])
    for replica, placement in view.placements.items():
        node = nodes.get(placement.node)
        if node is None:
            node = nodes[placement.node] = node_facts(view, policy, placement.node, now)
        status = statuses.get(replica)
        if status is not None and status.node != placement.node:
            status = None
        _add(index, ReplicaFacts(replica, placement, status, node, 0))
    for replica, status in statuses.items():
        if replica not in view.placements and status.managed:
            _add_without_placement(index, view, status)
        ordinal = replica_ordinal(status.deployment, replica)
        if ordinal is not None and ordinal > index.top_ordinal.get(status.deployment, 0):
            index.top_ordinal[status.deployment] = ordinal
    for found in index.replicas.values():
        found.sort(key=lambda facts: (facts.ordinal, facts.id))
    index.strays.sort(key=lambda status: status.id)
    return index


def _add(index: ClusterIndex, facts: ReplicaFacts) -> None:
    deployment = facts.placement.deployment
    facts.ordinal = replica_ordinal(deployment, facts.id) or 0
    index.replicas.setdefault(deployment, []).append(facts)
    if facts.ordinal > index.top_ordinal.get(deployment, 0):
        index.top_ordinal[deployment] = facts.ordinal


def _add_without_placement(index: ClusterIndex, view: ClusterSnapshot, status: ReplicaStatus) -> None:
    if status.phase not in ADOPTABLE:
        return
    deployment = view.deployments.get(status.deployment)
    if deployment is None:
        index.strays.append(status)
        return
    node = index.nodes[status.node]
    if node.lost:
        return
    generation = min(max(1, status.generation), deployment.generation)
    placement = Placement(
        replica=status.id,
        deployment=deployment.name,
        node=status.node,
        gpus=status.gpus,
        wanted=Wanted.RUN,
        generation=generation,
        restart_nonce=deployment.restart_nonce,
        spec=spec_of_generation(deployment, generation),
        epoch=0,
        revision=0,
        reason="adopted: it runs, and its deployment exists",
    )
    _add(index, ReplicaFacts(status.id, placement, status, node, 0, adopted=True))


def node_facts(view: ClusterSnapshot, policy: PlanPolicy, name: str, now: float) -> NodeFacts:
    node = view.nodes.get(name)
    received = view.reports.get(name)
    faults = {} if received is None else {gpu.gpu: gpu.fault for gpu in received.report.gpus if gpu.fault is not None}
    return NodeFacts(
        name=name,
        state=judged_state(view, policy, name, now),
        silent_seconds=view.heartbeat_age(name, now),
        intent=view.intents.get(name),
        known=node is not None,
        faults=faults,
        labels={} if node is None else node.labels,
    )


def judged_state(view: ClusterSnapshot, policy: PlanPolicy, node: str, now: float) -> NodeState:
    """As the snapshot says, but nobody is lost before this leader has listened long enough to know."""
    state = view.node_state(node, now)
    since = policy.memory.listening_since
    if state is NodeState.LOST and since is not None and now - since <= LOST_AFTER_SECONDS:
        return NodeState.SUSPECT
    return state
