"""Desired × runtime × faults over the real owners: whatever happens in whatever order, the invariants of reliability 4.1 hold.

I1 one engine per replica; I2 no GPU and no port twice; I3 orders never fall, across restarts; I4 an engine ends only by a
verified order or a verdict; I11 when the faults end, all comes to what is wanted and then rests; I12 an agent that is
restarted, or killed between any two of its writes, changes no engine that it knew.

A few thousand steps here; `NEBULA_STATE_STEPS=100000` for the long run.
"""

import asyncio
import logging
import os
import tempfile
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nebula_agent.decisions.backoff import LONGEST_SECONDS
from nebula_agent.decisions.policy import LocalPolicy
from nebula_agent.loops import context as context_module
from nebula_agent.loops import engine_monitor
from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.replica import Phase
from tests.support.agent_world import GPUS, NODE, AgentKilled, AgentLife, World
from tests.support.clock import FakeClock, settle

STEPS = int(os.environ.get("NEBULA_STATE_STEPS", "2500"))
PER_RUN = 50
REPLICAS = ("chat-r1", "chat-r2", "embed-r1")

replicas = st.sampled_from(REPLICAS)


class Node(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(engine_monitor, "EAGER_SECONDS", 1.0)
        self.patch.setattr(engine_monitor, "PATIENT_SECONDS", 1.0)
        self.patch.setattr(context_module, "first_free", lambda _host, blocks: next(iter(blocks)))
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        self.folder = tempfile.TemporaryDirectory()
        self.world = World(FakeClock(), Path(self.folder.name))
        self.epoch, self.revision = 1, 0
        self.phases: dict[str, Phase] = {}

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    @initialize()
    def begin(self):
        self.run(AgentLife(self.world).begin())
        for replica, gpu in zip(REPLICAS, GPUS, strict=False):
            self._order(replica, Wanted.RUN, gpu, 1, self.epoch)
        self.run(self._pass(5.0))

    # --- driving

    async def _guarded(self, coroutine):
        """What the agent does; if it is killed meanwhile, another one begins."""
        try:
            return await coroutine
        except AgentKilled:
            await self._restart()
            return 0.0

    async def _restart(self):
        world = self.world
        world.writes_left = None
        await world.life.end()
        kept = {engine for epoch, engine in world.engines.items() if epoch in self._written()}
        starts = world.starts
        await AgentLife(world).begin()
        assert kept <= set(world.engines.values()), "I12: a known engine was ended by a restart"
        assert world.starts == starts, "I12: an engine was started by a restart"
        # Nobody saw the phases in between: they are taken from the disk.
        self.phases = {replica: owner.phase for replica, owner in world.life.replicas.owners.items()}

    def _written(self):
        records = self.world.life.context.files.all_replicas().values()
        return {record.started.engine_epoch for record in records if record.started is not None}

    async def _settle(self):
        """Owners step until they all rest."""
        for _ in range(60):
            pause = await self._guarded(self.world.life.look())
            await settle(2)
            if pause > 0:
                return
        raise AssertionError("never at rest")

    async def _pass(self, seconds):
        """Time passes as it does: looked at every few seconds."""
        while seconds > 0:
            step = min(seconds, 5.0)
            await self.world.clock.advance(step)
            await self._settle()
            seconds -= step

    # --- orders

    def _order(self, replica, wanted, gpu, seed, epoch):
        self.revision += 1
        deployment = replica.rpartition("-r")[0]
        spec = DeploymentSpec(source="sim", engine="simulated", gpus=1, args={"seed": seed}, start_deadline_seconds=20)
        self.world.order(
            Placement(
                replica=replica,
                deployment=deployment,
                node=NODE,
                gpus=(gpu,),
                wanted=wanted,
                generation=1,
                spec=spec,
                epoch=epoch,
                revision=self.revision,
            )
        )
        self.run(self._guarded(self.world.life.hear(replica)))

    @rule(replica=replicas, wanted=st.sampled_from(Wanted), gpu=st.sampled_from(GPUS), seed=st.integers(1, 2))
    def order(self, replica, wanted, gpu, seed):
        self._order(replica, wanted, gpu, seed, self.epoch)

    @rule(replica=replicas, gpu=st.sampled_from(GPUS))
    def run_it(self, replica, gpu):
        self._order(replica, Wanted.RUN, gpu, 1, self.epoch)
        self.run(self._pass(5.0))

    @rule()
    def another_leader(self):
        self.epoch += 1

    @precondition(lambda self: self.epoch > 1)
    @rule(replica=replicas, wanted=st.sampled_from(Wanted))
    def an_older_leader_speaks(self, replica, wanted):
        self._order(replica, wanted, GPUS[0], 1, self.epoch - 1)

    @precondition(lambda self: self.world.history)
    @rule(data=st.data())
    def an_old_order_is_replayed(self, data):
        replica, raw = data.draw(st.sampled_from(self.world.history))
        self.world.write(replica, raw)
        self.run(self._guarded(self.world.life.hear(replica)))

    @rule(replica=replicas)
    def a_placement_vanishes(self, replica):
        """Absence is no order."""
        running = {engine.started.engine_epoch for engine in self.world.engines.values() if engine.replica == replica}
        self.world.write(replica, None)
        self.run(self._guarded(self.world.life.hear(replica)))
        assert running <= set(self.world.engines)

    # --- time

    @rule()
    def look(self):
        self.run(self._guarded(self.world.life.look()))

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0, 12.0]))
    def time_passes(self, seconds):
        self.run(self._pass(seconds))

    @rule(seconds=st.sampled_from([40.0, 130.0]))
    def much_time_passes(self, seconds):
        self.run(self._pass(seconds))

    @rule(seconds=st.sampled_from([3600.0, -3600.0]))
    def the_wall_clock_jumps(self, seconds):
        self.world.clock.step_wall(seconds)

    # --- faults

    def _some(self, data):
        return data.draw(st.sampled_from(sorted(self.world.engines.values(), key=lambda engine: engine.started.pid)))

    @precondition(lambda self: self.world.engines)
    @rule(data=st.data(), status=st.sampled_from([0, 1, -9, 137, None]))
    def an_engine_dies(self, data, status):
        engine = self._some(data)
        engine.alive, engine.status = False, status

    @precondition(lambda self: self.world.engines)
    @rule(data=st.data(), how=st.sampled_from(["frozen", "silent", "ill"]), bad=st.booleans())
    def an_engine_falls_ill_or_recovers(self, data, how, bad):
        engine = self._some(data)
        setattr(engine, how, bad)
        engine.was_faulty |= bad

    @precondition(lambda self: self.world.engines)
    @rule(data=st.data(), stuck=st.booleans())
    def an_engine_hangs_in_a_driver(self, data, stuck):
        self._some(data).unkillable = stuck

    @rule(busy=st.booleans())
    def traffic(self, busy):
        self.world.busy = busy

    @rule(kind=st.sampled_from(["start_fails", "never_ready", "gpu 0", "gpu 1", "policy"]))
    def the_node_has_a_fault(self, kind):
        world = self.world
        if kind == "policy":
            world.life.context.policy = LocalPolicy(engines=())
        elif kind.startswith("gpu"):
            world.gpu_fault = {GPUS[int(kind[-1])]: "Xid 79"}
        else:
            setattr(world, kind, True)

    @rule(seconds=st.sampled_from([0.0, 5.0, 12.0]))
    def the_node_is_well_again(self, seconds):
        self._mended()
        self.run(self._pass(seconds))

    def _mended(self):
        world = self.world
        world.gpu_fault, world.start_fails, world.never_ready = {}, False, False
        world.life.context.policy = LocalPolicy()

    @rule()
    def the_agent_restarts(self):
        self.run(self._restart())

    @rule(writes=st.integers(0, 6))
    def the_agent_will_be_killed(self, writes):
        """Between two of its writes, whatever it is doing then."""
        self.world.writes_left = writes

    # --- laws

    @invariant()
    def phases_move_by_the_table(self):
        life = self.world.life
        if life is None:
            return
        for owner in life.replicas.owners.values():
            if owner.phase is Phase.READY:
                assert owner.started is not None
                assert owner._book.kept.proven or owner.monitor.proven

    @invariant()
    def the_report_can_be_made(self):
        if self.world.life is not None:
            for status in self.world.life.replicas.statuses(self.world.clock.monotonic()):
                assert status.from_json(status.to_json()).id == status.id

    def teardown(self):
        try:
            if self.world.life is not None:
                self.run(self._comes_to_rest())
                self.run(self.world.life.end())
        finally:
            structlog.reset_defaults()
            self.patch.undo()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.folder.cleanup()

    async def _comes_to_rest(self):
        """I11: the faults end; what waits out its backoff is given that time; then 30 s must be enough, and nothing moves."""
        world = self.world
        world.writes_left = None
        self._mended()
        for engine in world.engines.values():
            engine.frozen = engine.silent = engine.ill = engine.unkillable = False
            if engine.ready_at is None:
                engine.ready_at = world.clock.monotonic()
        await self._settle()
        # A GPU that two replicas are ordered to goes to one of them; the leader would not order that.
        await world.clock.advance(LONGEST_SECONDS + 1)
        await self._pass(35.0)
        owners = world.life.replicas.owners
        for owner in owners.values():
            wanted, phase, kept = owner.placement.wanted, owner.phase, owner._book.kept
            if wanted is Wanted.STOP:
                assert (phase, owner.started) == (Phase.STOPPED, None), (phase, kept)
            elif wanted is Wanted.RUN:
                waits = phase is Phase.PENDING and "still held by" in (kept.phase_reason or "")
                assert phase is Phase.READY or waits or kept.given_up is not None, (phase, kept)
            else:
                assert phase in {Phase.DRAINING, Phase.STOPPED, Phase.FAILED}, (phase, kept)
        before = (world.starts, world.stops, dict(world.disk))
        await self._pass(120.0)
        assert (world.starts, world.stops) == before[:2], "I11: it does not rest"
        assert world.disk == before[2]


TestNode = Node.TestCase
TestNode.settings = settings(
    max_examples=max(1, STEPS // PER_RUN),
    stateful_step_count=PER_RUN,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
