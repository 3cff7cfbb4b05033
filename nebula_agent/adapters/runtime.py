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


@dataclass(frozen=True, slots=True)
class Look:
    """What a runtime sees of a start at one moment."""

    life: Life
    #: Exit status, negative for a signal; None when unknown or not ended.
    status: int | None = None


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


@dataclass(frozen=True, slots=True)
class Room:
    """Where and under which name a start takes place."""

    replica: str
    engine_epoch: str
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """One way to run engines."""

    @property
    def kind(self) -> str: ...

    async def start(self, launch: Launch, command: Command, room: Room) -> Started:
        """Starts the engine. Raises OSError, or NebulaError with the reason."""
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
        """The agent leaves and the engine stays."""
        ...
