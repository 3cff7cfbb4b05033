"""The snapshot turned round for planning: every replica with its placement, its report and its node, by deployment.

An index may be kept and moved on (`advance`) from one snapshot to the next. A snapshot shares with the one before
all that did not change, so what has to be looked at again is found by identity: a second in a cluster of ten thousand
replicas brings new figures for all and news for almost none. What a pass has found to be at rest is kept as `calm`
until something it depends on moves: its deployment, a placement of it, the phases on a node it runs on, that node's
state or intent. A kept index changes how long an answer takes, never the answer (`test_index.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nebula_core.planning.policy import PlanPolicy
from nebula_core.planning.revision import spec_of_generation
from nebula_core.records.deployment import Deployment
from nebula_core.records.ids import replica_ordinal
from nebula_core.records.node import Gpu, Node, NodeIntent
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.plan import PlanEntry
from nebula_core.records.replica import STARTING, Phase, ReplicaStatus
from nebula_core.records.snapshot import LOST_AFTER_SECONDS, ClusterSnapshot, NodeState, Received

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
    #: Its inventory; None when no agent has introduced it, or an operator has removed it.
    node: Node | None
    received: Received | None
    #: GPUs of this node on which nothing may run, with the fault.
    faults: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, ReplicaStatus] = field(default_factory=dict)
    placements: dict[str, Placement] = field(default_factory=dict)
    #: GPUs nobody has and nothing blocks, and CPU slots in use (`rooms` keeps them here until something moves).
    unheld: tuple[tuple[Gpu, ...], int] | None = None

    @property
    def known(self) -> bool:
        return self.node is not None

    @property
    def labels(self) -> dict[str, str]:
        return {} if self.node is None else self.node.labels

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


class ClusterIndex:
    """Empty at first; `advance` brings it up to a snapshot."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeFacts] = {}
        #: Managed replicas without a placement whose deployment does not exist: shown, never touched.
        self.strays: list[ReplicaStatus] = []
        #: Placements that say `drain` or `stop`.
        self.leaving: dict[str, Placement] = {}
        #: Deployments that were found at rest, with what was said of their replicas.
        self.calm: dict[str, tuple[PlanEntry, ...]] = {}
        self._view = ClusterSnapshot()
        self._placements: dict[str, dict[str, Placement]] = {}
        #: Replicas without a placement, by deployment: to adopt, and others whose ids are in use.
        self._loose: dict[str, list[ReplicaStatus]] = {}
        self._loose_ids: set[str] = set()
        self._stamp: tuple[object, ...] = ()

    # -- what a pass asks ------------------------------------------------------------------------------------------

    def deployments(self) -> set[str]:
        """Those that have a replica: placed, or to be adopted."""
        loose = {name for name, found in self._loose.items() if any(_adoptable(status) for status in found)}
        return self._placements.keys() | (loose & self._view.deployments.keys())

    def placements_of(self, deployment: str) -> dict[str, Placement]:
        return self._placements.get(deployment, {})

    def replicas_of(self, deployment: str) -> list[ReplicaFacts]:
        """In the order of their ordinals."""
        found: list[ReplicaFacts] = []
        for replica, placement in self.placements_of(deployment).items():
            node = self.nodes[placement.node]
            ordinal = replica_ordinal(deployment, replica) or 0
            found.append(ReplicaFacts(replica, placement, node.statuses.get(replica), node, ordinal))
        desired = self._view.deployments.get(deployment)
        if desired is not None:
            for status in self._loose.get(deployment, ()):
                node = self.nodes[status.node]
                if _adoptable(status) and not node.lost:
                    found.append(_adopted(desired, status, node))
        found.sort(key=lambda facts: (facts.ordinal, facts.id))
        return found

    def top_ordinal(self, deployment: str) -> int:
        """Highest ordinal in any placement or report of it: lower ids are not given again."""
        ids = [*self.placements_of(deployment), *(status.id for status in self._loose.get(deployment, ()))]
        return max((replica_ordinal(deployment, replica) or 0 for replica in ids), default=0)

    def is_taken(self, replica: str) -> bool:
        return replica in self._view.placements or replica in self._loose_ids

    # -- moving on -------------------------------------------------------------------------------------------------

    def advance(self, view: ClusterSnapshot, policy: PlanPolicy, now: float) -> None:
        stamp = (now, policy.memory.listening_since)
        if view is self._view and stamp == self._stamp:
            return
        touched_nodes: set[str] = set()
        touched = self._advance_placements(view, touched_nodes)
        touched |= _changed(self._view.deployments, view.deployments)
        self._advance_nodes(view, policy, now, touched_nodes, touched)
        for name in touched:
            self.calm.pop(name, None)
        self._view = view
        self._stamp = stamp
        self._find_loose()

    def _advance_placements(self, view: ClusterSnapshot, touched_nodes: set[str]) -> set[str]:
        touched: set[str] = set()
        before, after = self._view.placements, view.placements
        if before is after:
            return touched
        for replica in _changed(before, after):
            old, new = before.get(replica), after.get(replica)
            if old is not None:
                touched.add(old.deployment)
                touched_nodes.add(old.node)
                del self.nodes[old.node].placements[replica]
                self.leaving.pop(replica, None)
                of_it = self._placements[old.deployment]
                del of_it[replica]
                if not of_it:
                    del self._placements[old.deployment]
            if new is not None:
                touched.add(new.deployment)
                touched_nodes.add(new.node)
                self._placements.setdefault(new.deployment, {})[replica] = new
                if new.node not in self.nodes:
                    self.nodes[new.node] = NodeFacts(new.node, NodeState.LOST, None, None, None, None)
                self.nodes[new.node].placements[replica] = new
                if new.wanted is not Wanted.RUN:
                    self.leaving[replica] = new
        return touched

    def _advance_nodes(
        self, view: ClusterSnapshot, policy: PlanPolicy, now: float, touched_nodes: set[str], touched: set[str]
    ) -> None:
        for name in view.nodes.keys() | view.reports.keys() | self.nodes.keys():
            facts = self.nodes.get(name)
            node, received, intent = view.nodes.get(name), view.reports.get(name), view.intents.get(name)
            if node is None and received is None and facts is not None and not facts.placements:
                touched.update(status.deployment for status in facts.statuses.values())
                del self.nodes[name]
                continue
            state = judged_state(view, policy, name, now)
            moved = facts is None or name in touched_nodes
            if facts is None:
                facts = self.nodes[name] = NodeFacts(name, state, None, None, None, None)
            facts.silent_seconds = view.heartbeat_age(name, now)
            if facts.state is not state or facts.node is not node or facts.intent is not intent:
                moved = True
            former = facts.statuses
            if facts.received is not received:
                moved = _take_report(facts, received) or moved
            facts.state, facts.node, facts.intent = state, node, intent
            if moved:
                facts.unheld = None
                touched.update(placement.deployment for placement in facts.placements.values())
                touched.update(status.deployment for status in former.values())
                touched.update(status.deployment for status in facts.statuses.values())

    def _find_loose(self) -> None:
        self._loose, self._loose_ids, self.strays = {}, set(), []
        for name in sorted(self.nodes):
            facts = self.nodes[name]
            if facts.statuses.keys() <= facts.placements.keys():
                continue
            for replica, status in facts.statuses.items():
                # What is placed on another node, or found twice, belongs there; its GPUs here are held all the same.
                if replica in self._view.placements or replica in self._loose_ids:
                    continue
                self._loose_ids.add(replica)
                self._loose.setdefault(status.deployment, []).append(status)
                if _adoptable(status) and status.deployment not in self._view.deployments:
                    self.strays.append(status)
        self.strays.sort(key=lambda status: status.id)


def build_index(view: ClusterSnapshot, policy: PlanPolicy, now: float) -> ClusterIndex:
    index = ClusterIndex()
    index.advance(view, policy, now)
    return index


def judged_state(view: ClusterSnapshot, policy: PlanPolicy, node: str, now: float) -> NodeState:
    """As the snapshot says, but nobody is lost before this leader has listened long enough to know."""
    state = view.node_state(node, now)
    since = policy.memory.listening_since
    if state is NodeState.LOST and since is not None and now - since <= LOST_AFTER_SECONDS:
        return NodeState.SUSPECT
    return state


def _changed(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    """Keys under which two maps hold another object, or only one of them holds any."""
    if before is after:
        return set()
    found = {name for name, value in after.items() if before.get(name) is not value}
    found.update(before.keys() - after.keys())
    return found


def _take_report(facts: NodeFacts, received: Received | None) -> bool:
    """Takes the figures in; whether anything but figures has moved."""
    facts.received = received
    statuses, faults = facts.statuses, facts.faults
    if received is None:
        facts.statuses, facts.faults = {}, {}
    else:
        # A node speaks for itself only.
        facts.statuses = {one.id: one for one in received.report.replicas if one.node == facts.name}
        facts.faults = {gpu.gpu: gpu.fault for gpu in received.report.gpus if gpu.fault is not None}
    return (
        faults != facts.faults
        or statuses.keys() != facts.statuses.keys()
        or any(_moved(statuses[replica], status) for replica, status in facts.statuses.items())
    )


def _moved(before: ReplicaStatus, after: ReplicaStatus) -> bool:
    """Whether anything a plan depends on differs; figures do not count."""
    return (
        before.phase is not after.phase
        or before.phase_reason != after.phase_reason
        or (before.load_seconds is None) is not (after.load_seconds is None)
        or before.gpus != after.gpus
        or before.deployment != after.deployment
        or before.managed is not after.managed
        or before.generation != after.generation
    )


def _adoptable(status: ReplicaStatus) -> bool:
    return status.managed and status.phase in ADOPTABLE


def _adopted(deployment: Deployment, status: ReplicaStatus, node: NodeFacts) -> ReplicaFacts:
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
    ordinal = replica_ordinal(deployment.name, status.id) or 0
    return ReplicaFacts(status.id, placement, status, node, ordinal, adopted=True)
