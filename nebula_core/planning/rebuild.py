"""What a store that lost its memory is given back: from what is remembered, and from what the nodes hold.

Three witnesses, none of whom knows everything:

- *what this process remembers* (it lived through the loss): deployments, intents, keys and placements as they were;
- *the workers' routing snapshot* on disk: the same but intents, up to a minute old;
- *the nodes*: of each replica the signed order they obey, with the spec it is started from. They alone say what runs.

The best of the first two is the base; where there is neither, it is the store as it stands (an older copy) or nothing. Over it
is laid what the nodes hold: the higher order of a replica counts, and what a node that answers does not hold is not
written back, so that nothing is started that had been stopped. A deployment that only nodes know is made from the newest spec
they hold, for as many replicas as run: an adopted store asks for nothing that is not there.

What is written is signed, and memory and disk only repeat what a store once said, to which others may have written. So an order that no
signature vouches for is taken only where it adds nothing: it says what the order says that its node shows (but for later
leaving), or it starts what its deployment asks for, which the planner would sign as well. Anything else stays out and is named.

Nothing here is done by itself. A person sees it, and the plan that would follow, before it is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nebula_core.planning.index import ADOPTABLE
from nebula_core.planning.revision import spec_difference
from nebula_core.records.access import ApiKey
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import Deployment
from nebula_core.records.node import Node, NodeIntent
from nebula_core.records.placement import HIGHEST_CREDIBLE_EPOCH, HIGHEST_CREDIBLE_REVISION, Placement, Wanted
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.snapshot import ClusterSnapshot, NodeState
from nebula_core.records.store_memory import StoreDoubt


@dataclass(frozen=True, slots=True)
class Witnesses:
    doubt: StoreDoubt
    #: The cluster as this process sees it: always the reports.
    view: ClusterSnapshot
    #: The durable records of `view` are from before the loss; else they are what the store has now.
    remembers: bool
    #: By node: the orders it shows, each verified for that node.
    held: Mapping[str, Sequence[Placement]] = field(default_factory=frozen_map)
    #: The routing snapshot of the workers of this machine.
    kept: ClusterSnapshot | None = None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What is written. `notes` are (kind/name, words) on what an operator should look at."""

    base: str
    deployments: Mapping[str, Deployment]
    placements: Mapping[str, Placement]
    intents: Mapping[str, NodeIntent]
    keys: Mapping[str, ApiKey]
    nodes: Mapping[str, Node]
    notes: tuple[tuple[str, str], ...] = ()
    #: Nodes that do not answer: what they hold is known only as far as the base knows it.
    silent: tuple[str, ...] = ()
    #: Highest order any placement has had: what is written must be above it.
    highest_epoch: int = 0
    highest_revision: int = 0


MEMORY = "what this process remembers"
KEPT = "the workers' routing snapshot on disk"
STORE = "the store as it stands"
NODES = "what the nodes hold"


def rebuilt(seen: Witnesses, now: float) -> Rebuilt:
    """`now` is in the monotonic seconds of the view's times of receipt."""
    return _Rebuilding(seen, now).result()


class _Rebuilding:
    """Filled once, from the base to the nodes."""

    def __init__(self, seen: Witnesses, now: float) -> None:
        self._seen = seen
        self._view = seen.view
        self._base_name, self._base = _base(seen)
        names = self._view.reports.keys() | self._view.nodes.keys() | self._base.nodes.keys()
        names |= {placement.node for placement in self._base.placements.values()}
        self._heard = {name for name in names if self._view.node_state(name, now) is not NodeState.LOST}
        self._silent = sorted(names - self._heard)
        self._notes: list[tuple[str, str]] = []
        self._statuses: dict[tuple[str, str], ReplicaStatus] = {
            (node, status.id): status
            for node in sorted(self._heard)
            if node in self._view.reports
            for status in self._view.reports[node].report.replicas
            if status.managed and status.node == node
        }
        self._shown = {(node, one.replica): one for node, orders in seen.held.items() for one in orders}
        self._placements: dict[str, Placement] = {}

    def result(self) -> Rebuilt:
        self._take_base()
        for node in sorted(self._seen.held):
            for placement in self._seen.held[node]:
                self._take_held(placement)
        self._leave_out_what_is_over()
        self._name_what_is_not_shown()
        deployments = self._deployments()
        epochs = [one.epoch for one in self._every_placement()]
        revisions = [one.revision for one in self._every_placement()]
        statuses = self._statuses.values()
        return Rebuilt(
            base=self._base_name,
            deployments=frozen_map(deployments),
            placements=frozen_map(dict(sorted(self._placements.items()))),
            intents=frozen_map({**self._base.intents, **self._view.intents}),
            keys=frozen_map(self._keys()),
            nodes=frozen_map({**self._base.nodes, **self._view.nodes}),
            notes=tuple(self._notes),
            silent=tuple(self._silent),
            highest_epoch=max_credible(
                [*epochs, *(status.placement_epoch for status in statuses)], HIGHEST_CREDIBLE_EPOCH
            ),
            highest_revision=max_credible(
                [self._base.revision, self._view.revision, *revisions, *(one.placement_revision for one in statuses)],
                HIGHEST_CREDIBLE_REVISION,
            ),
        )

    def _every_placement(self) -> Iterable[Placement]:
        yield from self._base.placements.values()
        for held in self._seen.held.values():
            yield from held

    # -- placements ------------------------------------------------------------------------------------------------

    def _take_base(self) -> None:
        for replica, placement in self._base.placements.items():
            if placement.node in self._heard and (placement.node, replica) not in self._statuses:
                self._note(f"replica/{replica}", f"not written back: {placement.node} answers and does not hold it")
                continue
            if placement.replica != replica or not self._is_ours(placement):
                self._note(
                    f"replica/{replica}",
                    f"the order remembered of it is not the one that {placement.node} shows, and not what its deployment asks "
                    "for: not written back; look who writes to the store",
                )
                continue
            self._placements[replica] = placement

    def _is_ours(self, placement: Placement) -> bool:
        """Whether signing this order gives nobody what our signature has not given before, or would give now."""
        shown = self._shown.get((placement.node, placement.replica))
        if shown is not None:
            return _said_again(placement, shown)
        deployment = self._base.deployments.get(placement.deployment)
        return deployment is not None and _asked_for(placement, deployment)

    def _take_held(self, placement: Placement) -> None:
        about = f"replica/{placement.replica}"
        status = self._statuses.get((placement.node, placement.replica))
        if status is None:
            return  # a moment ago; it is gone, or its node is
        if (status.placement_epoch, status.placement_revision) != placement.order:
            self._note(about, f"{placement.node} shows another order of it than the one it reports")
            return
        known = self._placements.get(placement.replica)
        if known is None or placement.order > known.order:
            self._placements[placement.replica] = placement
            known, placement = placement, known or placement
        if known.node != placement.node:
            self._note(
                about,
                f"held by {known.node} and by {placement.node}: the later order counts, {known.node}; look at the other",
            )

    def _leave_out_what_is_over(self) -> None:
        for replica, placement in list(self._placements.items()):
            status = self._statuses.get((placement.node, replica))
            if placement.wanted is Wanted.STOP and status is not None and status.phase is Phase.STOPPED:
                del self._placements[replica]

    def _name_what_is_not_shown(self) -> None:
        for (node, replica), status in self._statuses.items():
            if status.phase in ADOPTABLE and replica not in self._placements:
                self._note(
                    f"replica/{replica}",
                    f"runs on {node}, whose agent shows no order of it that this control plane signed: not written back",
                )

    # -- deployments -----------------------------------------------------------------------------------------------

    def _deployments(self) -> dict[str, Deployment]:
        found = dict(self._base.deployments)
        held: dict[str, list[Placement]] = {}
        for placement in self._placements.values():
            held.setdefault(placement.deployment, []).append(placement)
        for name, placements in sorted(held.items()):
            known = found.get(name)
            newest = max(placement.generation for placement in placements)
            if known is not None and known.generation >= newest:
                continue
            if known is None and self._seen.remembers:
                continue  # it was deleted: what is left of it is on its way out
            found[name] = self._from_orders(name, known, placements)
        return found

    def _from_orders(self, name: str, known: Deployment | None, placements: Sequence[Placement]) -> Deployment:
        newest = max(placements, key=lambda one: one.generation)
        running = sum(1 for one in placements if one.wanted is Wanted.RUN)
        spec = newest.spec
        if spec.autoscale is None and spec.replicas != running:
            # How many were wanted last is not known: a change of the number leaves no trace on a node.
            self._note(f"deployment/{name}", f"{running} run; generation {newest.generation} asked for {spec.replicas}")
            spec = spec.model_copy(update={"replicas": running})
        else:
            self._note(f"deployment/{name}", f"made from the orders of its {running} replicas")
        older = () if known is None else (known.spec, *known.history)
        return Deployment(
            name=name,
            generation=newest.generation + 1,
            spec=spec,
            # The lowest: a restart that was under way is not gone on with.
            restart_nonce=min(one.restart_nonce for one in placements),
            history=(newest.spec, *older)[:10],
        )

    # -- the rest --------------------------------------------------------------------------------------------------

    def _keys(self) -> dict[str, ApiKey]:
        """Of an older copy that is not the base nothing is taken: keys that were deleted since stand in it."""
        found = dict(self._base.keys)
        if self._base is self._view or self._seen.doubt is StoreDoubt.STALE:
            return found
        for name, key in self._view.keys.items():
            known = found.get(name)
            if known is None or (key.generation, key.revoked) > (known.generation, known.revoked):
                found[name] = key
        return found

    def _note(self, about: str, words: str) -> None:
        self._notes.append((about, words))


def _said_again(placement: Placement, shown: Placement) -> bool:
    """Whether it differs from the order that is shown at most in when it was given and in whether the replica leaves."""
    said = {"wanted": placement.wanted, "epoch": placement.epoch, "revision": placement.revision}
    return placement == shown.model_copy(update={**said, "reason": placement.reason})


def _asked_for(placement: Placement, deployment: Deployment) -> bool:
    """Whether the deployment, as it is or as it was, would have such an engine started."""
    specs = [one for one in (deployment.spec, *deployment.history) if spec_difference(placement.spec, one) is None]
    if placement.address is not None:
        specs = [one for one in specs if placement.address in one.addresses]
    targets = {one.target for one in deployment.adoptions}
    return bool(specs) and (placement.adopt is None or placement.adopt in targets)


def max_credible(found: Iterable[int], limit: int) -> int:
    """The highest below `limit`, or 0: what any node reports must not use up the numbers of all."""
    return max((number for number in found if number < limit), default=0)


def _base(seen: Witnesses) -> tuple[str, ClusterSnapshot]:
    view, kept = seen.view, seen.kept
    if seen.remembers:
        return MEMORY, view
    if seen.doubt is StoreDoubt.EMPTIED:
        if kept is not None and kept.incarnation != view.incarnation:
            return KEPT, kept
        return NODES, view
    if kept is not None and kept.incarnation == view.incarnation and kept.revision > view.revision:
        return KEPT, kept
    return STORE, view
