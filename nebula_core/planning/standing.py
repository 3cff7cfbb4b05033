"""How one replica stands: what it is worth beside others, whether it must leave its place, and the words for it."""

from nebula_core.planning.index import NodeFacts, ReplicaFacts
from nebula_core.records.snapshot import NodeState


def must_leave(facts: ReplicaFacts) -> bool:
    return facts.node.draining or any(gpu in facts.node.faults for gpu in facts.placement.gpus)


def worth(facts: ReplicaFacts, crowd: dict[str, int]) -> tuple[bool, bool, bool, bool, int, int]:
    """Least worth keeping first: not serving, on a shaky, closed or crowded node, newest."""
    node: NodeFacts = facts.node
    closed = node.intent is not None and node.intent.closed
    return (
        facts.ready,
        facts.may_serve,
        node.state is NodeState.READY,
        not closed,
        -crowd.get(node.name, 0),
        -facts.ordinal,
    )


def how_it_is(facts: ReplicaFacts) -> str:
    status = facts.status
    if status is None:
        return f"kept: node {facts.node.name} is {facts.node.state}" if facts.node.lost else "waits for its agent"
    said = status.phase.value if status.phase_reason is None else f"{status.phase.value}: {status.phase_reason}"
    if facts.failed:
        return f"{said}; its agent decides about another start"
    if facts.node.state is not NodeState.READY:
        return f"{said}, node {facts.node.name} is {facts.node.state}"
    return said
