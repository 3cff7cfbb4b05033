"""The planner's loop on a real store, with agents and proxies that obey; one iteration at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nebula_core.records.deployment import Move
from nebula_core.records.event import ChangeKind
from nebula_core.records.placement import SignedPlacement, Wanted
from nebula_core.records.plan import Plan
from nebula_core.runtime.clock import Clock, SystemClock
from nebula_core.security.envelope import SigningKey, VerifyKeys, sign_placement, verify_placement
from nebula_core.store import keys
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher
from nebula_proxy.control.leader import LeaseSettings
from nebula_proxy.control.planner import PlannerLoop, PlannerSettings
from tests.support.clock import FakeClock
from tests.support.cluster_model import ClusterModel, make_deployment, make_node
from tests.support.store import StoreServer

KEY = SigningKey.generate()
#: Whose lease has ended is followed soon.
BRIEF = PlannerSettings(
    lease=LeaseSettings(ttl_seconds=60, renew_seconds=0.05, lock_delay_seconds=0.1), listen_seconds=0
)


class Rig:
    """One control process: its own connection, view and loop, and the cluster around it."""

    def __init__(self, store: Store, watcher: Watcher, loop: PlannerLoop, model: ClusterModel) -> None:
        self.store = store
        self.watcher = watcher
        self.loop = loop
        self.model = model

    async def turn(self) -> Plan | None:
        """Agents and proxies obey and report, the view has it, the leader makes one pass and the view has that."""
        await self.report()
        plan = await self.loop.step()
        await self.caught_up()
        return plan

    async def report(self) -> None:
        self.model.view = self.watcher.snapshot
        self.model.obey()
        nodes, proxies = self.model.node_reports(), self.model.proxy_reports()
        for node in nodes:
            await self.store.publish_report(node)
        for proxy in proxies:
            await self.store.publish_proxy(proxy)
        await self.watcher.wait_for(
            lambda view: (
                all(
                    (seen := view.reports.get(node.node)) is not None and seen.sequence >= node.sequence
                    for node in nodes
                )
                and all(
                    (seen := view.proxies.get(proxy.proxy)) is not None and seen.report.sequence >= proxy.sequence
                    for proxy in proxies
                )
            ),
            timeout=30,
        )

    async def caught_up(self) -> None:
        revision = await self.store.revision()
        await self.watcher.wait_for(lambda view: view.revision >= revision, timeout=30)

    async def until(self, holds, what: str, turns: int = 60) -> None:
        for _ in range(turns):
            await self.turn()
            if holds():
                return
        raise AssertionError(f"not after {turns} turns: {what}; {self.loop.latest}")

    async def calm(self) -> None:
        """Until a pass changes nothing."""
        await self.until(lambda: self.loop.latest is not None and not self.loop.latest.changes, "calm")

    async def deploy(self, *args: object, **more: object) -> None:
        deployment = make_deployment(*args, **more)  # type: ignore[arg-type]
        await self.store.put(ChangeKind.DEPLOYMENT, deployment.name, deployment)
        await self.caught_up()

    def wanted(self) -> dict[str, Wanted]:
        return {replica: one.wanted for replica, one in sorted(self.watcher.snapshot.placements.items())}

    async def told(self) -> list[tuple[str, str]]:
        return [(event.kind, event.object) for event in await self.store.read_events(count=1000)]


@asynccontextmanager
async def control_process(
    server: StoreServer,
    *,
    clock: Clock | None = None,
    settings: PlannerSettings | None = None,
    nodes: int = 2,
    holder: str | None = None,
) -> AsyncIterator[Rig]:
    clock = clock or SystemClock()
    async with (
        await connect(server.settings(lease_timeout_seconds=30)) as store,
        Watcher(store, clock, poll_seconds=0.02) as watcher,
    ):
        await watcher.synced(30)
        model = ClusterModel([make_node(f"n{number}", 4) for number in range(1, nodes + 1)])
        for node in model.nodes.values():
            await store.put(ChangeKind.NODE, node.node.name, node.node)
        loop = PlannerLoop(store, watcher, KEY, clock, settings or PlannerSettings(listen_seconds=0), holder=holder)
        rig = Rig(store, watcher, loop, model)
        await rig.caught_up()
        yield rig


@pytest.fixture
async def rig(store_server: StoreServer) -> AsyncIterator[Rig]:
    async with control_process(store_server) as made:
        yield made


async def test_a_deployment_becomes_signed_placements_and_ready_replicas(rig: Rig) -> None:
    await rig.deploy("chat", 2)
    await rig.turn()
    assert rig.wanted() == {"chat-r1": Wanted.RUN, "chat-r2": Wanted.RUN}
    for replica, node in (("chat-r1", "n1"), ("chat-r2", "n2")):
        raw = await rig.store.get(ChangeKind.PLACEMENT, replica)
        assert raw is not None
        keys = VerifyKeys([KEY.public])
        placement = verify_placement(keys, SignedPlacement.from_json(raw), node=node, replica=replica)
        assert placement.epoch == 1
    await rig.until(lambda: len(rig.model.ready("chat")) == 2, "two ready")
    await rig.turn()
    told = await rig.told()
    assert told.count(("placed", "replica/chat-r1")) == 1
    assert told.count(("ready", "replica/chat-r1")) == 1
    ready = next(event for event in await rig.store.read_events(count=100) if event.kind == "ready")
    assert ready.message == "ready in 3 s on n1"
    assert rig.loop.actions == {"run": 2}


async def test_scale_down_goes_through_drain_stop_and_removal(rig: Rig) -> None:
    await rig.deploy("chat", 2)
    await rig.until(lambda: len(rig.model.ready("chat")) == 2, "two ready")
    await rig.deploy("chat", 1, generation=2)
    seen: list[Wanted | None] = []
    for _ in range(40):
        await rig.turn()
        state = rig.wanted().get("chat-r2")
        if not seen or seen[-1] is not state:
            seen.append(state)
        if state is None:
            break
    assert seen == [Wanted.DRAIN, Wanted.STOP, None]
    await rig.turn()
    told = [kind for kind, about in await rig.told() if about == "replica/chat-r2"]
    assert told == ["placed", "ready", "drain", "stop", "stopped"]
    assert rig.loop.actions == {"run": 2, "drain": 1, "stop": 1, "remove": 1}


async def test_a_forged_order_is_signed_for_nobody_not_even_when_it_was_there_for_a_moment(rig: Rig) -> None:
    await rig.deploy("chat", 2)
    await rig.until(lambda: len(rig.model.ready("chat")) == 2, "two ready")
    await rig.calm()
    true = await rig.store.get(ChangeKind.PLACEMENT, "chat-r2")
    assert true is not None
    forger = SigningKey.generate()
    placement = rig.watcher.snapshot.placements["chat-r2"]
    spec = placement.spec.model_copy(update={"image": "evil:1"})
    forged = sign_placement(forger, placement.model_copy(update={"spec": spec}))
    epoch = rig.loop.leader[1]
    await rig.store.apply_placements(epoch, [("chat-r2", forged)])
    await rig.caught_up()
    # Who writes to the store need not tell anybody that he takes it back.
    await rig.store._commands.ask("HSET", "nebula:v1:placements", "chat-r2", true)
    await rig.deploy("chat", 1, generation=2)
    plan = await rig.loop.step()
    assert [change.replica for change in plan.changes] == ["chat-r2"]
    assert await rig.store.get(ChangeKind.PLACEMENT, "chat-r2") == true
    await rig.watcher.resync()
    await rig.until(lambda: "chat-r2" not in rig.wanted(), "what is ours goes on", turns=40)


async def test_a_drain_waits_for_the_streams(rig: Rig) -> None:
    await rig.deploy("chat", 1)
    await rig.until(lambda: rig.model.ready("chat") == ["chat-r1"], "ready")
    rig.model.proxies["proxy-0"].inflight["chat-r1"] = 2
    await rig.deploy("chat", 0, generation=2)
    for _ in range(15):
        await rig.turn()
    assert rig.wanted() == {"chat-r1": Wanted.DRAIN}
    assert rig.loop.latest is not None
    assert "2 in flight" in rig.loop.latest.entries[0].reason
    rig.model.proxies["proxy-0"].inflight.clear()
    await rig.until(lambda: not rig.wanted(), "stopped and removed")


async def test_it_never_acts_twice_on_one_observation(rig: Rig) -> None:
    await rig.deploy("chat", 2)
    await rig.report()
    await rig.watcher.stop()
    rig.watcher.reachable = True  # its view stands still, as that of one that reads slowly
    await rig.loop.step()
    revision = await rig.store.revision()
    assert revision == rig.watcher.revision + 2
    for _ in range(3):
        assert await rig.loop.step() is None
    assert await rig.store.revision() == revision


async def test_what_fits_nowhere_is_told_once(rig: Rig) -> None:
    await rig.deploy("big", 1, gpus=8)
    for _ in range(4):
        await rig.turn()
    assert (await rig.told()).count(("blocked", "deployment/big")) == 1
    assert rig.loop.latest is not None
    assert rig.loop.latest.unplaceable[0].verdicts[0].reason == "has 4 GPUs"
    await rig.deploy("big", 1, generation=2, gpus=4)
    await rig.turn()
    assert (await rig.told())[-2:] == [("unblocked", "deployment/big"), ("placed", "replica/big-r1")]


async def test_an_operator_may_have_one_replica_replaced(rig: Rig) -> None:
    await rig.deploy("chat", 1)
    await rig.until(lambda: rig.model.ready("chat") == ["chat-r1"], "ready")
    order = Move(replica="chat-r1", generation=2, reason="restart asked for by ops")
    moved = make_deployment("chat", 1, generation=2).model_copy(update={"moves": (order,)})
    await rig.store.put(ChangeKind.DEPLOYMENT, "chat", moved)
    await rig.until(lambda: set(rig.wanted()) == {"chat-r2"}, "replaced")
    await rig.calm()


async def test_only_one_of_two_writes_and_the_other_plans_along(store_server: StoreServer) -> None:
    async with control_process(store_server, holder="a") as first, control_process(store_server, holder="b") as second:
        await first.deploy("chat", 2)
        await first.report()
        await second.caught_up()
        await first.loop.step()
        plan = await second.loop.step()
        assert plan is not None
        assert first.loop.is_leader
        assert not second.loop.is_leader
        assert first.loop.leader == second.loop.leader == ("a", 1)
        assert second.loop.actions == {}


async def test_a_frozen_leader_writes_nothing_after_it_was_replaced(store_server: StoreServer) -> None:
    """Fault 18: its clock stood still, so it believes in its lease; the fence does not."""
    clock = FakeClock()
    async with (
        control_process(store_server, clock=clock, settings=BRIEF, holder="frozen") as frozen,
        control_process(store_server, settings=BRIEF, holder="heir") as heir,
    ):
        await frozen.deploy("chat", 1)
        await frozen.turn()
        assert frozen.loop.is_leader
        store_server.command("DEL", keys.LEASE)  # its time is over by the store's clock
        async with asyncio.timeout(30):
            while not heir.loop.is_leader:
                await heir.turn()
        assert frozen.loop.is_leader, "it cannot know"
        await frozen.deploy("code", 3)
        await frozen.watcher.wait_for(lambda view: "code" in view.deployments, timeout=30)
        before = await frozen.store.get_all(ChangeKind.PLACEMENT)
        plan = await frozen.loop.step()
        assert plan is not None
        assert len(plan.changes) == 3
        assert await frozen.store.get_all(ChangeKind.PLACEMENT) == before
        assert not frozen.loop.is_leader
        await heir.caught_up()
        await heir.until(lambda: len(heir.wanted()) == 4, "the heir places them")
        assert all(one.epoch >= 2 for one in heir.watcher.snapshot.placements.values() if one.deployment == "code")


async def test_the_heir_of_a_killed_leader_goes_on_with_its_drain(store_server: StoreServer) -> None:
    async with control_process(store_server, settings=BRIEF, holder="heir") as heir:
        async with control_process(store_server, settings=BRIEF, holder="killed") as killed:
            await killed.deploy("chat", 2)
            await killed.until(lambda: len(killed.model.ready("chat")) == 2, "ready")
            await heir.loop.step()
            await killed.deploy("chat", 1, generation=2)
            await killed.until(lambda: Wanted.DRAIN in killed.wanted().values(), "draining")
            heir.model.nodes = killed.model.nodes
            heir.model._sequence = killed.model._sequence
        assert await heir.store.leader() is not None, "it was not released: only its end frees the lease"
        store_server.command("DEL", keys.LEASE)
        await heir.until(lambda: set(heir.wanted()) == {"chat-r1"}, "the drain ends", turns=400)
        assert heir.loop.is_leader
        assert heir.loop.leader == ("heir", heir.loop.policy.epoch)
        assert heir.loop.policy.epoch > 1


async def test_past_its_deadline_it_writes_nothing_though_nobody_else_leads(store_server: StoreServer) -> None:
    clock = FakeClock()
    async with control_process(store_server, clock=clock) as rig:
        await rig.turn()
        assert rig.loop.is_leader
        await rig.deploy("chat", 1)
        plan = await rig.loop.step()
        assert plan is not None
        await clock.advance(9.5)
        assert not rig.loop.is_leader
        assert await rig.loop._apply(1, rig.watcher.snapshot, plan.changes) == []


async def test_it_outranks_what_agents_have_obeyed(rig: Rig) -> None:
    """Fault 17: the store has forgotten epochs that agents remember."""
    await rig.turn()
    assert rig.loop.policy.epoch == 1
    report = rig.model.node_reports()[0]
    await rig.store.publish_report(report.model_copy(update={"max_epoch": 12}))
    await rig.watcher.wait_for(lambda view: view.reports[report.node].report.max_epoch == 12, timeout=30)
    await rig.loop.step()
    assert rig.loop.policy.epoch == 13
    assert rig.loop.is_leader


async def test_a_store_that_came_back_empty_changes_nothing(own_store) -> None:
    server = own_store()
    async with control_process(server) as rig:
        await rig.deploy("chat", 2)
        await rig.until(lambda: len(rig.model.ready("chat")) == 2, "ready")
        server.command("FLUSHALL")
        async with asyncio.timeout(30):
            while not rig.watcher.emptied:
                await asyncio.sleep(0.01)
        plan = await rig.loop.step()
        assert plan is not None
        assert plan.brake is not None
        assert "nebula adopt --store" in plan.brake
        assert plan.changes == ()
        assert await rig.store.get_all(ChangeKind.PLACEMENT) == {}
        assert ("brake", "cluster/planner") in await rig.told()


async def test_a_store_that_is_away_ends_nothing_but_the_pass(own_store) -> None:
    server = own_store()
    async with control_process(server) as rig:
        await rig.deploy("chat", 1)
        await rig.calm()
        server.kill()
        async with asyncio.timeout(30):
            while rig.watcher.reachable:
                await asyncio.sleep(0.01)
        assert await rig.loop.step() is None
        server.start()
        await rig.watcher.synced(30)
        await rig.deploy("chat", 2, generation=2)
        await rig.until(lambda: len(rig.model.ready("chat")) == 2, "it goes on")


async def test_the_loop_is_woken_by_a_change_and_gives_the_lease_back(rig: Rig) -> None:
    await rig.report()
    slow = PlannerSettings(pass_seconds=3600.0, listen_seconds=0)
    loop = PlannerLoop(rig.store, rig.watcher, KEY, SystemClock(), slow, holder="runner")
    running = asyncio.create_task(loop.run())
    async with asyncio.timeout(30):
        while not loop.is_leader:
            await asyncio.sleep(0.01)
    await rig.deploy("chat", 1)
    await rig.watcher.wait_for(lambda view: "chat-r1" in view.placements, timeout=30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await rig.store.leader() is None


async def test_a_deleted_deployment_is_known_to_be_deleted_not_lost(rig: Rig) -> None:
    """Two at once would pull the brake if nobody had been seen deleting them."""
    running = asyncio.create_task(rig.loop.run())
    for name in ("chat", "code"):
        await rig.deploy(name, 1)
    async with asyncio.timeout(30):
        while len(rig.model.ready("chat") + rig.model.ready("code")) < 2:
            await rig.report()
    for name in ("chat", "code"):
        await rig.store.remove(ChangeKind.DEPLOYMENT, name)
    async with asyncio.timeout(30):
        while rig.watcher.snapshot.placements:
            await rig.report()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
