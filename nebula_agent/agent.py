"""The node agent, put together: what is built, in which order it starts, and how it leaves.

Order of start: own folder → engines found again → the node's name → watcher, reports, owners, logs. The first report is made
after adoption, so that no reader ever sees a running engine missing. Order of leaving: no more orders, engines left
running (or stopped, if so set), a last report that says so, the name given back.
"""

import asyncio
import base64
import binascii
import os
import signal
from pathlib import Path

import structlog

from nebula_agent.adapters.engine_http import EngineHttp
from nebula_agent.adapters.gpus import GpuReading, Gpus, NoGpus
from nebula_agent.adapters.host import Host, cpu_count, hostname, memory_total_bytes
from nebula_agent.adapters.metrics_page import MetricsPage
from nebula_agent.adapters.node_files import NodeFiles, boot_id
from nebula_agent.adapters.policy_file import read_policy
from nebula_agent.adapters.process_runtime import ProcessRuntime
from nebula_agent.adapters.programs import find_program
from nebula_agent.adapters.simulated_gpus import SimulatedGpus
from nebula_agent.engines.base import Program
from nebula_agent.engines.registry import ENGINES
from nebula_agent.loops.claim import RENEW_SECONDS, NodeClaim
from nebula_agent.loops.context import Context, PortBook
from nebula_agent.loops.log_streamer import EVERY_SECONDS, LogStreamer
from nebula_agent.loops.obedience import Obedience
from nebula_agent.loops.replicas import Replicas
from nebula_agent.loops.reporter import Reporter
from nebula_agent.settings import AgentSettings
from nebula_core import __version__
from nebula_core.errors import SettingsError, StoreUnavailable
from nebula_core.records.event import ChangeKind
from nebula_core.records.node import Node
from nebula_core.records.report import Problem
from nebula_core.runtime.clock import Clock, SystemClock
from nebula_core.runtime.processes import NotifySocket
from nebula_core.runtime.tasks import TaskSupervisor
from nebula_core.security.envelope import VerifyKeys
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher

log = structlog.get_logger(__name__)

GPU_SECONDS = 1.0
INVENTORY_SECONDS = 1.0
#: Orders are all an agent wants of the watcher; changes wake it at once whatever this says.
WATCH_POLL_SECONDS = 0.5
#: Longest wait for a driver before the first report goes out without GPUs.
FIRST_GPUS_SECONDS = 5.0
#: When engines are stopped with the agent, `nebula up` waits 8 s for both.
LAST_TERM_SECONDS = 4.0


class Agent:
    """One agent. `run` returns when it was told to leave; `leave` tells it."""

    def __init__(
        self, settings: AgentSettings, *, clock: Clock | None = None, env: dict[str, str] | None = None
    ) -> None:
        self.settings = settings
        self._clock = clock or SystemClock()
        self._env = dict(os.environ) if env is None else env
        self._leaving = asyncio.Event()
        #: Set once the first report was made.
        self.started = asyncio.Event()
        self.reporter: Reporter | None = None
        self.replicas: Replicas | None = None
        self.metrics_port: int | None = None

    def leave(self) -> None:
        self._leaving.set()

    async def run(self) -> None:
        """Raises NebulaError when it cannot start: settings, keys, a folder or a name that is taken."""
        settings = self.settings
        keys = load_verify_keys(settings)
        sealing_key = load_sealing_key(settings)
        policy = read_policy(settings.policy_file)
        files = NodeFiles(settings.data_dir.absolute())
        files.open()
        try:
            boot = boot_id()
            processes = ProcessRuntime(
                agent_id=files.agent_id(), boot_id=boot, directory=files.directory, clock=self._clock
            )
            context = Context(
                settings=settings,
                clock=self._clock,
                boot_id=boot,
                version=__version__,
                files=files,
                policy=policy,
                http=EngineHttp(),
                processes=processes,
                runtimes={processes.kind: processes},
                programs=find_programs(settings, self._env),
                sealing_key=sealing_key,
                ports=PortBook(settings.engine_host, settings.port_range),
            )
            if sealing_key is None:
                context.problems.set("sealing", _NO_SEALING_KEY)
            try:
                await self._run(context, keys)
            finally:
                await context.http.aclose()
        finally:
            files.close()

    async def _run(self, context: Context, keys: VerifyKeys) -> None:
        settings, clock = self.settings, self._clock
        notify = NotifySocket.from_environment(self._env)
        gpus = make_gpus(settings, context)
        async with (
            await connect(settings.store) as store,
            TaskSupervisor("agent", clock) as supervisor,
        ):
            claim = NodeClaim(
                node=settings.node,
                boot_id=context.boot_id,
                store=store,
                clock=clock,
                on_lost=lambda problem: self._name_lost(context, problem),
                on_regained=lambda: self._name_regained(context),
            )
            await claim.acquire()
            replicas = self.replicas = Replicas(context, supervisor)
            watcher = Watcher(store, clock, poll_seconds=WATCH_POLL_SECONDS)
            obedience = self._obedience = Obedience(
                node=settings.node,
                store=store,
                watcher=watcher,
                keys=keys,
                files=context.files,
                orders=await asyncio.to_thread(context.files.orders),
                replicas=replicas,
                problems=context.problems,
            )
            reporter = self.reporter = Reporter(
                context,
                replicas,
                obedience,
                store,
                Host(context.files.directory),
                notify,
                simulated=gpus.simulated,
            )
            context.changed = reporter.changed
            watcher.add_listener(obedience.heard)
            page = self._open_page(reporter)
            try:
                await replicas.adopt_all()
                await self._first_gpus(context, gpus, replicas)
                async with watcher:
                    replicas.start_all()

                    async def read_gpus() -> None:
                        await self._read_gpus(context, gpus, replicas)

                    async def keep_inventory() -> None:
                        await self._keep_inventory(context, watcher, store, gpus)

                    supervisor.every("gpus", GPU_SECONDS, read_gpus)
                    supervisor.every("claim", RENEW_SECONDS, claim.renew)
                    supervisor.every("inventory", INVENTORY_SECONDS, keep_inventory)
                    supervisor.repeat("obedience", obedience.iterate)
                    supervisor.repeat("report", reporter.iterate)
                    supervisor.every("logs", EVERY_SECONDS, LogStreamer(store, replicas, clock).iterate)
                    log.info("agent_started", node=settings.node, pid=os.getpid(), replicas=len(replicas.owners))
                    notify.ready(f"node {settings.node}")
                    self.started.set()
                    await self._leaving.wait()
                    notify.stopping()
                    await self._leave(supervisor, replicas, reporter)
                    await claim.release()
            finally:
                if page is not None:
                    await asyncio.to_thread(page.close)
                close = getattr(gpus, "close", None)
                if close is not None:
                    close()

    async def _leave(self, supervisor: TaskSupervisor, replicas: Replicas, reporter: Reporter) -> None:
        stopping = self.settings.stop_engines
        log.info("agent_leaving", stop_engines=stopping, replicas=len(replicas.owners))
        # Orders first: nothing may be started any more.
        await supervisor.stop()
        if stopping:
            await replicas.stop_all(min(LAST_TERM_SECONDS, self.settings.term_seconds))
        else:
            await replicas.leave_all()
        await reporter.report_once(leaving=True)

    async def _first_gpus(self, context: Context, gpus: Gpus, replicas: Replicas) -> None:
        deadline = self._clock.monotonic() + FIRST_GPUS_SECONDS
        while True:
            await self._read_gpus(context, gpus, replicas)
            known = context.gpus.inventory or context.gpus.problems or isinstance(gpus, (NoGpus, SimulatedGpus))
            if known or self._clock.monotonic() >= deadline:
                return

    async def _read_gpus(self, context: Context, gpus: Gpus, replicas: Replicas) -> None:
        former = context.gpus
        context.gpus = await gpus.read(replicas.holders())
        if _shape(former) != _shape(context.gpus):
            context.changed()
            for owner in replicas.owners.values():
                owner.look_again()

    async def _keep_inventory(self, context: Context, watcher: Watcher, store: Store, gpus: Gpus) -> None:
        """The node's record in the store is what this machine is; written when it is not, also after a store was lost."""
        try:
            # At the start the first look is a moment away: a node is not to wait a whole round to be known.
            await watcher.synced(INVENTORY_SECONDS)
        except TimeoutError:
            return
        if self._suspended:
            return
        node = self.describe(context, gpus)
        if watcher.snapshot.nodes.get(node.name) == node:
            return
        try:
            await store.put(ChangeKind.NODE, node.name, node)
        except StoreUnavailable as error:
            log.warning("inventory_not_written", error=str(error))

    def describe(self, context: Context, gpus: Gpus) -> Node:
        settings = self.settings
        return Node(
            name=settings.node,
            boot_id=context.boot_id,
            version=context.version,
            hostname=hostname(),
            address=settings.address,
            gpus=context.gpus.inventory,
            labels=settings.labels,
            cpu_count=cpu_count(),
            memory_total_bytes=memory_total_bytes(),
            driver_version=context.gpus.driver_version,
            engines=tuple(sorted(context.programs)),
            runtimes=tuple(sorted(context.runtimes)),
            simulated=gpus.simulated,
            cpu_slots=settings.cpu_slots,
        )

    def _open_page(self, reporter: Reporter) -> MetricsPage | None:
        where = self.settings.metrics
        if where.port == 0:
            return None
        try:
            page = MetricsPage(where.host, where.port, lambda: reporter.last, reporter.healthy)
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {where.host}:{where.port} for /metrics: {error.strerror}",
                hint="Set metrics.port to a free one, or 0 to switch it off",
            ) from error
        self.metrics_port = page.port
        return page

    _suspended = False
    _obedience: Obedience

    def _name_lost(self, context: Context, problem: Problem) -> None:
        """Another agent uses this node's name: this one goes silent and obeys nothing; its engines go on."""
        self._suspended = True
        context.problems.set("claim", problem)
        self._obedience.suspended = True
        if self.reporter is not None:
            self.reporter.suspended = True

    def _name_regained(self, context: Context) -> None:
        self._suspended = False
        context.problems.set("claim", None)
        self._obedience.resume()
        if self.reporter is not None:
            self.reporter.suspended = False


async def run_agent(settings: AgentSettings) -> None:
    """Runs until SIGTERM or SIGINT. Raises NebulaError when it cannot start."""
    agent = Agent(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.leave)
    await agent.run()


def find_programs(settings: AgentSettings, env: dict[str, str]) -> dict[str, Program]:
    """The engines this node can start."""
    found: dict[str, Program] = {}
    for kind, engine in ENGINES.items():
        if kind == "simulated" and not settings.simulated.enabled:
            continue
        program = find_program(engine, settings.engines.of(kind).program, env)
        if program is not None:
            found[kind] = program
    return found


def make_gpus(settings: AgentSettings, context: Context) -> Gpus:
    count = settings.simulated_gpus
    if count is not None:
        return SimulatedGpus(settings.node, count)
    if settings.gpus == "none":
        return NoGpus()
    # Only here: its library is not needed by simulated nodes.
    from nebula_agent.adapters.nvml import Nvml  # noqa: PLC0415

    return Nvml(context.clock, context.processes.replica_of)


def load_verify_keys(settings: AgentSettings) -> VerifyKeys:
    """Raises SettingsError: an agent that can verify nothing could obey nothing."""
    if settings.verify_keys is None:
        raise SettingsError(
            "verify_keys is not set: no placement could be verified",
            hint="Copy verify.keys, made by `nebula-proxy init`, to this node and set verify_keys to it",
        )
    return VerifyKeys.load(settings.verify_keys)


def load_sealing_key(settings: AgentSettings) -> bytes | None:
    """The raw public key of the proxies; None when none is set. Raises SettingsError."""
    said = settings.sealing_public_key
    if said is None:
        return None
    text = said.strip()
    if len(text) != 44 or not text.endswith("="):
        try:
            text = Path(said).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"cannot read sealing_public_key {said}: {error}",
                hint="Copy sealing.pub, made by `nebula-proxy init`, to this node",
            ) from error
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != 32:
        raise SettingsError(
            "sealing_public_key is no public key (32 bytes in base64)", hint="Use the file sealing.pub as it is"
        )
    return raw


def _shape(reading: GpuReading) -> tuple[object, ...]:
    return (reading.inventory, tuple(sample.fault for sample in reading.samples), reading.problems)


_NO_SEALING_KEY = Problem(
    code="no_sealing_key",
    message="engines run without keys: whoever reaches their ports may use them",
    hint="Set sealing_public_key to the proxies' sealing.pub",
)
