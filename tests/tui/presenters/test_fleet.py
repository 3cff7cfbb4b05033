"""The store of the screens: snapshot, deltas, ages, history. Time is a number."""

import pytest

from nebula_core.records.event import Event
from nebula_core.records.views import WatchDelta, WatchSnapshot
from nebula_tui.presenters.fleet import FleetState, LinkState
from tests.support.fleet import WALL, big_fleet, cluster, node, small_fleet


@pytest.fixture
def fleet() -> FleetState:
    state = FleetState()
    state.connected(99.0)
    state.take_snapshot(small_fleet(), 100.0)
    return state


def test_a_delta_replaces_adds_and_removes(fleet: FleetState) -> None:
    before = fleet.version
    fleet.take_delta(
        WatchDelta(
            nodes=(node("sim-c"),), gone_nodes=("sim-a",), gone_replicas=("demo-r1",), gone_deployments=("demo",)
        ),
        101.0,
    )
    assert set(fleet.nodes) == {"sim-b", "sim-c"}
    assert set(fleet.replicas) == {"demo-r2"}
    assert not fleet.deployments
    assert fleet.version == before + 1


def test_a_new_snapshot_replaces_everything_but_events_and_history(fleet: FleetState) -> None:
    fleet.sample(100.5)
    known = list(fleet.events)
    fleet.take_snapshot(WatchSnapshot(cluster=cluster()), 101.0)
    assert not fleet.nodes
    assert list(fleet.events) == known
    assert len(fleet.series) == 1


def test_events_are_joined_once_and_stay_in_order(fleet: FleetState) -> None:
    late = Event(id="0-1", at=WALL - 10_000, kind="old", object="node/x", message="m", actor="a")
    before = len(fleet.events)
    fleet.add_events((late, late))
    fleet.add_events(tuple(fleet.events))
    assert len(fleet.events) == before + 1
    assert fleet.events[0] == late


def test_live_quiet_lost_and_back(fleet: FleetState) -> None:
    assert fleet.is_live(101.0)
    assert not fleet.is_live(104.0)
    fleet.alive(104.0)
    assert fleet.is_live(104.5)
    fleet.lost("refused", 0.5, 105.0)
    fleet.lost("refused", 1.0, 106.0)
    assert fleet.link.state is LinkState.LOST
    assert fleet.link.since == 105.0
    assert fleet.link.retry_at == 107.0
    assert fleet.link_age(107.0) == 3.0
    fleet.connected(107.0)
    assert not fleet.is_live(107.0)  # connected is not yet told what is so
    fleet.take_snapshot(small_fleet(), 107.1)
    assert fleet.is_live(107.2)


def test_nothing_received_is_no_age() -> None:
    fleet = FleetState()
    assert fleet.link_age(5.0) is None
    assert not fleet.is_live(5.0)
    assert fleet.series.read("out") == ()


def test_a_ready_node_does_not_age_only_because_nothing_changed(fleet: FleetState) -> None:
    sim = fleet.nodes["sim-a"]
    for second in range(60):
        fleet.alive(100.0 + second)
    assert fleet.node_age(sim, 159.5) == 2.0
    fleet.lost("gone", 1.0, 160.0)
    assert fleet.node_age(sim, 170.0) == pytest.approx(70.4)


def test_a_suspect_node_ages(fleet: FleetState) -> None:
    fleet.take_delta(WatchDelta(nodes=(node("n", state="suspect", heartbeat_age_seconds=3.0),)), 100.0)
    assert fleet.node_age(fleet.nodes["n"], 104.0) == 7.0
    fleet.take_delta(WatchDelta(nodes=(node("never", state="lost", heartbeat_age_seconds=None),)), 100.0)
    assert fleet.node_age(fleet.nodes["never"], 104.0) is None


def test_sums_of_nothing_known_are_unknown(fleet: FleetState) -> None:
    fleet.sample(100.5)
    assert fleet.series.read("out") == (455.0,)
    fleet.take_delta(WatchDelta(gone_replicas=("demo-r1", "demo-r2")), 101.0)
    fleet.sample(101.5)
    assert fleet.series.read("out")[-1] is None


def test_the_store_of_the_cluster_is_stale_by_its_own_word(fleet: FleetState) -> None:
    assert not fleet.store_is_stale(100.5)
    fleet.take_delta(WatchDelta(cluster=cluster(store_reachable=False, snapshot_age_seconds=12.0)), 101.0)
    assert fleet.store_is_stale(101.0)
    assert fleet.store_age(104.0) == 15.0


def test_figures_of_a_lost_node_are_not_sampled() -> None:
    fleet = FleetState()
    fleet.take_snapshot(big_fleet(), 10.0)
    fleet.sample(10.5)
    assert fleet.series.read("node/node-000/util")[-1] is not None
    assert fleet.series.read("node/node-019/util") in ((), (None,))
    assert fleet.gpus.read("GPU-node-019-0") == (None,)
