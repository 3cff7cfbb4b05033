"""The watcher through the life of a store: reports, restarts, emptiness, silence."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from nebula_core.errors import Conflict, Fenced
from nebula_core.records.compact import NodeDelta, ReplicaDelta
from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.event import ChangeKind
from nebula_core.records.node import NodeIntent
from nebula_core.records.replica import Phase
from nebula_core.records.sample import EngineSample
from nebula_core.records.snapshot import NodeState
from nebula_core.records.store_memory import StoreDoubt
from nebula_core.runtime.clock import SystemClock
from nebula_core.security.envelope import SigningKey, sign_placement
from nebula_core.store import keys
from nebula_core.store.connection import connect
from nebula_core.store.reports import NoReports
from nebula_core.store.store import Store
from nebula_core.store.watcher import Changed, Watcher
from tests.support.records import a_placement, a_proxy_report, a_report, a_status
from tests.support.store import StoreServer, persistently

Servers = Callable[..., StoreServer]
SOON = 30.0
SPEC = DeploymentSpec(source="m")


class JumpingClock(SystemClock):
    """Real time, and a test may let some of it pass at once."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


def chat(generation: int = 1) -> Deployment:
    return Deployment(name="chat", generation=generation, spec=DeploymentSpec(source="m"))


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


@pytest.fixture
async def watcher(store: Store, clock: JumpingClock) -> AsyncIterator[Watcher]:
    async with Watcher(store, clock, poll_seconds=0.02) as started:
        await started.synced(SOON)
        yield started


async def until(holds: Callable[[], object], seconds: float = SOON) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


async def let_pass(watcher: Watcher, clock: JumpingClock, holds: Callable[[], object]) -> None:
    """Time passes in small steps, the watcher reading in each: nothing of it is forgiven."""
    for _ in range(200):
        if holds():
            return
        read = watcher._answered
        clock.ahead += 0.2
        await until(lambda read=read: watcher._answered != read)
    raise AssertionError("not within 40 s of the watcher")


async def test_it_starts_with_what_is_there(store: Store, clock: JumpingClock) -> None:
    await store.put(ChangeKind.DEPLOYMENT, "chat", chat())
    for number in range(120):
        await store.put(ChangeKind.INTENT, f"n{number}", NodeIntent(node=f"n{number}", generation=1))
        await store.publish_report(a_report(f"n{number}", replicas=(a_status(node=f"n{number}"),)), ttl=600)
    await store.publish_proxy(a_proxy_report("p1"))
    watcher = Watcher(store, clock)
    assert not watcher.reachable
    assert watcher.snapshot_age(clock.monotonic()) is None
    async with watcher:
        snapshot = await watcher.synced(SOON)
        assert snapshot.deployments == {"chat": chat()}
        assert len(snapshot.intents) == len(snapshot.reports) == 120
        assert set(snapshot.proxies) == {"p1"}
        assert snapshot.revision == await store.revision() == watcher.revision
        age = watcher.snapshot_age(clock.monotonic())
        assert age is not None
        assert age < SOON


async def test_listeners_hear_each_change_once_and_in_order(store: Store, watcher: Watcher) -> None:
    heard: list[Changed] = []

    def broken(_: object, __: Changed) -> None:
        raise RuntimeError("a listener of somebody else")

    watcher.add_listener(broken)
    watcher.add_listener(lambda _, changed: heard.append(changed))
    for generation in range(1, 30):
        await store.put(ChangeKind.DEPLOYMENT, "chat", chat(generation))
    await store.remove(ChangeKind.DEPLOYMENT, "chat")
    await watcher.wait_for(lambda snapshot: snapshot.revision == 30, SOON)
    assert [change.revision for changed in heard for change in changed.durable] == list(range(1, 31))
    assert not any(changed.resynced for changed in heard)
    assert not watcher.snapshot.deployments
    watcher.remove_listener(broken)


async def test_reports_and_compact_figures_are_folded(store: Store, watcher: Watcher) -> None:
    status = a_status(phase=Phase.LOADING, sample=EngineSample(requests_running=0))
    await store.publish_report(a_report(sequence=1, replicas=(status,)))
    await watcher.wait_for(lambda snapshot: "n1" in snapshot.reports, SOON)
    await store.publish_delta(
        NodeDelta(node="n1", sequence=2, replicas=(ReplicaDelta(id="chat-r1", phase="ready", running=7, kv=0.5),))
    )
    snapshot = await watcher.wait_for(lambda snapshot: snapshot.reports["n1"].sequence == 2, SOON)
    found = snapshot.replicas()["chat-r1"]
    assert found.phase is Phase.READY
    assert found.sample is not None
    assert (found.sample.requests_running, found.sample.kv_cache_usage) == (7, 0.5)


async def test_a_phase_of_a_newer_agent_does_not_stop_the_figures(store: Store, watcher: Watcher) -> None:
    await store.publish_report(a_report(replicas=(a_status(sample=EngineSample()),)))
    delta = NodeDelta(node="n1", sequence=2, replicas=(ReplicaDelta(id="chat-r1", phase="hibernating", running=3),))
    await watcher.wait_for(lambda snapshot: "n1" in snapshot.reports, SOON)
    await store.publish_delta(delta)
    snapshot = await watcher.wait_for(lambda snapshot: snapshot.reports["n1"].sequence == 2, SOON)
    found = snapshot.replicas()["chat-r1"]
    assert found.phase is Phase.READY
    assert found.sample is not None
    assert found.sample.requests_running == 3


async def test_an_agent_that_restarts_with_its_old_pid_is_heard(store: Store, watcher: Watcher) -> None:
    """In a container the pid is often the same, and the sequence begins again."""
    await store.publish_report(a_report(sequence=499, at=5_000.0))
    await store.publish_delta(NodeDelta(node="n1", sequence=500))
    await watcher.wait_for(lambda snapshot: "n1" in snapshot.reports and snapshot.reports["n1"].sequence == 500, SOON)
    await store.publish_delta(NodeDelta(node="n1", sequence=501))
    await store.publish_report(a_report(sequence=1, at=5_002.0, leaving=True))
    await store.publish_delta(NodeDelta(node="n1", sequence=2))
    snapshot = await watcher.wait_for(lambda snapshot: snapshot.reports["n1"].sequence == 2, SOON)
    assert snapshot.reports["n1"].report.leaving


async def test_compact_figures_of_an_unknown_node_fetch_its_report(
    store: Store, clock: JumpingClock, watcher: Watcher
) -> None:
    """The note of its full report may have been trimmed, or lost with a second of the store's life."""
    await store._commands.ask("SET", keys.report("n9"), a_report("n9").to_json(), "EX", 10)
    await store.publish_delta(NodeDelta(node="n9", sequence=2, cpu=0.25))
    snapshot = await watcher.wait_for(lambda snapshot: "n9" in snapshot.reports, SOON)
    assert snapshot.reports["n9"].report.host.cpu_ratio == 0.25


async def test_a_proxy_that_leaves_or_falls_silent_is_dropped(
    store: Store, clock: JumpingClock, watcher: Watcher
) -> None:
    await store.publish_proxy(a_proxy_report("p1", inflight={"chat-r1": 2}))
    await store.publish_proxy(a_proxy_report("p2", inflight={"chat-r1": 3}))
    snapshot = await watcher.wait_for(lambda snapshot: len(snapshot.proxies) == 2, SOON)
    assert snapshot.inflight("chat-r1") == 5
    await store.withdraw_proxy("p1")
    await watcher.wait_for(lambda snapshot: set(snapshot.proxies) == {"p2"}, SOON)
    await let_pass(watcher, clock, lambda: not watcher.snapshot.proxies)


async def test_foreign_and_broken_things_in_the_store_do_not_stop_it(store: Store, watcher: Watcher) -> None:
    await store.put(ChangeKind.DEPLOYMENT, "chat", chat())
    await watcher.wait_for(lambda snapshot: "chat" in snapshot.deployments, SOON)
    for raw in ("{", "7", '{"name":"chat"}', '{"generation":1}'):
        number = await store._commands.ask("INCR", keys.REVISION)
        await store._commands.ask("HSET", keys.DURABLE[ChangeKind.DEPLOYMENT], "chat", raw)
        await store._commands.ask("XADD", keys.CHANGES, f"{number}-0", "kind", "deployment", "id", "chat", "value", raw)
        await store._commands.ask("XADD", keys.TELEMETRY, "*", "d", raw)
        await store._commands.ask("SET", keys.report("bad"), raw)
        await store._commands.ask("XADD", keys.TELEMETRY, "*", "f", "bad")
        await store._commands.ask("XADD", keys.TELEMETRY, "*", "z", raw)
    await store.publish_report(a_report("good"))
    revision = await store.put(ChangeKind.INTENT, "n1", NodeIntent(node="n1", generation=1))
    snapshot = await watcher.wait_for(lambda found: found.revision == revision and "good" in found.reports, SOON)
    # What cannot be read says nothing: the record stays as it was known.
    assert snapshot.deployments == {"chat": chat()}
    # A watcher that starts now finds the same broken record and starts all the same.
    async with Watcher(store) as late:
        assert not (await late.synced(SOON)).deployments


async def test_fields_of_the_future_are_ignored(store: Store, watcher: Watcher) -> None:
    raw = chat().to_json()[:-1] + ',"colour":"blue","spec2":{"a":1}}'
    number = await store._commands.ask("INCR", keys.REVISION)
    await store._commands.ask("XADD", keys.CHANGES, f"{number}-0", "kind", "deployment", "id", "chat", "value", raw)
    snapshot = await watcher.wait_for(lambda snapshot: snapshot.revision == number, SOON)
    assert snapshot.deployments == {"chat": chat()}


async def test_after_kill_9_it_goes_on_from_the_same_content(own_store: Servers) -> None:
    server = own_store()
    async with await connect(server.settings()) as store, Watcher(store, poll_seconds=0.02) as watcher:
        await store.put(ChangeKind.DEPLOYMENT, "chat", chat())
        before = await watcher.wait_for(lambda snapshot: "chat" in snapshot.deployments, SOON)
        server.kill()
        await until(lambda: not watcher.reachable)
        assert watcher.snapshot.deployments == before.deployments
        server.start()
        await watcher.synced(SOON)
        assert not watcher.emptied
        assert watcher.snapshot.incarnation == before.incarnation
        assert watcher.snapshot.deployments == before.deployments
        await persistently(lambda: store.put(ChangeKind.DEPLOYMENT, "chat", chat(2)))
        await watcher.wait_for(lambda snapshot: snapshot.deployments["chat"].generation == 2, SOON)


async def go_back(store: Store, revision: int, **deployments: Deployment) -> None:
    """The store is an older copy of itself."""
    hash_name = keys.DURABLE[ChangeKind.DEPLOYMENT]
    await store._commands.ask_all(
        [
            ["SET", keys.REVISION, revision],
            ["DEL", hash_name, keys.CHANGES],
            *(["HSET", hash_name, name, one.to_json()] for name, one in deployments.items()),
        ],
        atomic=True,
    )


async def test_an_older_copy_of_the_store_orders_nothing(own_store: Servers) -> None:
    """Fault row 17: same incarnation, lower revision. What we know is kept, whatever stands in the copy."""
    server = own_store()
    async with await connect(server.settings()) as store, Watcher(store, poll_seconds=0.02) as watcher:
        for number in (1, 2, 3):
            await store.put(ChangeKind.DEPLOYMENT, "chat", chat(number))
        await watcher.wait_for(lambda snapshot: snapshot.revision == 3, SOON)
        await go_back(store, 1, chat=chat(), deleted_since=Deployment(name="deleted_since", generation=1, spec=SPEC))
        await until(lambda: watcher.doubt is StoreDoubt.STALE)
        assert watcher.remembers_more
        assert watcher.snapshot.deployments == {"chat": chat(3)}
        assert (await store.meta())["doubt"] == "stale"
        # Whoever starts now remembers nothing and is told all the same.
        async with Watcher(store, poll_seconds=0.02) as late:
            await late.synced(SOON)
            assert late.doubt is StoreDoubt.STALE
            assert not late.remembers_more
            assert set(late.snapshot.deployments) == {"chat", "deleted_since"}
        # It grows again, past what was seen: it is the wrong history all the same, also after a cut.
        for number in range(1, 5):
            await store.put(ChangeKind.INTENT, f"n{number}", NodeIntent(node=f"n{number}", generation=1))
        await watcher.wait_for(lambda snapshot: snapshot.revision == 5, SOON)
        server.command("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: not watcher.reachable)
        await watcher.synced(SOON)
        assert watcher.doubt is StoreDoubt.STALE
        assert watcher.snapshot.deployments == {"chat": chat(3)}
        # An operator has decided: in one step it is the truth again, above all that was seen.
        meta = await persistently(store.meta)
        revision = await store.rebuild(
            {ChangeKind.DEPLOYMENT: {"chat": chat(3)}},
            incarnation=meta["incarnation"],
            at_revision=5,
            epoch=7,
            above=int(meta["seen"]),
        )
        assert revision == 6
        await until(lambda: watcher.doubt is None)
        assert watcher.snapshot.deployments == {"chat": chat(3)}
        assert watcher.snapshot.intents == {}
        assert await store.put(ChangeKind.DEPLOYMENT, "chat", chat(4)) == 7
        await watcher.wait_for(lambda snapshot: snapshot.deployments["chat"].generation == 4, SOON)
        assert watcher.doubt is None


async def test_the_right_copy_of_a_stale_store_ends_the_doubt(own_store: Servers) -> None:
    server = own_store()
    async with await connect(server.settings()) as store, Watcher(store, poll_seconds=0.02) as watcher:
        await store.put(ChangeKind.DEPLOYMENT, "chat", chat())
        await store.put(ChangeKind.DEPLOYMENT, "chat", chat(2))
        await watcher.wait_for(lambda snapshot: snapshot.revision == 2, SOON)
        await go_back(store, 1, chat=chat())
        await until(lambda: watcher.doubt is StoreDoubt.STALE)
        await go_back(store, 2, chat=chat(2))
        await store._commands.ask("HDEL", keys.META, "doubt", "seen")
        await until(lambda: watcher.doubt is None)
        assert watcher.snapshot.deployments == {"chat": chat(2)}


async def test_a_store_is_rebuilt_whole_or_not_at_all(store: Store) -> None:
    incarnation = await store.ensure_meta()
    await store.put(ChangeKind.DEPLOYMENT, "old", Deployment(name="old", generation=1, spec=SPEC))
    records = {ChangeKind.DEPLOYMENT: {"chat": chat()}}
    whole = {"incarnation": incarnation, "at_revision": 1, "epoch": 3, "above": 900}
    for wrong in ({"at_revision": 0}, {"incarnation": "another"}):
        with pytest.raises(Conflict):
            await store.rebuild(records, **{**whole, **wrong})
    assert await store.rebuild(records, **whole) == 901
    assert set(await store.get_all(ChangeKind.DEPLOYMENT)) == {"chat"}
    assert (await store.meta())["settled"] == "1"
    with pytest.raises(Fenced):
        await store.rebuild(records, **{**whole, "at_revision": 901, "epoch": 2})


@pytest.mark.parametrize("how", ["flush", "restart"])
async def test_an_empty_store_orders_nothing(own_store: Servers, how: str) -> None:
    """Fault row 11: absence is no order, until somebody says that the store is the truth again."""
    server = own_store()
    key = SigningKey.generate()
    async with await connect(server.settings()) as store, Watcher(store, poll_seconds=0.02) as watcher:
        await store.put(ChangeKind.DEPLOYMENT, "chat", chat())
        await store.put(ChangeKind.INTENT, "n1", NodeIntent(node="n1", generation=1, cordoned=True))
        await store.apply_placements(1, [("chat-r1", sign_placement(key, a_placement()))])
        await store.publish_report(a_report(replicas=(a_status(),)))
        before = await watcher.wait_for(lambda snapshot: snapshot.revision == 3 and "n1" in snapshot.reports, SOON)
        if how == "flush":
            server.command("FLUSHALL")
        else:
            server.kill()
            server.lose_data()
            server.start()
        await until(lambda: watcher.emptied and watcher.reachable)
        assert watcher.snapshot.incarnation not in {"", before.incarnation}
        assert watcher.snapshot.deployments == before.deployments
        assert watcher.snapshot.placements == before.placements
        assert watcher.snapshot.intents == before.intents
        assert "n1" in watcher.snapshot.reports
        # What is said from now on is heard, and laid over what we remember.
        await persistently(lambda: store.put(ChangeKind.DEPLOYMENT, "chat", chat(7)))
        await store.remove(ChangeKind.INTENT, "n1")
        await store.put(ChangeKind.INTENT, "n2", NodeIntent(node="n2", generation=1))
        await store.remove(ChangeKind.INTENT, "n2")
        await watcher.wait_for(lambda snapshot: snapshot.revision == 3, SOON)
        assert watcher.snapshot.deployments == {"chat": chat(7)}
        assert watcher.snapshot.placements == before.placements
        assert watcher.emptied
        # A cut in between changes nothing of that.
        server.command("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: not watcher.reachable)
        await watcher.synced(SOON)
        assert watcher.emptied
        assert watcher.snapshot.placements == before.placements
        # Adopt or restore is done.
        await persistently(store.settle)
        await until(lambda: not watcher.emptied)
        assert not watcher.snapshot.placements
        assert watcher.snapshot.deployments == {"chat": chat(7)}


async def test_another_full_store_is_taken(own_store: Servers) -> None:
    """A restored backup has another incarnation and content: that is no emptiness."""
    server = own_store()
    async with await connect(server.settings()) as store, Watcher(store, poll_seconds=0.02) as watcher:
        await store.put(ChangeKind.DEPLOYMENT, "chat", chat())
        await watcher.wait_for(lambda snapshot: "chat" in snapshot.deployments, SOON)
        other = Deployment(name="other", generation=1, spec=DeploymentSpec(source="m"))
        await store._commands.ask_all(
            [
                ["FLUSHALL"],
                ["HSET", keys.META, "incarnation", "of-the-backup"],
                ["SET", keys.REVISION, 900],
                ["HSET", keys.DURABLE[ChangeKind.DEPLOYMENT], "other", other.to_json()],
            ],
            atomic=True,
        )
        await watcher.wait_for(lambda snapshot: snapshot.revision == 900, SOON)
        assert watcher.snapshot.deployments == {"other": other}
        assert not watcher.emptied


async def test_while_the_store_is_frozen_nobody_grows_old(own_store: Servers) -> None:
    """Fail static: no node is lost because we cannot hear it, but the age of the view is true."""
    server = own_store()
    clock = JumpingClock()
    async with (
        await connect(server.settings()) as store,
        await connect(server.settings(socket_timeout_seconds=0.3)) as impatient,
        Watcher(impatient, clock, poll_seconds=0.02) as watcher,
    ):
        await store.publish_report(a_report(replicas=(a_status(),)))
        await store.publish_proxy(a_proxy_report())
        await watcher.wait_for(lambda snapshot: snapshot.reports and snapshot.proxies, SOON)
        server.freeze()
        await until(lambda: not watcher.reachable)
        for _ in range(5):
            clock.ahead += 60
            frozen_at = watcher.snapshot
            await until(lambda seen=frozen_at: watcher.snapshot is not seen)
            assert watcher.snapshot.node_state("n1", clock.monotonic()) is not NodeState.LOST
        age = watcher.snapshot_age(clock.monotonic())
        assert age is not None
        assert age > 290
        server.thaw()
        await watcher.synced(SOON)
        now = clock.monotonic()
        assert watcher.snapshot.node_state("n1", now) is not NodeState.LOST
        assert watcher.snapshot.proxies
        age = watcher.snapshot_age(now)
        assert age is not None
        assert age < SOON
        # From here on its silence counts again.
        await let_pass(watcher, clock, lambda: watcher.snapshot.node_state("n1", clock.monotonic()) is NodeState.LOST)


async def test_a_process_that_was_frozen_itself_forgives_too(
    store: Store, clock: JumpingClock, watcher: Watcher
) -> None:
    await store.publish_report(a_report())
    await watcher.wait_for(lambda snapshot: "n1" in snapshot.reports, SOON)
    seen = watcher.snapshot
    clock.ahead += 3600
    await until(lambda: watcher.snapshot is not seen)
    assert watcher.snapshot.node_state("n1", clock.monotonic()) is not NodeState.LOST


async def test_reading_an_old_report_again_is_no_sign_of_life(
    store_server: StoreServer, store: Store, clock: JumpingClock, watcher: Watcher
) -> None:
    await store.publish_report(a_report(), ttl=600)
    await watcher.wait_for(lambda snapshot: "n1" in snapshot.reports, SOON)

    def silent() -> float:
        """When the store last answered."""
        assert watcher._answered is not None
        age = watcher.snapshot.heartbeat_age("n1", watcher._answered)
        assert age is not None
        return age

    await let_pass(watcher, clock, lambda: silent() > 5.0)
    before = silent()
    store_server.command("CLIENT", "KILL", "TYPE", "normal")
    await until(lambda: not watcher.reachable)
    await watcher.synced(SOON)
    # Forgiven are at most the moments without a store, not its silence before.
    assert silent() >= before - 0.001


async def test_waiting_ends(watcher: Watcher) -> None:
    with pytest.raises(TimeoutError):
        await watcher.wait_for(lambda snapshot: snapshot.revision == 99, 0.05)


async def test_it_starts_before_its_store(own_store: Servers) -> None:
    server = own_store()
    server.stop()
    async with await connect(server.settings()) as store, Watcher(store) as watcher:
        with pytest.raises(TimeoutError):
            await watcher.synced(0.1)
        server.start()
        await watcher.synced(SOON)
        assert watcher.reachable
    assert not watcher.reachable


async def test_a_reader_of_durable_records_alone_reads_no_telemetry(store: Store) -> None:
    """An agent in a cluster of a thousand others: what they report each second is none of its business."""
    signed = sign_placement(SigningKey.generate(), a_placement())
    async with Watcher(store, poll_seconds=0.05, reports=NoReports()) as watcher:
        await watcher.synced(SOON)
        await store.publish_report(a_report())
        epoch = await store.acquire_lease("t", 60.0)
        assert epoch is not None
        await store.apply_placements(epoch, [("chat-r1", signed)])
        snapshot = await watcher.wait_for(lambda seen: seen.placements, SOON)
        await store.put(ChangeKind.DEPLOYMENT, "chat", chat())
        await watcher.wait_for(lambda seen: seen.revision > snapshot.revision, SOON)
        assert (watcher.snapshot.reports, watcher.snapshot.proxies, watcher.snapshot.deployments) == ({}, {}, {})
        assert watcher._telemetry_cursor == "0-0"
