"""Why an engine ended, in a sentence, from its exit status and its last lines."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NAMES = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    4: "SIGILL",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    13: "SIGPIPE",
    15: "SIGTERM",
    24: "SIGXCPU",
    25: "SIGXFSZ",
    31: "SIGSYS",
}

_SIGKILLED = frozenset({-9, 137})


@dataclass(frozen=True, slots=True)
class _Cause:
    pattern: re.Pattern[str]
    meaning: str


#: The most telling first. `{0}` is the line itself.
_CAUSES = tuple(
    _Cause(re.compile(pattern, re.IGNORECASE), meaning)
    for pattern, meaning in (
        (
            r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|cudaErrorMemoryAllocation|ErrorOutOfDeviceMemory",
            "out of GPU memory: lower gpu-memory-utilization or max-model-len, or ask for more GPUs",
        ),
        (
            r"No available memory for the cache blocks|larger than the available KV cache memory",
            "too little GPU memory for the KV cache: lower max-model-len or raise gpu-memory-utilization",
        ),
        (
            r"Free memory on device .* is less than desired",
            "the GPU is not empty: another process holds memory, or lower gpu-memory-utilization",
        ),
        (
            r"DefaultCPUAllocator: can't allocate|Cannot allocate memory|\bMemoryError\b|std::bad_alloc",
            "out of host memory",
        ),
        (r"address already in use|errno 98|couldn't bind HTTP server socket|cannot listen on", "its port was taken"),
        (r"No space left on device", "the disk is full"),
        (
            r"Repository Not Found|RepositoryNotFoundError|is not a valid model identifier|LocalEntryNotFoundError",
            "the model was not found: check `source`, and the hub token if it is a gated model",
        ),
        (r"unrecognized arguments?:|error: argument --|invalid argument: --", "an option is wrong: {0}"),
    )
)
_ERROR_LINE = re.compile(r"^\S*(?:Error|Exception)\b.*:\s*\S|\b(?:ERROR|FATAL|CRITICAL)\b", re.ASCII)


def describe_status(status: int | None) -> str:
    """`exit code 1`, `killed by SIGKILL`, or that nobody could tell."""
    if status is None:
        return "ended (exit status unknown: it was adopted)"
    if status < 0:
        return f"killed by {_NAMES.get(-status, f'signal {-status}')}"
    if status > 128 and status - 128 in _NAMES:
        return f"exit code {status} ({_NAMES[status - 128]})"
    return f"exit code {status}"


def describe_exit(status: int | None, lines: Sequence[str], *, oom_killed: bool = False) -> str:
    """One sentence: how it ended, and what its last lines say about why.

    `oom_killed`: the kernel killed some process for want of memory while this one ran.
    """
    how = describe_status(status)
    if oom_killed and (status is None or status in _SIGKILLED):
        return f"{how}: the kernel's out-of-memory killer. Out of host memory: give the node more, or the engine less"
    cause = find_cause(lines)
    if cause is not None:
        return f"{how}: {cause}"
    if status in _SIGKILLED:
        return f"{how}, not by this agent: the kernel's out-of-memory killer, or somebody by hand (see the kernel log)"
    telling = next((line.strip() for line in reversed(lines) if _ERROR_LINE.search(line)), None)
    return how if telling is None else f"{how}: {telling[:200]}"


def find_cause(lines: Sequence[str]) -> str | None:
    """What a known message among the lines means."""
    for cause in _CAUSES:
        for line in reversed(lines):
            if cause.pattern.search(line):
                return cause.meaning.format(line.strip()[:200])
    return None
