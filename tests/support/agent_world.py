"""A node for a state machine: the real owners, obedience and monitors over engines, a disk and a clock that are only kept in memory.

What survives the agent (engines, disk, store, time) is the `World`; what dies with it is an `AgentLife`. The world checks
on each call what must never happen (reliability 4.1: I1, I2, I4), whoever asks for it.
"""

# ruff: noqa: ARG002 - what stands for a seam has the seam's form

import asyncio
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.engine_http import Answer, Said
from nebula_agent.adapters.external_runtime import ExternalRuntime
from nebula_agent.adapters.gpus import GpuReading
from nebula_agent.adapters.node_files import KeptReplica, NodeFiles
from nebula_agent.adapters.runtime import Ended, Look, Started
from nebula_agent.decisions.launch_digest import launch_digest
from nebula_agent.decisions.lifecycle import Life
from nebula_agent.decisions.obedience import Orders
from nebula_agent.decisions.policy import LocalPolicy
from nebula_agent.engines.base import Program
from nebula_agent.loops.context import Context, PortBook
from nebula_agent.loops.obedience import Obedience
from nebula_agent.loops.replicas import Replicas
from nebula_agent.settings import AgentSettings
from nebula_core.records.event import Change, ChangeKind
from nebula_core.records.node import Gpu
from nebula_core.records.placement import Placement, SignedPlacement, Wanted
from nebula_core.records.sample import GpuSample
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.security.envelope import SigningKey, VerifyKeys, sign_placement
from nebula_core.store.watcher import Changed
from tests.support.clock import FakeClock, settle

NODE = "n1"
GPUS = ("GPU-0", "GPU-1")
BOOT = "boot"
_KEY = SigningKey.generate()


class AgentKilled(BaseException):
    """The agent's process ends here, between two of its steps."""


@dataclass(eq=False)
class Engine:
    """One start, as the machine has it."""

    started: Started
    replica: str
    digest: str
    born: float
    ready_at: float | None
    #: Its leader lives; when not, what it left behind may still hold the GPU until `stop` was called.
    alive: bool = True
    status: int | None = None
    frozen: bool = False
    silent: bool = False
    ill: bool = False
    unkillable: bool = False
    #: It was ill in a way that may end it, at some time of its life.
    was_faulty: bool = False
    tokens: float = 0
    finished: float = 0
    steps: float = 0


@dataclass
class World:
    """All that an agent finds again."""

    clock: FakeClock
    directory: Path
    engines: dict[str, Engine] = field(default_factory=dict)
    disk: dict[str, str] = field(default_factory=dict)
    orders: Orders = field(default_factory=Orders)
    store: dict[str, str] = field(default_factory=dict)
    placements: dict[str, Placement] = field(default_factory=dict)
    history: list[tuple[str, str]] = field(default_factory=list)
    busy: bool = False
    gpu_fault: dict[str, str] = field(default_factory=dict)
    start_fails: bool = False
    never_ready: bool = False
    #: Writes to the disk until the agent is killed; None: it is not.
    writes_left: int | None = None
    starts: int = 0
    stops: int = 0
    #: What each agent life obeyed last of each replica: never falls.
    obeyed: dict[str, tuple[int, int]] = field(default_factory=dict)
    life: "AgentLife | None" = None
    _pids: itertools.count = field(default_factory=lambda: itertools.count(100))

    # --- as a runtime

    kind = "process"

    def inside(self, launch):
        return launch

    async def start(self, launch, command, room):
        await asyncio.sleep(0)
        if self.start_fails:
            raise OSError("no such program")
        for engine in self.engines.values():
            assert engine.replica != room.replica, f"I1: {room.replica} has an engine already"
            assert not set(engine.started.gpus) & set(launch.gpus), f"I2: {launch.gpus} are held by {engine.replica}"
            assert not set(engine.started.ports) & set(launch.ports), "I2: a port is given out twice"
        started = Started(
            runtime=self.kind,
            engine_epoch=room.engine_epoch,
            host=launch.host,
            probe_host="127.0.0.1",
            port=launch.port,
            ports=tuple(launch.ports),
            gpus=launch.gpus,
            log_file=str(room.log_file),
            started_at=self.clock.wall(),
            boot_id=BOOT,
            pid=next(self._pids),
            marker=f"NEBULA_ENGINE=a/{room.replica}/{room.engine_epoch}",
        )
        now = self.clock.monotonic()
        owner = self.life.replicas.owners[room.replica]
        self.engines[room.engine_epoch] = Engine(
            started, room.replica, launch_digest(owner.placement), now, None if self.never_ready else now + 3.0
        )
        self.starts += 1
        return started

    async def know(self, started, replica):
        pass

    def look(self, started):
        engine = self.engines.get(started.engine_epoch)
        if engine is None:
            return Look(Life.ENDED)
        return Look(Life.RUNNING) if engine.alive else Look(Life.ENDED, engine.status)

    async def ended(self, started, timeout):
        raise AssertionError("the machine looks by hand")

    async def members(self, started):
        return frozenset()

    async def stop(self, started, *, term_seconds):
        await asyncio.sleep(0)
        engine = self.engines.get(started.engine_epoch)
        if engine is None:
            return Ended()
        assert self._may_stop(engine), f"I4: nobody ordered the end of {engine}"
        if engine.unkillable:
            return Ended(killed=True, survivors=(started.pid,))
        del self.engines[started.engine_epoch]
        self.stops += 1
        return Ended(status=engine.status)

    def let_go(self, started):
        pass

    async def remember_shared_memory(self, started):
        pass

    async def strays(self, known):
        return [engine.started for epoch, engine in self.engines.items() if epoch not in known]

    async def forget_others(self, known):
        pass

    def _may_stop(self, engine):
        """A verified order, its own end, a verdict on its health, or nobody's: a start that was never written down."""
        if not engine.alive or engine.was_faulty or engine.ready_at is None:
            return True
        kept = self.disk.get(engine.replica)
        record = None if kept is None else KeptReplica.from_json(kept)
        if record is None or record.started is None or record.started.engine_epoch != engine.started.engine_epoch:
            return True
        placement = Placement.from_json(record.placement.payload)
        return placement.wanted is Wanted.STOP or launch_digest(placement) != engine.digest

    # --- as the engines' HTTP

    def _at(self, port):
        return next((engine for engine in self.engines.values() if engine.started.port == port and engine.alive), None)

    def _up(self, engine):
        return engine is not None and engine.ready_at is not None and engine.ready_at <= self.clock.monotonic()

    async def health(self, host, port, path):
        engine = self._at(port)
        if not self._up(engine):
            return Said(Answer.REFUSED, "nobody listens on its port yet")
        if engine.silent:
            return Said(Answer.SILENT, "no answer")
        return Said(Answer.NO, "/health answered 503") if engine.ill else Said(Answer.YES)

    async def lists_model(self, host, port, model, key):
        return await self.health(host, port, "")

    async def one_token(self, host, port, path, body, key, *, seconds=60.0):
        engine = self._at(port)
        if not self._up(engine):
            return Said(Answer.REFUSED)
        if engine.silent or engine.frozen:
            return Said(Answer.SILENT, "no token")
        engine.tokens += 1
        engine.finished += 1
        engine.steps += 1
        return Said(Answer.YES, body=b'{"choices": [1], "usage": {"prompt_tokens": 1}}')

    async def info(self, host, port, path, key):
        return {"version": "0.32.0"}

    async def figures(self, host, port, key, *, seconds=5.0):
        engine = self._at(port)
        if not self._up(engine):
            return Said(Answer.REFUSED)
        if engine.silent:
            return Said(Answer.SILENT)
        if self.busy and not engine.frozen:
            engine.tokens += 10
            engine.steps += 1
        running = 2 if self.busy else 0
        return Said(
            Answer.YES,
            body=(
                f"vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.1\n"
                f"vllm:generation_tokens_total {engine.tokens}\nvllm:request_success_total {engine.finished}\n"
                f"vllm:iteration_tokens_total_count {engine.steps}\n"
            ).encode(),
        )

    async def aclose(self):
        pass

    # --- as the control plane

    def order(self, placement):
        """Signs it and writes it to the store; what became of it is the agent's."""
        raw = sign_placement(_KEY, placement).to_json()
        self.history.append((placement.replica, raw))
        self.write(placement.replica, raw)

    def write(self, replica, raw):
        if raw is None:
            self.store.pop(replica, None)
            self.placements.pop(replica, None)
            return
        self.store[replica] = raw
        self.placements[replica] = Placement.from_json(SignedPlacement.from_json(raw).payload)

    @property
    def snapshot(self):
        return ClusterSnapshot(placements=dict(self.placements))

    reachable = True
    doubt = None

    async def get(self, kind, replica):
        return self.store.get(replica)

    def gpus(self):
        return GpuReading(
            inventory=tuple(Gpu(id=gpu, index=index, name="sim") for index, gpu in enumerate(GPUS)),
            samples=tuple(
                GpuSample(gpu=gpu, index=index, fault=self.gpu_fault.get(gpu)) for index, gpu in enumerate(GPUS)
            ),
        )


class MemoryFiles(NodeFiles):
    """The agent's folder, of which the records lie in the world's memory, and whose agent may die at each write."""

    def __init__(self, world):
        super().__init__(world.directory)
        self._world = world

    def keep_replica(self, kept):
        world = self._world
        if world.writes_left is not None:
            if world.writes_left <= 0:
                raise AgentKilled
            world.writes_left -= 1
        world.disk[kept.replica] = kept.to_json()

    def all_replicas(self):
        return {replica: KeptReplica.from_json(raw) for replica, raw in self._world.disk.items()}

    def forget_replica(self, replica):
        self._world.disk.pop(replica, None)

    def orders(self):
        return self._world.orders

    def keep_orders(self, orders):
        self._world.orders = orders


class InstantDisk(DiskThreads):
    """A disk that answers at once, in the loop: the machine's steps are the same each time they are played."""

    def begin(self, lane, call, *given, **named):
        answer = asyncio.get_running_loop().create_future()
        try:
            answer.set_result(call(*given, **named))
        except (Exception, AgentKilled) as error:
            answer.set_exception(error)
        return answer


class ByHand:
    """Stands where the supervisor is: the machine calls the owners itself."""

    def eternal(self, name, task):
        return asyncio.ensure_future(asyncio.sleep(0))


class AgentLife:
    """One process of the agent: born by adopting, ended without a word."""

    def __init__(self, world):
        self.world = world
        world.life = self
        files = MemoryFiles(world)
        self.context = Context(
            settings=AgentSettings(node=NODE, data_dir=world.directory, port_range=(20000, 20099), gpus="none"),
            clock=world.clock,
            boot_id=BOOT,
            version="test",
            files=files,
            policy=LocalPolicy(),
            http=world,
            processes=world,
            runtimes={"process": world},
            programs={"simulated": Program(Path("/bin/true"))},
            sealing_key=None,
            ports=PortBook("127.0.0.1", (20000, 20099)),
            external=ExternalRuntime(world, LocalPolicy(), world.clock, BOOT),
            disk=InstantDisk("data"),
            mounts=InstantDisk("mounts"),
            gpus=world.gpus(),
        )
        self.replicas = Replicas(self.context, ByHand())
        self.obedience = Obedience(
            node=NODE,
            store=world,
            watcher=SimpleNamespace(snapshot=world.snapshot, reachable=True, doubt=None, remembered=None),
            keys=VerifyKeys([_KEY.public]),
            files=files,
            orders=world.orders,
            replicas=self.replicas,
            problems=self.context.problems,
            disk=self.context.disk,
        )

    async def begin(self):
        await self.replicas.adopt_all()
        self.replicas.start_all()
        self._hear(Changed(resynced=True))
        await self.obedience.iterate()

    async def hear(self, replica):
        change = Change(revision=1, kind=ChangeKind.PLACEMENT, id=replica, value=self.world.store.get(replica))
        self._hear(Changed(durable=(change,)))
        await self.obedience.iterate()

    def _hear(self, changed):
        self.obedience._watcher.snapshot = self.world.snapshot
        self.obedience.heard(self.world.snapshot, changed)
        self.obedience._woken.set()

    async def look(self):
        """Every owner one step further, all at once; the longest rest they ask for."""
        self.context.gpus = self.world.gpus()
        owners = list(self.replicas.owners.values())
        done = await asyncio.gather(*(owner.iterate() for owner in owners), return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result
        for owner in owners:
            self.world.obeyed.setdefault(owner.replica, (0, 0))
            assert owner.placement.order >= self.world.obeyed[owner.replica], "I3: an older order was obeyed"
            self.world.obeyed[owner.replica] = owner.placement.order
        return min(done, default=5.0)

    async def end(self):
        """kill -9: tasks are gone, engines stay."""
        for owner in self.replicas.owners.values():
            owner._image.let_go()
            await owner._watch.end()
        await settle()
