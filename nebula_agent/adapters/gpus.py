"""The seam to accelerators: what there is and what it does, whoever makes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nebula_core.records.node import Gpu
from nebula_core.records.report import Problem
from nebula_core.records.sample import EngineSample, GpuSample


@dataclass(frozen=True, slots=True)
class Holder:
    """The replica a GPU was given to, while its engine runs."""

    replica: str
    pid: int | None
    #: How many GPUs share its load.
    gpus: int
    sample: EngineSample | None


@dataclass(frozen=True, slots=True)
class GpuReading:
    inventory: tuple[Gpu, ...] = ()
    samples: tuple[GpuSample, ...] = ()
    driver_version: str | None = None
    problems: tuple[Problem, ...] = ()
    #: PCI address (`0000:3b:00`) by GPU, as far as it is known: what the kernel log calls it.
    buses: Mapping[str, str] = field(default_factory=dict)
    #: GPUs whose engines cannot go on: the card itself is broken or gone.
    lost: frozenset[str] = frozenset()


class Gpus(Protocol):
    """One maker's GPUs, or simulated ones."""

    @property
    def simulated(self) -> bool: ...

    async def read(self, holders: Mapping[str, Holder]) -> GpuReading:
        """The latest figures; never waits longer than a second or two, whatever the driver does."""
        ...

    async def aclose(self) -> None:
        """Ends what was started to read them."""
        ...


class NoGpus:
    """`gpus = "none"`: this node is not asked for any."""

    simulated = False

    async def read(self, holders: Mapping[str, Holder]) -> GpuReading:  # noqa: ARG002 - the seam's form
        return GpuReading()

    async def aclose(self) -> None:
        """Nothing was started."""
