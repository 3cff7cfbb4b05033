"""What makes one start of an engine differ from another: a digest of everything the start depends on, and of nothing else.

The planner signs a placement anew for many reasons (a drain taken back, another number of replicas); an engine must
be restarted only when it would come up differently.
"""

import hashlib
import json

from nebula_core.records.placement import Placement

#: Fields of the spec that reach the engine's command line, its environment or its place.
_OF_THE_SPEC = frozenset({"source", "engine", "runtime", "gpus", "args", "image", "adapters"})


def launch_digest(placement: Placement) -> str:
    """16 hex digits; equal for two placements that start the same engine on the same GPUs."""
    content = {
        "model": placement.deployment,
        "gpus": sorted(placement.gpus),
        "restart_nonce": placement.restart_nonce,
        **({"address": placement.address} if placement.address is not None else {}),
        "spec": placement.spec.model_dump(mode="json", include=set(_OF_THE_SPEC)),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
