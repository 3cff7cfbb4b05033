"""Who a process is: its name, user and container, read from /proc once for each process."""

from pathlib import Path

import psutil

from nebula_agent.adapters.process_runtime import born
from nebula_agent.decisions.cgroup import container_of
from nebula_agent.decisions.gpu_ledger import ProcessFacts

#: Processes remembered; beyond it the memory starts anew.
REMEMBERED = 1024
SHORT_ID = 12


class ProcessBook:
    """Remembers by pid and when the process began, so that a recycled number is looked up again."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, float | None], ProcessFacts] = {}

    def look_up(self, pid: int) -> ProcessFacts:
        key = (pid, born(pid))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[key] = read_facts(pid)
        return known


def read_facts(pid: int) -> ProcessFacts:
    """What /proc says; what this user may not see, or what is gone, is None."""
    name = user = container = None
    try:
        process = psutil.Process(pid)
        name = process.name()
        user = process.username()
    except (psutil.Error, OSError, KeyError):
        pass  # gone, or not to be seen: the rest may still be
    try:
        found = container_of(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace"))
        container = None if found is None else found.id[:SHORT_ID]
    except OSError:
        pass
    return ProcessFacts(name, user, container)
