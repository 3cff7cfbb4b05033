"""What every engine is to the agent: a command, a way to see that it is ready, and names for its figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from nebula_agent.engines.accelerators import visible_gpus
from nebula_agent.engines.metrics import MetricNames
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import DeploymentSpec


@dataclass(frozen=True, slots=True)
class Program:
    """An engine's program as it was found on this node."""

    path: Path
    #: From the package beside it, without running it; None is unknown.
    version: tuple[int, ...] | None = None

    @property
    def version_text(self) -> str | None:
        return None if self.version is None else ".".join(map(str, self.version))


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything one start of an engine depends on."""

    replica: str
    #: The name clients send in `model`.
    model: str
    spec: DeploymentSpec
    program: Program
    #: By UUID, in the order in which the engine shall count them.
    gpus: tuple[str, ...]
    host: str
    #: A block of neighbouring ports of its own; the first one serves.
    ports: Sequence[int]
    #: The key of this start; None: the engine takes none.
    key: str | None
    #: Where `key_file_content` is written to (mode 0600).
    key_file: Path
    #: Seconds between SIGTERM and SIGKILL: what it may take to end by itself.
    term_seconds: float
    simulated_preset: str = "h100-8b"
    #: Who made the GPUs, and their indexes on this node, in the order of `gpus`.
    vendor: str = "nvidia"
    gpu_indexes: tuple[int, ...] = ()
    #: In a container, whose environment anybody may read who may ask Docker: a key goes by file or not at all.
    contained: bool = False

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def source_is_path(self) -> bool:
        return is_path(self.spec.source)

    @property
    def visible_gpus(self) -> Mapping[str, str]:
        return visible_gpus(self.vendor, self.gpus, self.gpu_indexes)


@dataclass(frozen=True, slots=True)
class Command:
    argv: tuple[str, ...]
    #: Added to the allow-listed environment.
    env: Mapping[str, str] = field(default_factory=frozen_map)
    #: Content of `Launch.key_file`; None: no such file.
    key_file_content: str | None = None


class EngineInfo(NamedTuple):
    """What an engine says of itself when it is asked once; None is unknown."""

    version: str | None = None
    #: How many requests it runs at once.
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """One request that proves that a token comes out."""

    path: str
    body: Mapping[str, object]


class Engine(Protocol):
    """One kind of engine."""

    @property
    def kind(self) -> str: ...

    @property
    def program_names(self) -> tuple[str, ...]:
        """What it is called on PATH."""
        ...

    @property
    def package(self) -> str | None:
        """The Python package whose metadata tells its version; None: it has none."""
        ...

    @property
    def ports_needed(self) -> int: ...

    @property
    def health_path(self) -> str: ...

    @property
    def info_path(self) -> str:
        """Where it says which version it is."""
        ...

    def read_info(self, answer: Mapping[str, object]) -> EngineInfo: ...

    @property
    def takes_key(self) -> bool:
        """Whether it can be told a key that callers must show."""
        ...

    @property
    def names(self) -> MetricNames: ...

    def why_unfit(self, spec: DeploymentSpec, gpus: int) -> str | None:
        """What this kind of engine cannot do of the spec, with what to change; None: all of it."""
        ...

    def command(self, launch: Launch) -> Command: ...

    def probe(self, launch_model: str, spec: DeploymentSpec) -> Probe: ...


def is_path(source: str) -> bool:
    """Whether a source names a file or folder of this node and not a hub id."""
    return source.startswith(("/", "./", "../"))


def version_info(answer: Mapping[str, object]) -> EngineInfo:
    version = answer.get("version")
    return EngineInfo(version if isinstance(version, str) and len(version) < 64 else None)


def completion_probe(model: str) -> Probe:
    return Probe("/v1/completions", {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0})


def embedding_probe(model: str) -> Probe:
    return Probe("/v1/embeddings", {"model": model, "input": "Hello"})
