"""What the loops of one agent share: settings, clock, doors. Built once, in `agent.py`."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.docker_runtime import DockerRuntime
from nebula_agent.adapters.engine_http import EngineHttp
from nebula_agent.adapters.external_runtime import ExternalRuntime
from nebula_agent.adapters.gpus import GpuReading
from nebula_agent.adapters.node_files import NodeFiles
from nebula_agent.adapters.ports import first_free
from nebula_agent.adapters.process_runtime import ProcessRuntime
from nebula_agent.adapters.runtime import Runtime, Started
from nebula_agent.decisions.policy import LocalPolicy
from nebula_agent.decisions.ports import blocks
from nebula_agent.engines.base import Program
from nebula_agent.loops.image_keeper import ImageKeeper
from nebula_agent.loops.model_keeper import ModelKeeper
from nebula_agent.settings import AgentSettings
from nebula_core.records.adoption import AdoptTarget
from nebula_core.records.report import Problem
from nebula_core.runtime.clock import Clock


@dataclass(slots=True)
class Problems:
    """What is wrong on this node, by what it is about; each is logged when it comes, not each second."""

    _by_subject: dict[str, Problem] = field(default_factory=dict)

    def set(self, subject: str, problem: Problem | None) -> bool:
        """Whether this is news. None: it is over."""
        former = self._by_subject.get(subject)
        if problem is None:
            self._by_subject.pop(subject, None)
        else:
            self._by_subject[subject] = problem
        return former != problem

    def all(self) -> tuple[Problem, ...]:
        return tuple(self._by_subject[subject] for subject in sorted(self._by_subject))


class PortBook:
    """Who has which ports of this node's range; one block is given out at a time."""

    def __init__(self, host: str, port_range: tuple[int, int]) -> None:
        self._host = host
        self._range = port_range
        self._by_replica: dict[str, tuple[int, ...]] = {}
        self._last: int | None = None
        self._turn = asyncio.Lock()

    def reserve(self, replica: str, ports: tuple[int, ...]) -> None:
        """An engine that was found again has these."""
        self._by_replica[replica] = ports

    async def take(self, replica: str, size: int) -> tuple[int, ...]:
        """A block that nobody has and nobody listens on. Raises NoPort."""
        async with self._turn:
            taken = {port for ports in self._by_replica.values() for port in ports}
            candidates = blocks(self._range, size, taken, self._last)
            block = tuple(await asyncio.to_thread(first_free, self._host, candidates))
            self._by_replica[replica] = block
            self._last = block[0]
            return block

    def release(self, replica: str) -> None:
        self._by_replica.pop(replica, None)


def replica_lane(replica: str) -> str:
    """Where the files of one replica are written, in order: its book, its key, its log."""
    return f"replica:{replica}"


def with_faults(reading: GpuReading, faults: Mapping[str, str]) -> GpuReading:
    """The reading with what this agent knows of GPUs that the driver does not say."""
    if not faults:
        return reading
    samples = tuple(
        sample.model_copy(update={"fault": sample.fault or faults[sample.gpu]}) if sample.gpu in faults else sample
        for sample in reading.samples
    )
    return replace(reading, samples=samples)


@dataclass(frozen=True, slots=True)
class TakeIn:
    """An engine that somebody started by hand, as a replica of this agent would have started it."""

    started: Started
    key: str | None = field(default=None, repr=False)


def _finds_nothing(target: AdoptTarget) -> TakeIn | str:
    return f"{target.found} cannot be taken in: this agent looks for no engines (`discovery.enabled`)"


@dataclass(slots=True)
class Context:
    settings: AgentSettings
    clock: Clock
    boot_id: str
    version: str
    files: NodeFiles
    policy: LocalPolicy
    http: EngineHttp
    processes: ProcessRuntime
    runtimes: Mapping[str, Runtime]
    #: Programs found on this node, by kind of engine.
    programs: Mapping[str, Program]
    #: Raw public key of the proxies; None: engines run without keys.
    sealing_key: bytes | None
    ports: PortBook
    #: Engines that somebody else runs.
    external: ExternalRuntime
    #: Kinds of engines whose program the environment of the agent names.
    programs_named: frozenset[str] = frozenset()
    #: None: this node runs no containers.
    images: ImageKeeper | None = None
    containers: DockerRuntime | None = None
    #: None: engines fetch their models themselves.
    models: ModelKeeper | None = None
    #: What lies in the agent's own folder; one lane per replica, see `replica_lane`.
    disk: DiskThreads = field(default_factory=lambda: DiskThreads("data"))
    #: What lies elsewhere: models by path, programs, keys of the operator.
    mounts: DiskThreads = field(default_factory=lambda: DiskThreads("mounts"))
    problems: Problems = field(default_factory=Problems)
    #: The engine that a placement takes in, if exactly that one runs now; or why it cannot be taken in.
    take_in: Callable[[AdoptTarget], TakeIn | str] = _finds_nothing
    #: The latest word on GPUs.
    gpus: GpuReading = field(default_factory=GpuReading)
    #: By replica: GPUs that a process holds which even SIGKILL does not end, and what to say of them.
    stuck_gpus: dict[str, dict[str, str]] = field(default_factory=dict)
    #: Called when something changed that a report should tell at once.
    changed: Callable[[], None] = lambda: None
