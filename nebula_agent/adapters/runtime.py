"""How an engine is run: the seam between the owner of a replica and a process, a container, a sidecar, an address.

A runtime starts, looks at, stops and finds again; it decides nothing. What it needs to find a start again after the
agent was restarted is in `Started`, which the owner keeps on disk.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from nebula_agent.decisions.lifecycle import Life
from nebula_agent.engines.base import Command, Launch
from nebula_core.records.base import Record


class Started(Record):
    """One start of an engine, as it is found again."""

    runtime: str
    engine_epoch: str
    #: Where it listens; `probe_host` is how this node itself reaches it.
    host: str
    probe_host: str
    port: int
    ports: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    log_file: str
    #: Bytes of the log file that belong to earlier starts.
    log_offset: int = 0
    #: Unix seconds, for display.
    started_at: float
    boot_id: str
    pid: int | None = None
    #: With pid and boot, the identity of the process: when it began, in seconds since boot (no clock can step it).
    pid_born: float | None = None
    #: `NAME=value` in the environment of every process of this start.
    marker: str | None = None
    container_id: str | None = None
    #: Of a container that was taken in: which of its starts this is, as Docker tells the time.
    container_started_at: float | None = None
    #: Where it listens within such a container, if that has a network of its own.
    container_port: int | None = None
    #: What the container was made of: reference and digest.
    image: str | None = None
    image_digest: str | None = None
    #: The kernel's count of out-of-memory kills when it began: one more, and a SIGKILL is explained.
    oom_kills: int | None = None
    #: How much there is to load, where it lies on this node's disk.
    weights_bytes: int | None = None
    #: Of an engine that nobody here started: which kind it is, and what it calls the model.
    detected: str | None = None
    served_model: str | None = None
    #: Somebody started it by hand, and it was taken in.
    taken_in: bool = False
    #: Under which proxies reach it, where that is not its node's address.
    reached_at: str | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What a runtime sees of a start at one moment."""

    life: Life
    #: Exit status, negative for a signal; None when unknown or not ended.
    status: int | None = None
    #: What the runtime itself knows of the end, e.g. that the kernel ran out of memory.
    said: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """What stopping came to."""

    #: SIGTERM was not enough.
    killed: bool = False
    #: Processes that even SIGKILL did not end (a driver call): they hold what they hold.
    survivors: tuple[int, ...] = ()
    #: Shared memory files that were left behind, and removed.
    swept: tuple[str, ...] = ()
    status: int | None = None
    #: Why it could not be ended now, though nothing of it resists: Docker does not answer. To be tried again.
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """Where and under which name a start takes place."""

    replica: str
    engine_epoch: str
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    #: For containers: what they are made of, and what they are found again by.
    image: "StartImage | None" = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StartImage:
    """The image of one start, on this node and verified."""

    #: `sha256:…` of its configuration.
    id: str
    #: As it was asked for, and what its registry calls that content; None where it never came from one.
    reference: str
    digest: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """One way to run engines."""

    @property
    def kind(self) -> str: ...

    def inside(self, launch: Launch) -> Launch:
        """The launch as the engine itself sees it: in a container, other addresses and paths."""
        ...

    async def start(self, launch: Launch, command: Command, room: Room) -> Started:
        """Starts the engine. Raises OSError, or NebulaError with the reason."""
        ...

    async def know(self, started: Started, replica: str) -> None:
        """An engine that an earlier agent process started."""
        ...

    def look(self, started: Started) -> Look:
        """Quick; never blocks."""
        ...

    async def ended(self, started: Started, timeout: float) -> None:
        """Returns when the engine's leader ends, or after `timeout` seconds."""
        ...

    async def members(self, started: Started) -> frozenset[int]:
        """Pids of all processes of this start."""
        ...

    async def stop(self, started: Started, *, term_seconds: float) -> Ended:
        """Ends all of it: asks, waits, kills, sweeps, and proves that nothing is left."""
        ...

    def let_go(self, started: Started) -> None:
        """The agent leaves and the engine stays. Quick; never blocks.

        Nothing that is said from now on is written here: the next agent's runtime goes on with the log.
        """
        ...
