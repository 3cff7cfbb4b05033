"""How a replica is run when its deployment leaves it open (`runtime = "auto"`).

A container, where the node has Docker and the catalog knows an image: its processes cannot outlive it (reliability, rule 12).
The container beside the agent, where there is one: such a node is a pod, made for one engine.
A process, where the operator set a program of this node for the engine, where there is no Docker, and for the simulated engine.
"""

from collections.abc import Collection

from nebula_core.records.deployment import DeploymentSpec


def choose_runtime(
    spec: DeploymentSpec, runtimes: Collection[str], *, program_set: bool, program_found: bool, has_image: bool
) -> str:
    """`program_set`: by settings or `NEBULA_<ENGINE>`; `program_found`: anywhere on this node."""
    if spec.runtime != "auto":
        return spec.runtime
    if spec.engine == "external":
        return "external"
    if "sidecar" in runtimes:
        return "sidecar"
    if "docker" not in runtimes:
        return "process"
    if spec.image != "auto":
        return "docker"
    if spec.engine == "simulated" or program_set:
        return "process"
    return "docker" if has_image or not program_found else "process"
