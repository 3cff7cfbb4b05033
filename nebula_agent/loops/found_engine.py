"""One engine that nobody ordered, and what is asked of it: where it listens, what it serves, its figures, its GPUs.

Nothing is sent but questions, to no address but this machine's own and its containers', and only where the socket is
proven to belong to the process that was found.
"""

import asyncio
import json
from dataclasses import dataclass, field, replace

import structlog

from nebula_agent.adapters.engine_http import Answer
from nebula_agent.adapters.external_runtime import ExternalRefused
from nebula_agent.adapters.process_table import ProcessTable
from nebula_agent.decisions.containers import PREFIX, Container
from nebula_agent.decisions.discovery import CommandLine, model_names, spec_of
from nebula_agent.decisions.external import Address, listed_models
from nebula_agent.decisions.found_place import FoundPlace, on_node, place_of, why_silent, why_unreachable
from nebula_agent.engines.registry import engine_of
from nebula_agent.loops.context import Context
from nebula_agent.loops.engine_figures import EngineFigures
from nebula_core.errors import NebulaError
from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.found import FoundEngine
from nebula_core.records.replica import EndpointAddress, Phase, ReplicaStatus
from nebula_core.security.text import clean_text

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Found:
    """One engine that nobody ordered."""

    #: Of a container the same for all of its starts, of a process its own.
    id: str
    #: Of this start.
    epoch: str
    pid: int
    born: float
    line: CommandLine
    #: Monotonic seconds.
    since: float
    #: Unix seconds, for display.
    started_at: float
    figures: EngineFigures
    container_id: str | None = None
    container: Container | None = None
    #: It has a network of its own.
    elsewhere: bool = False
    place: FoundPlace | None = None
    phase: Phase = Phase.LOADING
    reason: str | None = None
    #: Its names, fit for a terminal.
    models: tuple[str, ...] = ()
    #: Whether those are its names to the letter.
    plainly_named: bool = True
    needs_key: bool = False
    key: str | None = field(default=None, repr=False)
    gpus: tuple[str, ...] = ()
    asked_at: float | None = None
    task: asyncio.Task[None] | None = None

    @property
    def runtime(self) -> str:
        return "process" if self.container_id is None else "docker"

    @property
    def image(self) -> str | None:
        return None if self.container is None else self.container.image or None

    @property
    def spec(self) -> DeploymentSpec | None:
        """The deployment that would start the same on this node."""
        line, container = self.line, self.container
        if container is not None:
            # What is a path within a container is another one for whoever starts it again.
            line = replace(
                line,
                source=None if line.source is None else on_node(line.source, container.mounts),
                adapters=tuple(
                    adapter.model_copy(update={"source": on_node(adapter.source, container.mounts)})
                    for adapter in line.adapters
                ),
            )
        return spec_of(line, gpus=len(self.gpus), runtime=self.runtime, image=self.image)


class Examiner:
    """Asks found engines what they are. Reads `/proc` in threads."""

    def __init__(self, context: Context, table: ProcessTable) -> None:
        self._context = context
        self._table = table

    async def examine(self, found: Found) -> None:
        former = (found.phase, found.reason, found.models, found.place, found.gpus)
        try:
            await self._ask(found)
        except NebulaError as error:
            found.phase, found.reason = Phase.LOADING, str(error)
        if former != (found.phase, found.reason, found.models, found.place, found.gpus):
            self._context.changed()

    async def _ask(self, found: Found) -> None:
        if found.phase is not Phase.READY or found.container is None:
            await self._learn_container(found)
        if found.container is not None and any(name.startswith(PREFIX) for name in found.container.labels):
            # Of another agent on this machine, which shows it itself.
            found.phase, found.reason = Phase.LOADING, "belongs to another agent"
            return
        place = await asyncio.to_thread(self._where, found)
        if isinstance(place, str):
            found.place, found.phase, found.reason = None, Phase.LOADING, place
            return
        found.place = place
        address = Address(place.probe_host, place.port)
        found.key = await asyncio.to_thread(self._key_of, found, Address(place.local_host, place.port))
        said = await self._context.http.ask("GET", address.host, address.port, "/v1/models", found.key)
        found.asked_at = self._context.clock.monotonic()
        refused = said.answer is Answer.NO and " 401" in said.detail
        found.needs_key = found.needs_key or refused or found.key is not None
        names = model_names(_listed(said.body) if said.answer is Answer.YES else (), found.line)
        exact = tuple(name for name in names if clean_text(name, max_length=200) == name)
        found.models = exact or tuple(clean_text(name, max_length=200) for name in names)
        found.plainly_named = bool(exact) or not names
        if said.answer is not Answer.YES and not refused:
            if found.phase is Phase.READY:
                await self._learn_container(found)
            found.phase, found.reason = Phase.LOADING, why_silent(found.container, said.detail) or None
            return
        # Before it is shown as ready: its row says at once which version it is, and what it does.
        await self._learn_figures(found, address)
        found.gpus = await asyncio.to_thread(self._gpus_of, found)
        found.phase = Phase.READY
        found.reason = "takes a key that this agent does not have" if refused else None

    async def _learn_container(self, found: Found) -> None:
        """As Docker sees it now: while it does not answer, its ports, its address and its state may still change."""
        found.elsewhere = await asyncio.to_thread(self._table.elsewhere, found.pid)
        containers = self._context.containers
        if found.container_id is None or containers is None:
            return
        try:
            found.container = await containers.engine.inspect(found.container_id)
        except NebulaError:
            # On the node's own network it answers without Docker's help.
            if found.elsewhere:
                raise

    async def _learn_figures(self, found: Found, address: Address) -> None:
        http, engine = self._context.http, engine_of(found.line.engine, None)
        if found.figures.version is None:
            info = await http.info(address.host, address.port, engine.info_path, found.key)
            if info is not None:
                found.figures.told(engine.read_info(info))
        page = await http.figures(address.host, address.port, found.key)
        if page.answer is Answer.YES:
            found.figures.take(page.body.decode("utf-8", "replace"), self._context.clock.monotonic())

    def _where(self, found: Found) -> FoundPlace | str:
        """In a thread: where it listens; or why that cannot be told."""
        table, port = self._table, found.line.port
        heard = table.listening(found.pid, {port})
        if not heard:
            return f"nothing listens on port {port} yet"
        proven = [one for one in heard if table.holds(table.family(found.pid), one.inode)]
        if not proven:
            hidden = table.holds({found.pid}, heard[0].inode) is None
            who = "may not be looked at by this agent's user" if hidden else "is held by another process"
            return f"port {port} {who}"
        # Who listens everywhere is reached from outside; IPv4 before IPv6.
        best = min(proven, key=lambda one: (not one.everywhere, ":" in one.host))
        return place_of(best, elsewhere=found.elsewhere, container=found.container)

    def _key_of(self, found: Found, address: Address) -> str | None:
        """In a thread: from its command line, its environment (vLLM), or the file that the policy names."""
        line, table = found.line, self._table
        if line.key is not None:
            return line.key
        if line.key_file is not None:
            read = table.file_of(found.pid, line.key_file)
            return None if read is None else read.decode("ascii", "replace").split("\n", 1)[0].strip() or None
        if line.engine == "vllm" and (key := table.environment(found.pid, "VLLM_API_KEY")):
            return key
        try:
            return self._context.external.key_for(address)
        except ExternalRefused as error:
            log.warning("found_engine_key", found=found.id, error=str(error))
            return None

    def _gpus_of(self, found: Found) -> tuple[str, ...]:
        """In a thread: the GPUs on which the driver sees a process of it."""
        samples = self._context.gpus.samples
        if not any(process.replica is None for sample in samples for process in sample.processes):
            return ()
        family = self._table.family(found.pid)
        short = None if found.container_id is None else found.container_id[:12]
        return tuple(
            sample.gpu
            for sample in samples
            if any(
                process.pid in family or (short is not None and process.container == short)
                for process in sample.processes
            )
        )

    # --- telling

    def why_not(self, found: Found) -> str | None:
        """Why it cannot be taken in as it stands; None: it can."""
        place, here = found.place, self._context.settings.address
        if place is None or found.phase is not Phase.READY:
            return found.reason or "it has not answered yet"
        if found.needs_key and found.key is None:
            return (
                "it takes a key that this agent does not have: name a file with it in `external_keys` of the node's "
                f'policy, under "{place.local_host}:{place.port}"'
            )
        unreachable = why_unreachable(place, here)
        if unreachable is not None:
            return unreachable
        if found.key is not None and self._context.sealing_key is None:
            return "it takes a key, and this agent has no `sealing_public_key` to hand it to the proxies"
        if found.container_id is not None and found.container is None:
            if self._context.containers is None:
                return "it runs in a container, and this agent has no Docker to look after it: set `docker.enabled`"
            return "it runs in a container that this agent's Docker does not know"
        if not found.models:
            return "it lists no model"
        if not found.plainly_named:
            return "the name of its model has characters no client can send: start it with --served-model-name NAME"
        return None

    def status(self, found: Found, now: float, why_not: str | None) -> ReplicaStatus:
        context, line, figures = self._context, found.line, found.figures
        place, sampled_at = found.place, figures.sampled_at
        models = found.models or tuple(clean_text(name, max_length=200) for name in line.called[:16])
        endpoint = None
        if place is not None:
            endpoint = EndpointAddress(host=place.reached_at(context.settings.address), port=place.port)
        container = found.container
        return ReplicaStatus(
            id=found.id,
            # Its own: whatever it calls itself, it is none of a deployment's replicas.
            deployment=found.id,
            model=models[0] if models else found.id,
            node=context.settings.node,
            gpus=found.gpus,
            engine=line.engine,
            engine_version=figures.version,
            runtime=found.runtime,
            image=None if found.image is None else clean_text(found.image, max_length=300),
            phase=found.phase,
            phase_reason=None if found.reason is None else clean_text(found.reason, max_length=300),
            phase_seconds=round(now - found.since, 1),
            endpoint=endpoint,
            engine_epoch=found.epoch,
            pid=found.pid,
            container_id=found.container_id,
            started_at=found.started_at,
            managed=False,
            simulated=line.engine == "simulated",
            sample=figures.sample,
            sample_age_seconds=None if sampled_at is None else round(now - sampled_at, 2),
            metrics_schema=figures.schema,
            found=FoundEngine(
                served_models=models,
                spec=found.spec,
                left_out=line.left_out,
                pid_born=found.born,
                probe_host=None if place is None else place.probe_host,
                container_name=None if container is None else clean_text(container.name, max_length=128) or None,
                needs_key=found.needs_key,
                has_key=found.key is not None,
                why_not=None if why_not is None else clean_text(why_not, max_length=400),
            ),
        )


def _listed(body: bytes) -> tuple[str, ...]:
    try:
        answer = json.loads(body)
    except ValueError:
        return ()
    return listed_models(answer) if isinstance(answer, dict) else ()
