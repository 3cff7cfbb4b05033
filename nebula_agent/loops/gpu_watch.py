"""One look at the GPUs a second: figures, what the kernel says of them, whose their memory is, and what must follow.

    read the driver ─► read the kernel log ─► quarantine ─► ledger ─► report, problems, orphans

The driver, the kernel log and /proc are asked by adapters that never wait long; what they mean is decided in
`decisions/xid` and `decisions/gpu_ledger`. A card in quarantine has a fault, so nothing is placed on it, and its engines
are ended by their owners (`lost`); its neighbours go on. An orphan of ours that holds memory is ended as a group, and that
its memory came free is seen by the next look, not assumed.
"""

from dataclasses import replace

import structlog

from nebula_agent.adapters.gpus import GpuReading, Gpus
from nebula_agent.adapters.kernel_log import KernelLog
from nebula_agent.adapters.process_facts import ProcessBook
from nebula_agent.decisions.gpu_ledger import ProcessFacts, entered, orphans, strangers
from nebula_agent.decisions.xid import MEANINGS, Held, XidEvent, latest, parse_line, quarantine
from nebula_agent.loops.context import Context, with_faults
from nebula_agent.loops.replicas import Replicas
from nebula_core.records.report import Problem
from nebula_core.records.sample import GpuSample

log = structlog.get_logger(__name__)

#: A process is called an orphan only when it has been one for so long: a start or an end may be under way.
ORPHAN_SECONDS = 10.0
#: How long an Xid that needs nothing but a restart is shown.
XID_SECONDS = 600.0


class GpuWatch:
    """`iterate` is one look; the result is `context.gpus`."""

    def __init__(self, gpus: Gpus, context: Context, replicas: Replicas, kernel_log: KernelLog | None) -> None:
        self._gpus = gpus
        self._context = context
        self._replicas = replicas
        self._kernel_log = kernel_log
        self._book = ProcessBook()
        self._held: dict[str, Held] = {}
        self._xids: dict[str, int] = {}
        self._orphans_since: dict[int, float] = {}
        self._told: dict[str, float] = {}

    @property
    def simulated(self) -> bool:
        return self._gpus.simulated

    async def iterate(self) -> None:
        context = self._context
        former = context.gpus
        reading = await self._gpus.read(self._replicas.holders())
        events = self._hear(reading)
        stuck = {gpu: fault for faults in context.stuck_gpus.values() for gpu, fault in faults.items()}
        reading = with_faults(self._quarantined(reading), stuck)
        reading = replace(reading, samples=entered(reading.samples, self._facts_of))
        context.gpus = reading
        self._tell(reading, events)
        await self._end_orphans(reading)
        if shape(former) != shape(reading):
            context.changed()
            for owner in self._replicas.owners.values():
                owner.look_again()

    async def aclose(self) -> None:
        await self._gpus.aclose()
        if self._kernel_log is not None:
            self._kernel_log.close()

    # --- the kernel log

    def _hear(self, reading: GpuReading) -> list[XidEvent]:
        if self._kernel_log is None or not (reading.inventory or self._held):
            return []  # lines wait until there are cards they may be about
        events = [event for line in self._kernel_log.lines() if (event := parse_line(line)) is not None]
        if events:
            self._held = quarantine(self._held, events)
            self._xids = latest(self._xids, events)
        return events

    def _quarantined(self, reading: GpuReading) -> GpuReading:
        """Cards that the kernel calls broken, or the driver lost, with their fault; their engines cannot go on."""
        samples: list[GpuSample] = []
        lost: set[str] = {sample.gpu for sample in reading.samples if (sample.fault or "").startswith("lost")}
        for sample in reading.samples:
            bus = reading.buses.get(sample.gpu, "")
            held, code = self._held.get(bus), self._xids.get(bus)
            if held is not None:
                lost.add(sample.gpu)
                sample = sample.model_copy(update={"fault": held.fault, "xid": code})  # noqa: PLW2901 - the same card
            elif code is not None:
                sample = sample.model_copy(update={"xid": code})  # noqa: PLW2901 - the same card
            samples.append(sample)
        return replace(reading, samples=tuple(samples), lost=frozenset(lost))

    # --- the ledger

    def _facts_of(self, pid: int) -> ProcessFacts:
        context = self._context
        facts = self._book.look_up(pid)
        named = context.processes.replica_of(pid)
        if named is None and context.containers is not None:
            named = context.containers.replica_of(pid)
        if named is None:
            return facts
        owner = self._replicas.owners.get(named)
        if owner is not None and owner.held_gpus:
            return facts._replace(replica=named)
        return facts._replace(started_for=named)

    def _tell(self, reading: GpuReading, events: list[XidEvent]) -> None:
        problems, now = self._context.problems, self._context.clock.monotonic()
        held = strangers(reading.samples)
        for sample in reading.samples:
            problems.set(f"gpu:{sample.gpu}", held.get(sample.gpu))
            fault = sample.fault
            quarantined = sample.gpu in reading.lost and fault is not None
            message = f"gpu {sample.index} is in quarantine: {fault}"
            problem = Problem(code="gpu_lost", message=message, severity="crit", hint=_HINT) if quarantined else None
            if problems.set(f"gpu_lost:{sample.gpu}", problem) and problem is not None:
                log.error("gpu_quarantined", gpu=sample.gpu, fault=fault)
        for event in events:
            meaning = MEANINGS.get(event.code)
            log.warning("xid", bus=event.bus, code=event.code, meaning=meaning and meaning.text, pid=event.pid)
            if event.bus not in self._held:
                self._told[event.bus] = now
                text = meaning.text if meaning is not None else "see NVIDIA's Xid catalog"
                hint = "Look at the engine on it: most such errors are a program's"
                message = f"Xid {event.code} on the GPU at {event.bus}: {text}"
                problems.set(f"xid:{event.bus}", Problem(code="xid", message=message, hint=hint))
        for bus in [bus for bus, at in self._told.items() if now - at > XID_SECONDS or bus in self._held]:
            del self._told[bus]
            problems.set(f"xid:{bus}", None)

    # --- orphans

    async def _end_orphans(self, reading: GpuReading) -> None:
        now = self._context.clock.monotonic()
        found = orphans(reading.samples)
        for pid in self._orphans_since.keys() - found.keys():
            del self._orphans_since[pid]
            self._context.problems.set(f"orphan:{pid}", None)
            log.info("orphan_gone", pid=pid)
        for pid, gpus in found.items():
            since = self._orphans_since.setdefault(pid, now)
            if now - since < ORPHAN_SECONDS:
                continue
            message = f"pid {pid} holds GPU memory ({', '.join(gpus)}); it was started by this agent and nobody owns it"
            hint = "It is being ended; if it stays, the driver holds it: look into the kernel log"
            if self._context.problems.set(f"orphan:{pid}", Problem(code="orphan", message=message, hint=hint)):
                log.warning("orphan", pid=pid, gpus=gpus, action_taken="stopped")
                await self._replicas.end_strays()


_HINT = "Drain what else needs the machine and do what the fault says; the GPU is used again when it is sound"


def shape(reading: GpuReading) -> tuple[object, ...]:
    """What changes seldom: a change of it is told at once, and owners look again."""
    return (reading.inventory, tuple(sample.fault for sample in reading.samples), reading.problems, reading.lost)
