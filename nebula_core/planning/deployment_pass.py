"""One deployment in one pass: its replicas sorted out, and the steps `reconcile` asks for in turn.

The object lives for one pass and is only ever filled: `leave` (drains and stops under way), `fill` (missing ones),
`shrink` (surplus), `move` (replacements), `account` (a word on everything that stays). What it decides is data.
"""

from nebula_core.planning.autoscale import wanted_replicas
from nebula_core.planning.drain import may_stop
from nebula_core.planning.index import ReplicaFacts
from nebula_core.planning.place import Chooser, Placed, Rejected, Request
from nebula_core.planning.revision import outdated, spec_difference, spec_of_generation
from nebula_core.planning.rooms import Room
from nebula_core.planning.shared import Shared
from nebula_core.planning.standing import how_it_is, must_leave, worth
from nebula_core.records.adoption import Adoption, AdoptTarget
from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.ids import replica_id
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.plan import Bucket, PlacementChange, PlanEntry, Unplaceable
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.snapshot import NodeState


class DeploymentPass:
    def __init__(self, shared: Shared, name: str) -> None:
        self.name = name
        self.entries: list[PlanEntry] = []
        self.changes: list[PlacementChange] = []
        self.unplaceable: list[Unplaceable] = []
        self._shared = shared
        self._deployment: Deployment | None = shared.view.deployments.get(name)
        self.wanted = 0 if self._deployment is None else wanted_replicas(self._deployment.spec)
        self._good: list[ReplicaFacts] = []
        self._outgoing: list[tuple[ReplicaFacts, str]] = []
        self._lost: list[ReplicaFacts] = []
        self._leaving: list[ReplicaFacts] = []
        self._retired: set[str] = set()
        self._started: list[str] = []
        #: Given to replicas that start in this pass.
        self._addresses: set[str] = set()
        self._next_ordinal: int | None = None
        for facts in shared.index.replicas_of(name):
            self._sort(facts)

    @property
    def present(self) -> int:
        """Replicas that count: wanted to run, and not on a lost node."""
        return len(self._good) + len(self._outgoing) + len(self._started)

    @property
    def at_rest(self) -> bool:
        """Nothing to do and nothing under way: this verdict holds until something it rests on moves."""
        return (
            not self.changes
            and not self.unplaceable
            and len(self.entries) == len(self._good)
            and all(facts.node.state is NodeState.READY for facts in self._good)
        )

    def _sort(self, facts: ReplicaFacts) -> None:
        if facts.placement.wanted is not Wanted.RUN:
            self._leaving.append(facts)
        elif facts.node.lost and not self._keeps_lost:
            self._lost.append(facts)
        elif (why := self._why_outgoing(facts)) is not None:
            self._outgoing.append((facts, why))
        else:
            self._good.append(facts)

    @property
    def _keeps_lost(self) -> bool:
        return self._deployment is not None and self._deployment.spec.on_node_lost == "keep"

    def _why_outgoing(self, facts: ReplicaFacts) -> str | None:
        """Why this replica must be replaced although it runs; None to leave it where it is."""
        if self._deployment is None or facts.node.lost:
            return None
        intent = facts.node.intent
        if intent is not None and intent.drain is not None:
            return f"node {facts.node.name} is drained by {intent.drain.by}"
        for move in self._deployment.moves:
            if move.replica == facts.id and facts.placement.generation < move.generation:
                return move.reason
        for gpu in facts.placement.gpus:
            if gpu in facts.node.faults:
                return f"gpu {gpu}: {facts.node.faults[gpu]}"
        for label, value in self._deployment.spec.placement.labels.items():
            if facts.node.known and facts.node.labels.get(label) != value:
                return f"node {facts.node.name} has no label {label}={value}"
        return outdated(facts.placement, self._deployment)

    # -- on the way out ------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Goes on with drains and stops that were decided before."""
        missing = self.wanted - self.present
        for facts in self._leaving:
            if missing > 0 and self._may_come_back(facts):
                missing -= 1
                self._write(facts, Wanted.RUN, f"takes {facts.id} back into service", "wanted again while it drained")
                self._enter(Bucket.KEEP, facts, "taken back while it drained")
                self._good.append(facts)
            elif facts.placement.wanted is Wanted.DRAIN:
                self._go_on_draining(facts)
            else:
                self._go_on_stopping(facts)

    def _may_come_back(self, facts: ReplicaFacts) -> bool:
        return (
            facts.placement.wanted is Wanted.DRAIN
            and facts.node.state is NodeState.READY
            and facts.phase in {Phase.READY, Phase.DRAINING}
            and (facts.node.intent is None or not facts.node.intent.closed)
            and self._why_outgoing(facts) is None
        )

    def _go_on_draining(self, facts: ReplicaFacts) -> None:
        shared = self._shared
        if not facts.node.known and facts.node.lost:
            self._remove(facts, f"node {facts.node.name} was removed from the cluster")
            return
        seen = shared.policy.memory.drains.get(facts.id)
        gate = may_stop(shared.view, facts.placement, facts.status, shared.now, seen)
        if gate.open:
            self._write(facts, Wanted.STOP, f"stops {facts.id}: {gate.reason}", gate.reason)
            self._enter(Bucket.STOPPING, facts, f"drained: {gate.reason}")
        else:
            self._enter(Bucket.STOPPING, facts, f"draining ({facts.placement.reason}): {gate.reason}")

    def _go_on_stopping(self, facts: ReplicaFacts) -> None:
        if facts.phase is Phase.STOPPED:
            self._remove(facts, "stopped")
        elif not facts.node.known and facts.node.lost:
            self._remove(facts, f"node {facts.node.name} was removed from the cluster")
        elif facts.status is None and self._is_forgotten(facts):
            self._remove(facts, "its agent does not know it any more")
        else:
            said = "nothing yet" if facts.phase is None else facts.phase.value
            self._enter(Bucket.STOPPING, facts, f"stop was ordered ({facts.placement.reason}); its agent says {said}")

    def _is_forgotten(self, facts: ReplicaFacts) -> bool:
        since = self._shared.policy.memory.stops.get(facts.id)
        if since is None or facts.node.state is not NodeState.READY:
            return False
        return self._shared.now - since >= self._shared.policy.forgotten_after_seconds

    # -- too few -------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Places what is missing."""
        missing = self.wanted - self.present
        if missing <= 0:
            return
        for adoption in self._adoptions()[:missing]:
            self._take_in(adoption)
            missing -= 1
        chooser = self._chooser(self._shared.rooms)
        for placed_before in range(missing):
            found = chooser.choose()
            if isinstance(found, Rejected):
                self._block(missing - placed_before, found)
                return
            self._start(chooser, found, self._why_missing())

    def _adoptions(self) -> list[Adoption]:
        """Engines started by hand that an operator wants here, that still run, and that no replica stands for yet."""
        deployment = self._deployment
        if deployment is None or not deployment.adoptions:
            return []
        everyone = [*self._good, *self._lost, *self._leaving, *(facts for facts, _ in self._outgoing)]
        taken = {facts.placement.adopt.found for facts in everyone if facts.placement.adopt is not None}
        found: list[Adoption] = []
        for adoption in deployment.adoptions:
            node = self._shared.index.nodes.get(adoption.node)
            status = None if node is None or node.lost else node.statuses.get(adoption.target.found)
            then = spec_of_generation(deployment, adoption.generation)
            if status is None or status.managed or adoption.target.found in taken:
                continue
            if not _same_start(status, adoption.target):
                # A container has one id for all of its starts, and the order was about one of them.
                continue
            if spec_difference(then, deployment.spec) is None:
                found.append(adoption)
        return found

    def _take_in(self, adoption: Adoption) -> None:
        deployment = self._deployment
        if deployment is None:
            raise ValueError(f"deployment {self.name} is gone: it takes nothing in")
        replica, target = self._new_id(), adoption.target
        self._started.append(replica)
        placement = self._placement(
            deployment, replica, adoption.node, adoption.gpus, f"takes in {target.found}, as it runs", adopt=target
        )
        what = f"takes in {target.found} (pid {target.pid} on {adoption.node}) as {replica}; nothing is restarted"
        self._place(placement, what, what)

    def _why_missing(self) -> str:
        if self._lost:
            facts = self._lost[min(len(self._started), len(self._lost) - 1)]
            return f"in place of {facts.id} on lost node {facts.node.name}"
        return f"{self.wanted} wanted"

    def _chooser(self, rooms: dict[str, Room]) -> Chooser:
        return Chooser(self._request(), rooms)

    def _request(self) -> Request:
        if self._deployment is None:
            raise ValueError(f"deployment {self.name} is gone: it has nothing to place")
        neighbours: dict[str, int] = {}
        # What drains is about to go: it must not push its replacement to a worse node, except off its own.
        for facts in self._good:
            neighbours[facts.node.name] = neighbours.get(facts.node.name, 0) + 1
        for facts, _ in self._outgoing:
            neighbours[facts.node.name] = neighbours.get(facts.node.name, 0) + 1
        return Request(self.name, self._deployment.spec, neighbours)

    def _start(self, chooser: Chooser, found: Placed, why: str) -> None:
        deployment = self._deployment
        if deployment is None:
            raise ValueError(f"deployment {self.name} is gone: nothing of it may start")
        replica = self._new_id()
        chooser.take(found, replica)
        self._shared.given.append((found.node, found.gpus, replica))
        self._started.append(replica)
        where = f" [{','.join(map(str, found.indexes))}]" if found.indexes else ""
        address = self._free_address(deployment.spec)
        placement = self._placement(
            deployment, replica, found.node, found.gpus, f"{why}; {found.reason}", address=address
        )
        if address is not None:
            self._addresses.add(address)
        self._place(placement, f"starts {replica} on {found.node}{where}", f"{why}: placed, {found.reason}")

    def _placement(
        self,
        deployment: Deployment,
        replica: str,
        node: str,
        gpus: tuple[str, ...],
        reason: str,
        *,
        adopt: AdoptTarget | None = None,
        address: str | None = None,
    ) -> Placement:
        return Placement(
            replica=replica,
            deployment=self.name,
            node=node,
            gpus=gpus,
            generation=deployment.generation,
            restart_nonce=deployment.restart_nonce,
            spec=deployment.spec,
            epoch=self._shared.policy.epoch,
            revision=self._shared.view.revision,
            reason=reason,
            adopt=adopt,
            address=address,
        )

    def _place(self, placement: Placement, change: str, entry: str) -> None:
        """Into the plan: what is written, and the line that says why."""
        self.changes.append(PlacementChange(replica=placement.replica, placement=placement, reason=change))
        self.entries.append(
            PlanEntry(
                bucket=Bucket.MISSING,
                deployment=self.name,
                replica=placement.replica,
                node=placement.node,
                gpus=placement.gpus,
                reason=entry,
            )
        )

    def _free_address(self, spec: DeploymentSpec) -> str | None:
        """Of an external engine's addresses one that no replica stands for, else one whose replica is on its way out."""
        stay = {facts.placement.address for facts in self._good} | self._addresses
        going = {facts.placement.address for facts in (*self._leaving, *self._lost)}
        going |= {facts.placement.address for facts, _ in self._outgoing}
        free = [address for address in spec.addresses if address not in stay]
        return min(free, key=lambda address: address in going, default=None)

    def _new_id(self) -> str:
        index = self._shared.index
        ordinal = index.top_ordinal(self.name) if self._next_ordinal is None else self._next_ordinal
        while True:
            ordinal += 1
            replica = replica_id(self.name, ordinal)
            if not index.is_taken(replica):
                self._next_ordinal = ordinal
                return replica

    def _block(self, count: int, found: Rejected) -> None:
        self.unplaceable.append(
            Unplaceable(deployment=self.name, count=count, reason=found.reason, verdicts=found.verdicts)
        )
        self.entries.append(
            PlanEntry(bucket=Bucket.MISSING, deployment=self.name, reason=f"{count} unplaceable: {found.reason}")
        )

    # -- too many ------------------------------------------------------------------------------------------------

    def shrink(self) -> None:
        """Retires what is above the wanted number, and what was lost and is made good."""
        surplus = len(self._good) - self.wanted
        if surplus > 0:
            why = "its deployment was deleted" if self._deployment is None else f"{self.wanted} wanted"
            crowd: dict[str, int] = {}
            for facts in self._good:
                crowd[facts.node.name] = crowd.get(facts.node.name, 0) + 1
            going = sorted(self._good, key=lambda facts: worth(facts, crowd))[:surplus]
            for facts in going:
                self._retire(facts, Bucket.SURPLUS, why)
            self._good = [facts for facts in self._good if facts.id not in self._retired]
        self._write_off()

    def _write_off(self) -> None:
        """A lost replica whose place is filled drains when its node returns; its node may also be gone for good."""
        whole = sum(1 for facts in self._good if facts.ready) >= self.wanted
        for facts in self._lost:
            silent = facts.node.silent_seconds
            age = "has never reported" if silent is None else f"is silent for {silent:.0f} s"
            if not facts.node.known:
                self._remove(facts, f"node {facts.node.name} was removed from the cluster")
            elif whole:
                self._retire(facts, Bucket.REPLACED, f"node {facts.node.name} {age}; others serve in its place")
            else:
                self._enter(Bucket.LOST, facts, f"node {facts.node.name} {age}")

    # -- in the wrong place or form ------------------------------------------------------------------------------

    def move(self) -> None:
        """Retires outgoing replicas that can be spared, and starts at most `surge` replacements above the number."""
        ready = sum(1 for facts in self._good if facts.ready) + sum(1 for facts, _ in self._outgoing if facts.ready)
        staying: list[tuple[ReplicaFacts, str]] = []
        for facts, why in sorted(self._outgoing, key=lambda item: (item[0].may_serve, item[0].ordinal, item[0].id)):
            others = ready - 1 if facts.ready else ready
            if not facts.may_serve:
                self._retire(facts, Bucket.MOVING, f"{why}; it serves nobody yet")
            elif others >= self.wanted or self._evacuated(facts):
                ready = others
                self._retire(facts, Bucket.REPLACED, f"{why}; {others} other{'s' if others != 1 else ''} ready")
            else:
                staying.append((facts, why))
        self._outgoing = staying
        if staying:
            self._replace_one()

    def _evacuated(self, facts: ReplicaFacts) -> bool:
        """Its node has to be emptied and every place is filled; a replica that failed for good holds up nothing."""
        if not must_leave(facts) or len(self._good) < self.wanted:
            return False
        settled = all(other.ready or other.failed for other in self._good)
        return settled and any(other.ready for other in self._good)

    def _replace_one(self) -> None:
        starting = [facts.id for facts in self._good if not facts.may_serve] + self._started
        if self.present >= self.wanted + self._shared.policy.surge:
            self._hold(f"waits for {', '.join(starting[:3]) or 'its replacement'} to serve")
            return
        if self.unplaceable:
            self._stop_first(self.unplaceable[0], starting)
            return
        chooser = self._chooser(self._shared.rooms)
        found = chooser.choose()
        if isinstance(found, Placed):
            facts, why = self._outgoing[0]
            self._start(chooser, found, f"replaces {facts.id}: {why}")
            self._hold("its replacement starts first")
            return
        self._stop_first(
            Unplaceable(deployment=self.name, count=1, reason=found.reason, verdicts=found.verdicts), starting
        )

    def _stop_first(self, blocked: Unplaceable, starting: list[str]) -> None:
        """No room for a replacement beside the old one: the old one makes it, one at a time."""
        going = [facts.id for facts in self._leaving if not facts.node.lost and facts.id not in self._retired]
        if starting or going:
            self._hold(f"no room for a replacement yet; waits for {', '.join((starting or going)[:3])}")
            return
        if (why := self._shared.unsettled) is not None:
            self._hold(f"no room for a replacement, but {why}: waits for it")
            return
        for number, (facts, why) in enumerate(self._outgoing):
            if must_leave(facts) or isinstance(self._chooser(self._shared.room_without(facts)).choose(), Placed):
                self._outgoing.pop(number)
                self._retire(facts, Bucket.MOVING, f"{why}; no room for a replacement first: {blocked.reason}")
                self._hold("one at a time")
                return
        if not self.unplaceable:
            self.unplaceable.append(blocked)
        self._hold(f"kept, because its replacement fits nowhere: {blocked.reason}")

    def _hold(self, reason: str) -> None:
        for facts, why in self._outgoing:
            self._enter(Bucket.MOVING, facts, f"{why}; {reason}")
        self._outgoing = []

    # -- writing it down -----------------------------------------------------------------------------------------

    def account(self) -> None:
        """A word on every replica that stays as it is; a replica whose placement is gone gets it back."""
        named = {entry.replica for entry in self.entries}
        for facts in self._good:
            if facts.adopted:
                self._write(facts, Wanted.RUN, f"adopts {facts.id} on {facts.node.name}", facts.placement.reason)
            if facts.id not in named:
                self._enter(Bucket.KEEP, facts, how_it_is(facts))

    def _retire(self, facts: ReplicaFacts, bucket: Bucket, why: str) -> None:
        self._retired.add(facts.id)
        if facts.never_served and self._shared.view.inflight(facts.id) == 0:
            self._write(facts, Wanted.STOP, f"stops {facts.id}: {why}", why)
        else:
            self._write(facts, Wanted.DRAIN, f"drains {facts.id}: {why}", why)
        self._enter(bucket, facts, why)

    def _write(self, facts: ReplicaFacts, wanted: Wanted, what: str, why: str) -> None:
        placement = facts.placement.model_copy(
            update={
                "wanted": wanted,
                "epoch": self._shared.policy.epoch,
                "revision": self._shared.view.revision,
                "reason": why,
            }
        )
        self.changes.append(PlacementChange(replica=facts.id, placement=placement, reason=what))

    def _remove(self, facts: ReplicaFacts, why: str) -> None:
        self.changes.append(PlacementChange(replica=facts.id, placement=None, reason=f"removes {facts.id}: {why}"))
        self._enter(Bucket.STOPPING, facts, f"removed: {why}")

    def _enter(self, bucket: Bucket, facts: ReplicaFacts, reason: str) -> None:
        self.entries.append(
            PlanEntry(
                bucket=bucket,
                deployment=self.name,
                replica=facts.id,
                node=facts.node.name,
                gpus=facts.placement.gpus,
                reason=reason,
            )
        )


def _same_start(status: ReplicaStatus, target: AdoptTarget) -> bool:
    """Whether what runs under the id that an order names is still the process it was about."""
    born = None if status.found is None else status.found.pid_born
    return status.pid == target.pid and born is not None and abs(born - target.pid_born) < 1.0
