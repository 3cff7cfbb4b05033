"""Where processes stand: their state, where they wait in the kernel, and their stacks where this user may see them."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.decisions.evidence import ProcessState

#: For all processes of one engine together.
_STACKS_SECONDS = 6.0
_MOST_PROCESSES = 24
#: The program lies on a disk as well.
_disk = DiskThreads("stacks")
_MOST_BYTES = 64 * 1024
_FACTS = (
    "State",
    "PPid",
    "Threads",
    "VmRSS",
    "VmSwap",
    "SigQ",
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
)


async def look_at(pids: Iterable[int]) -> list[ProcessState]:
    """Everything that can be had within a few seconds; a process that ends meanwhile is left out."""
    chosen = sorted(pids)[:_MOST_PROCESSES]
    states = await asyncio.to_thread(lambda: [state for pid in chosen if (state := process_state(pid)) is not None])
    stacks = await _disk.look(_STACKS_SECONDS + 2.0, _all_stacks, tuple(state.pid for state in states))
    return [
        ProcessState(
            each.pid, each.name, each.state, each.waits_in, each.facts, each.kernel_stack, stacks.get(each.pid, "")
        )
        for each in states
    ]


def process_state(pid: int) -> ProcessState | None:
    """What /proc says of it; None when there is no such process. Blocking: call it in a thread."""
    folder = Path(f"/proc/{pid}")
    status = _read(folder / "status")
    if not status:
        return None
    facts = dict(line.partition(":")[::2] for line in status.splitlines() if ":" in line)
    return ProcessState(
        pid=pid,
        name=facts.get("Name", "?").strip(),
        state=facts.get("State", "?").strip()[:1],
        waits_in=_read(folder / "wchan").strip(),
        facts=", ".join(f"{name}: {facts[name].strip()}" for name in _FACTS if name in facts),
        kernel_stack=_read(folder / "stack"),
    )


def waits_in_kernel(pid: int) -> bool:
    """State D: no signal reaches it. Blocking for a moment."""
    state = process_state(pid)
    return state is not None and state.state == "D"


def _all_stacks(pids: tuple[int, ...]) -> dict[int, str]:
    """`py-spy dump` of each, as far as the time goes; without stopping the processes: the engine may recover."""
    program = shutil.which("py-spy")
    stacks: dict[int, str] = {}
    deadline = time.monotonic() + _STACKS_SECONDS
    for pid in pids if program is not None else ():
        try:
            said = subprocess.run(
                [str(program), "dump", "--nonblocking", "--pid", str(pid)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=max(0.0, deadline - time.monotonic()),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            break
        stacks[pid] = said.stdout[:_MOST_BYTES].decode("utf-8", "replace")
    return stacks


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
