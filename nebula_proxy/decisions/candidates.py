"""Endpoints weighed for one request, and which of them are worth a score.

Figures of an engine are used only while fresh: overload is a lease of a few seconds, never a latch. A node that has
been silent keeps its endpoints, because absence is no order; they are taken only when nothing better is there.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

#: Two periods of the agents' samples: overload is a lease of that length, renewed by the next one that says so.
SAMPLE_FRESH_SECONDS = 2.0
#: A replica that has just become ready gets its whole share after so long: its caches are cold, its kernels not compiled.
SLOW_START_SECONDS = 30.0
#: With this share it begins.
SLOW_START_LEAST = 0.1


class Standing(IntEnum):
    """How much can be said for an endpoint before any figure; lower is better."""

    SOUND = 0
    #: Put out by direct evidence some time ago: one request may try it.
    PROBE = 1
    #: Its node has been silent for a moment.
    SUSPECT = 2
    #: It failed a moment ago, but it can be reached: when all do, none is left out (panic mode).
    STRUGGLING = 3
    #: Its node is silent for long, but nothing has been heard against the engine itself.
    SILENT = 4
    #: It cannot be reached.
    OUT = 5


class Candidate(NamedTuple):
    replica: str
    standing: Standing
    #: Open requests of this process, and of other proxies as they last said.
    inflight: int
    elsewhere: int
    #: None is unknown.
    waiting: int | None
    kv_cache_usage: float | None
    sample_age: float
    #: Bounds at which a replica is full.
    max_waiting: int
    max_kv_cache_usage: float
    max_inflight: int
    running: int | None = None
    #: Open requests of this process when the sample came: what was sent since is not in its figures.
    inflight_at_sample: int = 0
    #: Bytes of prompts that other proxies sent there and nobody has a first token of.
    unread_elsewhere: int = 0
    #: Share of the traffic against the others: below 1 while it starts slowly, 0 takes none while others stand.
    weight: float = 1.0
    #: Its bit in the model's prefix index; 0 has none.
    seat: int = 0
    #: Other proxies in which requests wait for it: then nobody keeps more of it than an even share.
    rivals: int = 0


def slow_start(seconds: float) -> float:
    """The share of a replica that became ready so many seconds ago."""
    return 1.0 if seconds >= SLOW_START_SECONDS else max(SLOW_START_LEAST, seconds / SLOW_START_SECONDS)


def untried(candidates: Sequence[Candidate], without: str | None) -> int:
    """How many may be tried besides the replica `without`."""
    return sum(candidate.standing is not Standing.OUT and candidate.replica != without for candidate in candidates)
