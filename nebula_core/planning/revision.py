"""Whether a running replica is still what its deployment asks for, or must be replaced by one of the new spec.

A generation rises with every change of the spec, and most changes (how many, how routed, how drained) do not touch
an engine that runs. Only the fields below are part of what was started; a change in one replaces the replicas.
"""

from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.placement import Placement

#: What an engine is started with, and the words for a change of it.
STARTED_WITH: tuple[tuple[str, str], ...] = (
    ("source", "source"),
    ("engine", "engine"),
    ("runtime", "runtime"),
    ("gpus", "number of GPUs"),
    ("gpu_memory_bytes", "GPU memory"),
    ("args", "args"),
    ("image", "image"),
    ("adapters", "adapters"),
)


def spec_difference(old: DeploymentSpec, new: DeploymentSpec) -> str | None:
    """The first thing that asks for another engine start, in words; None when the running one will do."""
    if old is new:
        return None
    for name, words in STARTED_WITH:
        if getattr(old, name) != getattr(new, name):
            return words
    return None


def outdated(placement: Placement, deployment: Deployment) -> str | None:
    """Why this placement must be replaced, or None."""
    if placement.restart_nonce < deployment.restart_nonce:
        return "restart asked for"
    for move in deployment.moves:
        # An order means what was placed before it, never a later replica of the same id.
        if move.replica == placement.replica and placement.generation < move.generation:
            return move.reason
    changed = spec_difference(placement.spec, deployment.spec)
    return f"new {changed} in generation {deployment.generation}" if changed else None


def spec_of_generation(deployment: Deployment, generation: int) -> DeploymentSpec:
    """The spec of an earlier generation from the history; the present one where that is not known any more."""
    steps_back = deployment.generation - generation
    if 1 <= steps_back <= len(deployment.history):
        return deployment.history[steps_back - 1]
    return deployment.spec
