"""How this process stands with the kernel: open descriptors, resident memory, the limits on both; and its collector."""

import contextlib
import gc
import os
import resource
from pathlib import Path

from nebula_core.runtime.memory import settle_memory

_PAGE = resource.getpagesize()
_CGROUPS = Path("/sys/fs/cgroup")


def raise_descriptor_limit() -> int:
    """Takes the hard limit on open files for the soft one, as servers do; the limit now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft


def descriptor_limit() -> int:
    """As it is now: `prlimit` may change it while we run."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def open_descriptors() -> int:
    """Counted: some microseconds per hundred."""
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - a name each is all that is wanted


def resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - read each second
        return int(file.read().split()[1]) * _PAGE


def calm_collector() -> None:
    """Once a worker has started: the collector looks at young objects after 20,000 of them instead of 700, and at old ones rarely.

    Nearly all we make goes without it, and a walk over the records of 1,000 nodes holds a loop for a tenth of a second.
    """
    settle_memory()
    gc.set_threshold(20_000, 50, 100)


class MemoryGroup:
    """The control group (v2) this process is in; `limit_bytes` is None where there is none or it sets no limit."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder if folder is not None else _own_folder()
        self.limit_bytes = self._limit()

    def used_bytes(self) -> int | None:
        """What cannot be given back: without file pages that nobody uses."""
        if self._folder is None:
            return None
        try:
            current = int((self._folder / "memory.current").read_text(encoding="ascii"))
            for line in (self._folder / "memory.stat").read_text(encoding="ascii").splitlines():
                if line.startswith("inactive_file "):
                    return max(0, current - int(line.split()[1]))
        except (OSError, ValueError):
            return None
        return current

    def _limit(self) -> int | None:
        if self._folder is None:
            return None
        try:
            text = (self._folder / "memory.max").read_text(encoding="ascii").strip()
        except OSError:
            return None
        return int(text) if text.isdecimal() else None


def _own_folder() -> Path | None:
    try:
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            if line.startswith("0::"):
                folder = _CGROUPS / line[3:].lstrip("/")
                return folder if (folder / "memory.current").exists() else None
    except (OSError, UnicodeDecodeError):
        return None
    return None
