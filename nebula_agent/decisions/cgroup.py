"""Which container a process is in, told from `/proc/PID/cgroup` (cgroup v1 and v2; Docker, containerd, CRI-O, Podman, Kubernetes)."""

import re
from typing import NamedTuple


class Container(NamedTuple):
    """`id` has 64 hexadecimal digits; `kind` is who runs it, as far as the path tells."""

    id: str
    kind: str


#: An id stands alone in its segment, or between what a runtime puts around it for systemd (`docker-….scope`).
_SEGMENT = re.compile(
    r"(?:^|[/:])(?:(docker|libpod|crio|cri-containerd|containerd)[-:])?([0-9a-f]{64})(?:\.scope)?(?=$|[/:])"
)
_KINDS = {"libpod": "podman", "crio": "crio", "cri-containerd": "containerd", "containerd": "containerd"}


def container_of(cgroup: str) -> Container | None:
    """The innermost container named in the text of the file; None when the process is in none."""
    for line in cgroup.splitlines():
        path = line.rpartition(":")[2] if line.startswith("0::") else line.partition(":")[2].partition(":")[2]
        found = list(_SEGMENT.finditer(path))
        if not found:
            continue
        last = found[-1]
        if last.group(1) is not None:
            kind = _KINDS.get(last.group(1), "docker")
        elif "kubepods" in path:
            kind = "kubernetes"
        elif "/libpod" in path or path.startswith("/machine.slice"):
            kind = "podman"
        else:
            kind = "docker"
        return Container(last.group(2), kind)
    return None
