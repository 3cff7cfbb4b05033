"""Names and ids: their shapes, in one place, so that no path, log line or key can be broken by one."""

from typing import Annotated

from pydantic import StringConstraints

#: A machine with one agent: a DNS label, so that it can be a host name, a key and a URL segment.
NodeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$", max_length=63)]

#: Desired state of one model; also the name clients send in `model` (reliability T18, without the slash: it is a path segment).
DeploymentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", max_length=63)]

#: One running copy, `{deployment}-r{ordinal}`.
ReplicaId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", max_length=80)]

#: An accelerator by the UUID its driver gives (`GPU-…`, `MIG-…`, `sim-…`).
GpuId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,95}$", max_length=96)]

#: Kept from the client when it fits, else minted (CONTRACT, 3).
RequestId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$", max_length=64)]


def replica_id(deployment: str, ordinal: int) -> str:
    return f"{deployment}-r{ordinal}"


def replica_ordinal(deployment: str, replica: str) -> int | None:
    """The ordinal in a replica id of this deployment, or None for an id of another shape (an adopted engine)."""
    head = f"{deployment}-r"
    if not replica.startswith(head):
        return None
    digits = replica[len(head) :]
    # Exactly as `replica_id` writes it: no leading zeros, no digits of other scripts.
    return int(digits) if digits.isascii() and digits.isdecimal() and str(int(digits)) == digits else None
