"""How often the kernel has killed a process because memory ran out, on the whole machine and in any cgroup."""

from pathlib import Path

_VMSTAT = Path("/proc/vmstat")


def oom_kills() -> int | None:
    """A counter since boot; None where the kernel does not say (before 4.13)."""
    try:
        for line in _VMSTAT.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        return None
    return None
