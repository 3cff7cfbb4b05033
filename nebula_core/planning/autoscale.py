"""How many replicas a deployment should have right now."""

from nebula_core.records.deployment import DeploymentSpec


def wanted_replicas(spec: DeploymentSpec) -> int:
    """`replicas`, held within the bounds of `autoscale` where those are given."""
    if spec.autoscale is None:
        return spec.replicas
    return max(spec.autoscale.min, min(spec.replicas, spec.autoscale.max))
