"""The node agent, put together: what is built, in which order it starts, and how it leaves.

Order of start: own folder → engines found again → the node's name → watcher, reports, owners, logs. The first report is made
after adoption, so that no reader ever sees a running engine missing. Order of leaving: no more orders, engines left
running (or stopped, if so set), a last report that says so, the name given back.
"""

import asyncio
import base64
import binascii
import dataclasses
import os
import signal
from pathlib import Path

import structlog

from nebula_agent.adapters.accelerators import open_gpus
from nebula_agent.adapters.cache_folder import CacheFolder
from nebula_agent.adapters.catalog_file import read_catalog
from nebula_agent.adapters.docker_engine import DockerEngine, default_address
from nebula_agent.adapters.docker_runtime import DockerPlace, DockerRuntime
from nebula_agent.adapters.engine_http import EngineHttp
from nebula_agent.adapters.external_runtime import ExternalRuntime
from nebula_agent.adapters.gpus import Gpus, NoGpus
from nebula_agent.adapters.host import Host, cpu_count, hostname, memory_total_bytes
from nebula_agent.adapters.kernel_log import open_kernel_log
from nebula_agent.adapters.metrics_page import MetricsPage
from nebula_agent.adapters.node_files import NodeFiles, boot_id
from nebula_agent.adapters.object_store import S3Access
from nebula_agent.adapters.policy_file import read_policy
from nebula_agent.adapters.process_runtime import ProcessRuntime
from nebula_agent.adapters.programs import find_program
from nebula_agent.adapters.runtime import Runtime
from nebula_agent.adapters.sidecar_runtime import SidecarRuntime
from nebula_agent.adapters.simulated_gpus import SimulatedGpus
from nebula_agent.decisions.container import ContainerSettings
from nebula_agent.decisions.model_cache import CacheLimits
from nebula_agent.decisions.policy import LocalPolicy
from nebula_agent.engines.base import Program
from nebula_agent.engines.registry import ENGINES
from nebula_agent.loops.claim import RENEW_SECONDS, NodeClaim
from nebula_agent.loops.clock_watch import EVERY_SECONDS as CLOCK_SECONDS
from nebula_agent.loops.clock_watch import ClockWatch
from nebula_agent.loops.commands import CommandLoop
from nebula_agent.loops.container_keeper import EVERY_SECONDS as CONTAINERS_SECONDS
from nebula_agent.loops.container_keeper import ContainerKeeper
from nebula_agent.loops.context import Context, PortBook, Problems
from nebula_agent.loops.discovery import EVERY_SECONDS as DISCOVERY_SECONDS
from nebula_agent.loops.discovery import Discovery
from nebula_agent.loops.gpu_watch import GpuWatch
from nebula_agent.loops.holdings import EVERY_SECONDS as HOLDINGS_SECONDS
from nebula_agent.loops.holdings import Holdings
from nebula_agent.loops.image_commands import image_handlers
from nebula_agent.loops.image_keeper import ImageKeeper
from nebula_agent.loops.log_streamer import EVERY_SECONDS, LogStreamer
from nebula_agent.loops.model_commands import model_handlers
from nebula_agent.loops.model_keeper import LOOK_SECONDS as MODELS_SECONDS
from nebula_agent.loops.model_keeper import CacheSettings, ModelKeeper
from nebula_agent.loops.obedience import Obedience
from nebula_agent.loops.proxies_heard import EVERY_SECONDS as PROXIES_SECONDS
from nebula_agent.loops.proxies_heard import ProxiesHeard
from nebula_agent.loops.replicas import Replicas
from nebula_agent.loops.reporter import Reporter
from nebula_agent.settings import AgentSettings
from nebula_core import __version__
from nebula_core.errors import NebulaError, SettingsError, StoreUnavailable
from nebula_core.records.base import frozen_map
from nebula_core.records.event import ChangeKind
from nebula_core.records.node import Node
from nebula_core.records.report import Problem
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.runtime.clock import Clock, SystemClock
from nebula_core.runtime.memory import give_back_memory, settle_memory, share_heaps
from nebula_core.runtime.processes import NotifySocket
from nebula_core.runtime.tasks import TaskSupervisor
from nebula_core.security.envelope import VerifyKeys
from nebula_core.security.sealing import seal
from nebula_core.store.connection import connect
from nebula_core.store.reports import NoReports
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher

log = structlog.get_logger(__name__)

GPU_SECONDS = 1.0
#: Answers of Docker and the store come and go in threads; what they leave free goes back to the node's engines.
MEMORY_SECONDS = 10.0
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
            containers, images = make_containers(settings, files, boot, policy, self._clock, self._env)
            http = EngineHttp()
            external = ExternalRuntime(http, policy, self._clock, boot)
            runtimes: dict[str, Runtime] = {processes.kind: processes, external.kind: external}
            if containers is not None:
                runtimes[containers.kind] = containers
            if settings.sidecar.directory is not None:
                runtimes["sidecar"] = SidecarRuntime(
                    settings.sidecar.directory, settings.sidecar.port, boot, self._clock
                )
            context = Context(
                settings=settings,
                clock=self._clock,
                boot_id=boot,
                version=__version__,
                files=files,
                policy=policy,
                http=http,
                processes=processes,
                runtimes=runtimes,
                programs=find_programs(settings, self._env),
                sealing_key=sealing_key,
                ports=PortBook(settings.engine_host, settings.port_range),
                external=external,
                programs_named=frozenset(kind for kind in ENGINES if self._env.get(f"NEBULA_{kind.upper()}")),
                containers=containers,
                images=images,
            )
            context.models = await open_models(settings, boot, policy, self._clock, self._env, context.problems)
            if sealing_key is None:
                context.problems.set("sealing", _NO_SEALING_KEY)
            try:
                await self._run(context, keys)
            finally:
                if images is not None:
                    await images.close()
                if context.models is not None:
                    await context.models.close()
                if containers is not None:
                    await containers.close()
                await context.http.aclose()
        finally:
            files.close()

    async def _run(self, context: Context, keys: VerifyKeys) -> None:
        settings, clock = self.settings, self._clock
        notify = NotifySocket.from_environment(self._env)
        gpus = make_gpus(settings, context)
        kernel_log = None if gpus.simulated or isinstance(gpus, NoGpus) else open_kernel_log(settings.kernel_log)
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
            watch = GpuWatch(gpus, context, replicas, kernel_log)
            watcher = Watcher(store, clock, poll_seconds=WATCH_POLL_SECONDS, reports=NoReports())
            obedience = self._obedience = Obedience(
                node=settings.node,
                store=store,
                watcher=watcher,
                keys=keys,
                files=context.files,
                orders=await context.disk.do("orders", context.files.orders),
                replicas=replicas,
                problems=context.problems,
                disk=context.disk,
            )
            discovery = Discovery(context, replicas) if settings.discovery.enabled else None
            if discovery is not None:
                context.take_in = discovery.take_in
            host = Host(context.files.directory)
            reporter = self.reporter = Reporter(
                context,
                replicas,
                obedience,
                store,
                host,
                notify,
                simulated=gpus.simulated,
                discovery=discovery,
            )
            context.changed = reporter.changed
            watcher.add_listener(obedience.heard)
            holdings = self._holdings = Holdings(settings.node, store, watcher, replicas)
            commands = self._commands = CommandLoop(
                node=settings.node,
                store=store,
                keys=keys,
                files=context.files,
                clock=clock,
                problems=context.problems,
                disk=context.disk,
                handlers={
                    **({} if context.images is None else image_handlers(context.images)),
                    **({} if context.models is None else model_handlers(context.models)),
                },
            )
            keeper = self._open_containers(context, replicas)
            if context.models is not None:
                context.models.changed = context.changed
                context.models.pins = replicas.pinned_models
            heard = ProxiesHeard(store) if settings.sidecar.directory is not None else None
            page = self._open_page(reporter, heard)
            try:
                if context.containers is not None:
                    await context.containers.open()
                await replicas.adopt_all()
                await self._remember_store(context, watcher, replicas)
                if keeper is not None and context.containers is not None and context.containers.unavailable is None:
                    await keeper.iterate()
                await self._first_gpus(context, watch)
                async with watcher:
                    replicas.start_all()

                    async def keep_inventory() -> None:
                        await self._keep_inventory(context, watcher, store, gpus)

                    supervisor.every("gpus", GPU_SECONDS, watch.iterate)
                    supervisor.every("claim", RENEW_SECONDS, claim.renew)
                    supervisor.every("inventory", INVENTORY_SECONDS, keep_inventory)
                    if keeper is not None:
                        supervisor.every("containers", CONTAINERS_SECONDS, keeper.iterate)
                    if discovery is not None:
                        supervisor.every("discovery", DISCOVERY_SECONDS, discovery.iterate)
                    if context.models is not None:
                        supervisor.every("models", MODELS_SECONDS, context.models.iterate)
                    supervisor.repeat("obedience", obedience.iterate)
                    supervisor.every("holdings", HOLDINGS_SECONDS, holdings.iterate)
                    supervisor.repeat("commands", commands.iterate)
                    supervisor.repeat("report", reporter.iterate)
                    if heard is not None:
                        supervisor.every("proxies", PROXIES_SECONDS, heard.iterate)
                    supervisor.every("clock", CLOCK_SECONDS, ClockWatch(context, store).iterate)
                    supervisor.every("logs", EVERY_SECONDS, LogStreamer(store, replicas, clock).iterate)
                    log.info("agent_started", node=settings.node, pid=os.getpid(), replicas=len(replicas.owners))
                    notify.ready(f"node {settings.node}")
                    self.started.set()
                    settle_memory()
                    supervisor.every("memory", MEMORY_SECONDS, _give_back_memory)
                    await self._leaving.wait()
                    notify.stopping()
                    await self._leave(supervisor, replicas, reporter)
                    await claim.release()
            finally:
                if discovery is not None:
                    await discovery.close()
                if page is not None:
                    await asyncio.to_thread(page.close)
                await watch.aclose()

    async def _leave(self, supervisor: TaskSupervisor, replicas: Replicas, reporter: Reporter) -> None:
        stopping = self.settings.stop_engines
        log.info("agent_leaving", stop_engines=stopping, replicas=len(replicas.owners))
        # Orders first: nothing may be started any more.
        await supervisor.stop()
        await self._commands.close()
        if stopping:
            await replicas.stop_all(min(LAST_TERM_SECONDS, self.settings.term_seconds))
        else:
            await replicas.leave_all()
        await reporter.report_once(leaving=True)

    async def _remember_store(self, context: Context, watcher: Watcher, replicas: Replicas) -> None:
        """The store as it was when this node last obeyed it: one that came back empty or older is no order."""
        remembered = await context.disk.do("store", context.files.remembered_store)
        if remembered is not None:
            held = {owner.replica: owner.placement for owner in replicas.owners.values()}
            snapshot = ClusterSnapshot(remembered.incarnation, remembered.revision, placements=frozen_map(held))
            watcher.assume(snapshot, None)

    async def _first_gpus(self, context: Context, watch: GpuWatch) -> None:
        deadline = self._clock.monotonic() + FIRST_GPUS_SECONDS
        while True:
            await watch.iterate()
            known = context.gpus.inventory or context.gpus.problems or self.settings.gpus == "none" or watch.simulated
            if known or self._clock.monotonic() >= deadline:
                return

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

    def _open_containers(self, context: Context, replicas: Replicas) -> ContainerKeeper | None:
        if context.containers is None:
            return None
        if context.images is not None:
            context.images.changed = context.changed
            context.images.pins = lambda: [
                owner.pinned_image for owner in replicas.owners.values() if owner.pinned_image is not None
            ]
        return ContainerKeeper(context.containers, context, replicas)

    def _open_page(self, reporter: Reporter, heard: ProxiesHeard | None) -> MetricsPage | None:
        where = self.settings.metrics
        if where.port == 0:
            return None
        try:
            page = MetricsPage(
                where.host,
                where.port,
                lambda: reporter.last,
                reporter.healthy,
                lambda: None if heard is None else heard.any,
            )
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {where.host}:{where.port} for /metrics: {error.strerror}",
                hint="Set metrics.port to a free one, or 0 to switch it off",
            ) from error
        self.metrics_port = page.port
        return page

    _suspended = False
    _obedience: Obedience
    _commands: CommandLoop
    _holdings: Holdings

    def _name_lost(self, context: Context, problem: Problem) -> None:
        """Another agent uses this node's name: this one goes silent and obeys nothing; its engines go on."""
        self._suspended = True
        context.problems.set("claim", problem)
        self._obedience.suspended = True
        self._commands.suspended = True
        self._holdings.suspended = True
        if self.reporter is not None:
            self.reporter.suspended = True

    def _name_regained(self, context: Context) -> None:
        self._suspended = False
        context.problems.set("claim", None)
        self._obedience.resume()
        self._commands.suspended = False
        self._holdings.suspended = False
        if self.reporter is not None:
            self.reporter.suspended = False


async def _give_back_memory() -> None:
    give_back_memory()


async def run_agent(settings: AgentSettings) -> None:
    """Runs until SIGTERM or SIGINT. Raises NebulaError when it cannot start."""
    share_heaps()
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


def make_containers(
    settings: AgentSettings,
    files: NodeFiles,
    boot: str,
    policy: LocalPolicy,
    clock: Clock,
    env: dict[str, str],
) -> tuple[DockerRuntime | None, ImageKeeper | None]:
    """Docker, when it is wanted or there. Raises SettingsError for a catalog that cannot be read."""
    docker = settings.docker
    address = docker.host or default_address(env)
    there = not address.startswith("unix://") or Path(address.removeprefix("unix://")).is_socket()
    if docker.enabled is False or (docker.enabled is None and not there):
        return None, None
    catalog = read_catalog(docker.catalog_file)
    engine = DockerEngine(address, call_seconds=docker.call_seconds)
    runtime = DockerRuntime(
        engine,
        DockerPlace(
            agent_id=files.agent_id(),
            node=settings.node,
            boot_id=boot,
            directory=files.directory / "containers",
            port_range=settings.port_range,
            cache_dir=docker.cache_dir or files.directory / "cache",
            models_dir=models_dir(settings) if settings.model_cache.enabled else None,
        ),
        ContainerSettings(
            **{field.name: getattr(docker, field.name) for field in dataclasses.fields(ContainerSettings)}
        ),
        policy,
        clock,
    )
    images = ImageKeeper(engine, lambda: runtime.facts, catalog, policy, clock, stall_seconds=docker.pull_stall_seconds)
    return runtime, images


def models_dir(settings: AgentSettings) -> Path:
    return settings.model_cache.dir or settings.data_dir.absolute() / "models"


async def open_models(
    settings: AgentSettings, boot: str, policy: LocalPolicy, clock: Clock, env: dict[str, str], problems: Problems
) -> ModelKeeper | None:
    """None: it is switched off, or its folder cannot be used, which is a problem of the node and not its end."""
    said = settings.model_cache
    if not said.enabled:
        return None
    limits = CacheLimits(said.max_bytes, said.high_watermark, said.low_watermark)
    folder = CacheFolder(models_dir(settings), boot)
    s3 = S3Access(**said.s3.model_dump())
    keeper = ModelKeeper(folder, CacheSettings(limits, said.at_once, frozen_map(env), s3), policy, clock)
    try:
        await keeper.open()
    except (OSError, NebulaError) as error:
        log.exception("model_cache_unusable", directory=str(models_dir(settings)))
        hint = "Set model_cache.dir to a folder this agent may write, or model_cache.enabled to false"
        problems.set("model_cache", Problem(code="model_cache", message=f"no models are kept: {error}", hint=hint))
        return None
    return keeper


def make_gpus(settings: AgentSettings, context: Context) -> Gpus:
    count = settings.simulated_gpus
    return open_gpus(settings.gpus, context.clock) if count is None else SimulatedGpus(settings.node, count)


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
    try:
        # Once now: the library reads half of itself from the disk at the first use, which must not be the loop's.
        seal(raw, b"", context=b"")
    except ValueError as error:
        raise SettingsError(
            "sealing_public_key is no public key (32 bytes in base64)", hint="Use the file sealing.pub as it is"
        ) from error
    return raw


_NO_SEALING_KEY = Problem(
    code="no_sealing_key",
    message="engines run without keys: whoever reaches their ports may use them",
    hint="Set sealing_public_key to the proxies' sealing.pub",
)
