"""Whose the memory of each GPU is: what engines hold, what strangers hold, what nobody explains.

    used = engines of ours + orphans of ours + others + unexplained

A driver lists processes by pid and the memory of each; the rest of what is in use is unexplained: a process that hides
(another PID namespace, no permission) or a driver that has not let go. Who owns a pid is found out once by the adapter
(`ProcessFacts`); here it is only put together, so that the same words stand in a report, in a problem, and in the
reason why a start has to wait.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from nebula_core.records.report import Problem
from nebula_core.records.sample import GpuProcess, GpuSample

#: Less than this is a display, a monitor, or the driver's own: no reason to wait.
IDLE_BYTES = 2 * 1024**3
#: The driver keeps some for itself without listing anybody.
RESERVED_BYTES = 1024**3


class ProcessFacts(NamedTuple):
    """Who a process is; None is unknown."""

    name: str | None = None
    user: str | None = None
    container: str | None = None
    #: The replica whose engine it belongs to.
    replica: str | None = None
    #: The replica it was started for, by its own mark; it may be gone.
    started_for: str | None = None


def entered(samples: Iterable[GpuSample], facts: Callable[[int], ProcessFacts]) -> tuple[GpuSample, ...]:
    """The samples with the owner of every process, and what is unexplained."""
    return tuple(_entered(sample, facts) for sample in samples)


def _entered(sample: GpuSample, facts: Callable[[int], ProcessFacts]) -> GpuSample:
    processes = tuple(_owned(process, facts(process.pid)) for process in sample.processes)
    return sample.model_copy(
        update={"processes": processes, "memory_unexplained_bytes": _unexplained(sample, processes)}
    )


def _owned(process: GpuProcess, known: ProcessFacts) -> GpuProcess:
    return process.model_copy(
        update={
            "name": process.name or known.name,
            "user": known.user,
            "container": known.container,
            "replica": process.replica or known.replica,
            "orphan": process.replica is None and known.replica is None and known.started_for is not None,
        }
    )


def _unexplained(sample: GpuSample, processes: tuple[GpuProcess, ...]) -> int | None:
    """None where the driver does not say what each process holds."""
    if sample.memory_used_bytes is None or any(process.memory_used_bytes is None for process in processes):
        return None
    return max(0, sample.memory_used_bytes - sum(process.memory_used_bytes or 0 for process in processes))


def stranger(sample: GpuSample) -> str | None:
    """Why a GPU that is to be had whole is not free: measured, not booked (gpustack#3859); None: it is."""
    held = [each for each in sample.processes if each.replica is None and (each.memory_used_bytes or 0) > IDLE_BYTES]
    if held:
        most = max(held, key=lambda each: each.memory_used_bytes or 0)
        whose = "an orphan of ours, which is being ended" if most.orphan else "which is none of ours"
        return f"{_gib(most.memory_used_bytes)} are held by {named(most)}, {whose}"
    ours = any(each.replica is not None for each in sample.processes)
    hidden = sample.memory_unexplained_bytes or 0
    if not ours and hidden > IDLE_BYTES + RESERVED_BYTES:
        return f"{_gib(hidden)} are held by nobody the driver names; `nvidia-smi` as root, or a reset, may tell"
    return None


def named(process: GpuProcess) -> str:
    """A process for people: `pid 4711 (python, of ana, container trainer)`."""
    words = [process.name or "", f"of {process.user}" if process.user else ""]
    words.append(f"container {process.container}" if process.container else "")
    about = ", ".join(word for word in words if word)
    return f"pid {process.pid} ({about})" if about else f"pid {process.pid}"


def orphans(samples: Iterable[GpuSample]) -> dict[int, list[str]]:
    """Pids that this agent started and nobody owns, with the GPUs they hold."""
    found: dict[int, list[str]] = {}
    for sample in samples:
        for process in sample.processes:
            if process.orphan:
                found.setdefault(process.pid, []).append(sample.gpu)
    return found


def strangers(samples: Iterable[GpuSample]) -> Mapping[str, Problem]:
    """A problem per GPU that somebody else fills."""
    found: dict[str, Problem] = {}
    for sample in samples:
        why = stranger(sample)
        if why is not None:
            found[sample.gpu] = Problem(
                code="gpu_held",
                message=f"gpu {sample.index}: {why}",
                hint="End it, or leave the GPU to it: nothing is placed there meanwhile",
            )
    return found


def _gib(count: int | None) -> str:
    return f"{(count or 0) / 1024**3:.1f} GiB"
