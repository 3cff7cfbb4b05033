"""The table a worker routes by is what the whole snapshot would say, however it came about."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nebula_agent.decisions.reporting import compact
from nebula_core.errors import StoreUnavailable
from nebula_core.records.deployment import Deployment, DeploymentSpec, Limits
from nebula_core.records.endpoint import endpoints_by_model
from nebula_core.records.event import ChangeKind
from nebula_core.records.node import NodeIntent
from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from nebula_core.records.report import NodeReport, routing_digest
from nebula_core.records.sample import EngineSample
from nebula_core.security.envelope import SigningKey, sign_placement
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher
from nebula_proxy.traffic.plane import Plane
from nebula_proxy.traffic.table_feeder import TableFeeder
from tests.support.data_plane import until
from tests.support.records import a_placement, a_proxy_report, a_report, a_status
from tests.support.store import StoreServer

SOON = 60.0
KEY = SigningKey.generate()
LAST = 1_000
T = TypeVar("T")


class Reader:
    """A worker's way to a table, without the worker."""

    def __init__(self, store: Store) -> None:
        self.plane = Plane(proxy="me")
        self.feeder = TableFeeder(self.plane)
        self.watcher = Watcher(store, poll_seconds=0.005, reports=self.feeder.reports, block=False)
        self.watcher.add_listener(self.feeder.take)

    @property
    def table(self) -> Any:
        return self.plane.table

    def route(self, replica: str = "chat-r1", model: str = "chat") -> Any:
        return self.table.models[model].route(replica)


@pytest.fixture
async def reader(store: Store) -> AsyncIterator[Reader]:
    made = Reader(store)
    async with made.watcher:
        await made.watcher.synced(SOON)
        yield made
    made.feeder.stop()


def sampled(waiting: int = 0, **changes: Any) -> Any:
    return a_status(sample=EngineSample(requests_waiting=waiting, kv_cache_usage=0.25), **changes)


async def publish(store: Store, report: NodeReport, *, full: bool = True) -> None:
    if full:
        await store.publish_report(report, compact=compact(report))
    else:
        await store.publish_delta(compact(report))


async def test_figures_reach_the_route_that_is_there(store: Store, reader: Reader) -> None:
    await publish(store, a_report(replicas=(sampled(3),)))
    await until(lambda: "chat" in reader.table.models)
    route = reader.route()
    assert (route.waiting, route.kv_cache_usage) == (3, 0.25)
    told: list[None] = []
    reader.table.listeners.append(lambda: told.append(None))
    before = route.sampled_at
    await publish(store, a_report(sequence=2, replicas=(sampled(7),)), full=False)
    await until(lambda: route.waiting == 7)
    assert reader.route() is route
    assert route.sampled_at > before
    assert told  # those who wait for room are told


async def test_a_full_report_that_says_nothing_new_is_not_fetched(store: Store, reader: Reader) -> None:
    await publish(store, a_report(replicas=(sampled(3),)))
    await until(lambda: "chat" in reader.table.models)
    node = reader.feeder.reports.nodes["n1"]
    await publish(store, a_report(sequence=2, replicas=(sampled(4, phase_seconds=9.0),)))
    await until(lambda: reader.route().waiting == 4)
    assert reader.feeder.reports.nodes["n1"] is node
    # Something new of it, and it is.
    await publish(store, a_report(sequence=3, replicas=(sampled(5, restarts=1),)))
    await until(lambda: reader.route().waiting == 5)
    assert reader.feeder.reports.nodes["n1"] is not node


async def test_the_note_of_an_older_agent_is_followed(store: Store, reader: Reader) -> None:
    await store.publish_report(a_report(replicas=(sampled(3),)))
    await until(lambda: "chat" in reader.table.models)
    await store.publish_report(a_report(sequence=2, replicas=(sampled(8),)))
    await until(lambda: reader.route().waiting == 8)


async def test_an_agent_that_begins_again_unchanged_is_heard(store: Store, reader: Reader) -> None:
    """Killed in a container: same boot, same pid, same replicas, and the sequence begins at 1."""
    await publish(store, a_report(sequence=500, at=5_000.0, replicas=(sampled(3),)))
    await until(lambda: "chat" in reader.table.models)
    await publish(store, a_report(sequence=1, at=5_002.0, replicas=(sampled(4),)))
    await publish(store, a_report(sequence=2, at=5_003.0, replicas=(sampled(5),)), full=False)
    await until(lambda: reader.route().waiting == 5)


async def test_phases_placements_and_deployments_change_their_model_alone(store: Store, reader: Reader) -> None:
    spec = DeploymentSpec(source="m", replicas=2)
    for name in ("chat", "other"):
        await store.put(ChangeKind.DEPLOYMENT, name, Deployment(name=name, generation=1, spec=spec))
    await publish(store, a_report(replicas=(sampled(0),)))
    await publish(store, a_report("n2", replicas=(a_status("other-r1", "n2", deployment="other", model="other"),)))
    await until(lambda: "other" in reader.table.models and reader.table.models["other"].routes)
    untouched = reader.table.models["other"]
    # A phase comes with the figures already.
    gone = sampled(0, phase=Phase.DRAINING)
    await publish(store, a_report(sequence=2, replicas=(gone,)), full=False)
    await until(lambda: not reader.table.models["chat"].routes)
    await publish(store, a_report(sequence=3, replicas=(sampled(0),)), full=False)
    await until(lambda: reader.table.models["chat"].routes)
    await store.apply_placements(1, [("chat-r1", sign_placement(KEY, a_placement(wanted=Wanted.DRAIN, revision=9)))])
    await until(lambda: not reader.table.models["chat"].routes)
    assert reader.table.revision == await store.revision()
    limits = spec.model_copy(update={"limits": Limits(waiting=99)})
    await store.put(ChangeKind.DEPLOYMENT, "chat", Deployment(name="chat", generation=2, spec=limits))
    await until(lambda: reader.table.models["chat"].view.limits.waiting == 99)
    assert reader.table.models["other"] is untouched
    await store.remove(ChangeKind.DEPLOYMENT, "chat")
    await until(lambda: "chat" not in reader.table.models)


async def test_records_that_are_passed_over_are_acknowledged_too(store: Store, reader: Reader) -> None:
    revision = await store.put(ChangeKind.INTENT, "n1", NodeIntent(node="n1", generation=1))
    await until(lambda: reader.table.revision == revision)
    assert not reader.watcher.snapshot.intents


async def test_a_lost_node_keeps_its_endpoints(store: Store, reader: Reader) -> None:
    await publish(store, a_report(replicas=(sampled(0),)))
    await until(lambda: "chat" in reader.table.models)
    reader.feeder.reports.nodes["n1"].at -= 100_000.0
    await publish(store, a_report("n2", replicas=()))
    await until(lambda: "n2" in reader.feeder.reports.nodes)
    assert reader.table.models["chat"].routes


async def test_silence_is_forgiven_in_the_routes(store: Store, reader: Reader) -> None:
    await publish(store, a_report(replicas=(sampled(0),)))
    await until(lambda: "chat" in reader.table.models)
    before = reader.route().sampled_at
    reader.watcher._heard -= 50.0  # as if the process had been frozen
    await until(lambda: reader.route().sampled_at > before + 49.0)
    assert reader.feeder.reports.nodes["n1"].at > before + 49.0


async def test_other_proxies_are_counted_and_the_own_is_not_fetched(store: Store, reader: Reader) -> None:
    await publish(store, a_report(replicas=(sampled(0),)))
    await store.publish_proxy(a_proxy_report("me", inflight={"chat-r1": 9}))
    await store.publish_proxy(a_proxy_report("p2", inflight={"chat-r1": 2}))
    await until(lambda: "chat" in reader.table.models and reader.route().elsewhere == 2)
    assert set(reader.watcher.snapshot.proxies) == {"p2"}
    reader.feeder.tick(time.monotonic() + 100.0)
    assert reader.route().elsewhere == 0


async def test_work_that_takes_long_is_done_in_slices(
    store: Store, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that runs away ends every slice after its first step; all is done in the end all the same."""
    steps = itertools.count()
    monkeypatch.setattr("nebula_proxy.traffic.table_feeder.time.perf_counter", lambda: float(next(steps)))
    spec = DeploymentSpec(source="m")
    await store.put(ChangeKind.DEPLOYMENT, "chat", Deployment(name="chat", generation=1, spec=spec))
    for number in range(30):
        await publish(
            store, a_report(f"n{number}", replicas=(sampled(0, replica=f"chat-r{number}", node=f"n{number}"),))
        )
    await until(lambda: "chat" in reader.table.models and len(reader.table.models["chat"].routes) == 30)
    revision = await store.remove(ChangeKind.DEPLOYMENT, "chat")
    await until(lambda: reader.table.revision == revision)


def test_the_digest_is_of_what_routing_may_depend_on() -> None:
    known = routing_digest(a_report(replicas=(sampled(0),)))
    assert routing_digest(a_report(sequence=9, replicas=(sampled(5, phase_seconds=7.0),))) == known
    for other in (
        a_report("n2", replicas=(sampled(0),)),
        a_report(boot_id="b2", replicas=(sampled(0),)),
        a_report(agent_pid=7, replicas=(sampled(0),)),
        a_report(leaving=True, replicas=(sampled(0),)),
        a_report(replicas=()),
        a_report(replicas=(sampled(0, phase=Phase.LOADING),)),
        a_report(replicas=(sampled(0, engine_epoch="another"),)),
    ):
        assert routing_digest(other) != known


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["full", "compact", "old agent", "again", "deployment", "drain", "cut", "breathe"]),
        st.sampled_from(["n1", "n2"]),
        st.lists(st.sampled_from(list(Phase)[:7]), max_size=3),
        st.integers(0, 9),
    ),
    max_size=25,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_it_ends_up_as_the_whole_snapshot_would_have_it(store_server: StoreServer, steps: list[Any]) -> None:
    store_server.command("FLUSHALL")
    async with await connect(store_server.settings()) as store:
        reader = Reader(store)
        sequences = {"n1": 0, "n2": 0}
        shape: dict[str, list[Phase]] = {"n1": [], "n2": []}
        async with reader.watcher, Watcher(store, poll_seconds=0.005) as whole:
            await asyncio.gather(reader.watcher.synced(SOON), whole.synced(SOON))
            for at, (what, node, phases, number) in enumerate(steps):
                await _do(store, store_server, what, node, phases, number, sequences, shape, float(at))
            # The last word of both nodes, after which both readers must agree: by a sequence no life of theirs had before.
            for node, phases in shape.items():
                sequences[node] = LAST
                await persistently(lambda: publish(store, _report(node, sequences[node], phases, 5, 10_000.0)))  # noqa: B023
            await whole.wait_for(
                lambda seen: all(n in seen.reports and seen.reports[n].sequence == sequences[n] for n in sequences),
                SOON,
            )
            revision = await persistently(store.revision)
            await until(lambda: reader.table.known and reader.table.revision == revision == whole.revision, SOON)
            nodes = reader.feeder.reports.nodes
            await until(lambda: all(n in nodes and nodes[n].sequence == sequences[n] for n in sequences), SOON)
            wanted = endpoints_by_model(whole.snapshot, 0.0)
            assert _shape(wanted) == {
                name: (
                    model.view.starting,
                    model.view.wanted,
                    [(route.replica, route.address, route.waiting) for route in model.routes],
                )
                for name, model in reader.table.models.items()
            }


async def persistently(work: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await work()
        except StoreUnavailable:
            continue  # its connection was cut before


def _shape(views: Any) -> dict[str, Any]:
    return {
        name: (
            view.starting,
            view.wanted,
            [
                (one.replica, (one.host, one.port), one.sample.requests_waiting if one.sample else None)
                for one in view.endpoints
            ],
        )
        for name, view in views.items()
    }


def _report(node: str, sequence: int, phases: list[Phase], waiting: int, at: float) -> NodeReport:
    replicas = tuple(
        sampled(waiting, replica=f"chat-{node}-{number}", node=node, phase=phase) for number, phase in enumerate(phases)
    )
    return a_report(node, sequence, at=at, replicas=replicas)


async def _do(
    store: Store, server: StoreServer, what: str, node: str, phases: list[Phase], number: int, sequences: dict[str, int],
    shape: dict[str, list[Phase]], at: float,
) -> None:  # fmt: skip
    try:
        match what:
            case "full" | "old agent" | "again":
                # "again": the agent was started anew and counts from the beginning.
                sequences[node] = 1 if what == "again" else sequences[node] + 1
                shape[node] = phases
                report = _report(node, sequences[node], phases, number, at)
                await (store.publish_report(report) if what == "old agent" else publish(store, report))
            case "compact":
                sequences[node] += 1
                await publish(store, _report(node, sequences[node], shape[node], number, at), full=False)
            case "deployment":
                spec = DeploymentSpec(source="m", replicas=number)
                await store.put(ChangeKind.DEPLOYMENT, "chat", Deployment(name="chat", generation=at + 1, spec=spec))
            case "drain":
                placement = a_placement(
                    f"chat-{node}-0", node, wanted=Wanted.DRAIN if number % 2 else Wanted.RUN, revision=int(at) + 1
                )
                await store.apply_placements(1, [(placement.replica, sign_placement(KEY, placement))])
            case "cut":
                server.command("CLIENT", "KILL", "TYPE", "normal")
            case "breathe":
                await asyncio.sleep(0.002 * number)
    except StoreUnavailable:
        return  # cut in the middle of it: as if it had never been said
