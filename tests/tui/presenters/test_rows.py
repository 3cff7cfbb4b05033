"""Views as rows and lines: what stands in the cells, as strings."""

import pytest

from nebula_core.records.replica import Phase
from nebula_core.records.views import NodeView, ReplicaView, WatchDelta, WatchSnapshot
from nebula_tui.presenters import engine, events, models, nodes, overview, states, trouble
from nebula_tui.presenters.cells import UNKNOWN, Row, Severity
from nebula_tui.presenters.fleet import FleetState
from nebula_tui.presenters.text import joined
from tests.support.fleet import WALL, big_fleet, cluster, deployment, gpu, node, replica, sample, small_fleet, traffic

NOW = 100.5


@pytest.fixture
def fleet() -> FleetState:
    return of(big_fleet())


def of(snapshot: WatchSnapshot) -> FleetState:
    state = FleetState()
    state.take_snapshot(snapshot, 100.0)
    state.sample(100.2)
    return state


def texts(row: Row) -> list[str]:
    return [cell.text for cell in row.cells]


# ----------------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize(
    ("given", "text", "severity"),
    [
        (node("n"), "ready", Severity.OK),
        (node("n", state="lost", draining=True), "▲lost", Severity.CRIT),
        (node("n", state="suspect"), "~suspect", Severity.WARN),
        (node("n", draining=True, cordoned=True), "‖drain", Severity.WARN),
        (node("n", cordoned=True), "⊘cordon", Severity.WARN),
    ],
)
def test_node_states(given: NodeView, text: str, severity: Severity) -> None:
    assert states.node_state(given) == (text, severity)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (replica("m", 1, "n"), "ready"),
        (replica("m", 1, "n", wanted="drain"), "‖ draining"),
        (replica("m", 1, "n", ejected={"p": "refused"}), "● ejected"),
        (replica("m", 1, "n", sample=sample(0.97, 1, 1, 1, 1)), "▲ hot"),
        *(
            (replica("m", 1, "n", phase=phase), f"↻ {phase.value}")
            for phase in (Phase.PULLING, Phase.CREATING, Phase.LOADING)
        ),
        (replica("m", 1, "n", phase=Phase.FAILED), "▲ failed"),
        (replica("m", 1, "n", phase=Phase.LOST), "▲ lost"),
        (replica("m", 1, "n", phase=Phase.STOPPED), "○ stopped"),
        (replica("m", 1, "n", phase=Phase.PENDING), "○ pending"),
    ],
)
def test_phases(given: ReplicaView, text: str) -> None:
    assert states.phase_cell(given).text == text


def test_every_phase_has_its_own_words() -> None:
    words = {states.phase_cell(replica("m", 1, "n", phase=phase)).text for phase in Phase}
    assert len(words) == len(Phase)


def test_short_names() -> None:
    assert states.short_replica("chat-r2") == "chat/r2"
    assert states.short_replica("chat-r2", "chat") == "r2"
    assert states.short_replica("by-hand-rx") == "by-hand-rx"
    assert states.gpu_span((3, 1, 2)) == "1-3"
    assert states.gpu_span((0, 2)) == "0,2"
    assert states.gpu_span((5,)) == "5"


# ------------------------------------------------------------------------------------------------------------ nodes


def test_a_node_row(fleet: FleetState) -> None:
    row = nodes.rows(fleet, NOW).make("node-015")
    assert texts(row)[:3] == ["node-015", "ready", row.cells[2].text]
    assert len(row.cells[2].text) == 8
    assert texts(row)[5:10] == ["96", "74", "4,936", "48/9", "806"]
    assert len(row.cells) == len(nodes.COLUMNS)


def test_a_lost_node_knows_nothing_and_says_how_long(fleet: FleetState) -> None:
    row = nodes.rows(fleet, NOW).make("node-019")
    assert row.stale
    assert texts(row)[1:5] == ["▲lost", "▲▲▲▲▲▲▲▲", UNKNOWN, UNKNOWN]
    assert texts(row)[10] == "~48s"


def test_nodes_without_figures_show_dashes_never_zero() -> None:
    row = nodes.rows(of(WatchSnapshot(cluster=cluster(), nodes=(node("bare"),))), NOW).make("bare")
    assert texts(row)[2:10] == ["no GPU", UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]


def test_order_and_text_serve_filters(fleet: FleetState) -> None:
    rows = nodes.rows(fleet, NOW)
    assert rows.order("node-015", "kv") == pytest.approx(96.0)
    assert rows.order("node-015", "temp") == 74
    assert rows.order("node-015", "age") == pytest.approx(0.9)
    assert rows.order("node-019", "util") is None
    assert "rack=r04" in rows.text("node-015")


@pytest.mark.parametrize("width", [40, 56, 76, 116, 200])
@pytest.mark.parametrize("height", [1, 4, 9, 20])
def test_the_detail_fits_its_panel(fleet: FleetState, width: int, height: int) -> None:
    for view in fleet.nodes.values():
        lines = nodes.panel_lines(fleet, view, width, height, NOW)
        assert len(lines) <= height


def test_gpu_lines_name_their_replica_and_their_fault(fleet: FleetState) -> None:
    lines = [joined(line) for line in nodes.gpu_lines(fleet, fleet.nodes["node-000"], 76, 8)]
    assert "llama-3.3-70b/r1" in lines[0]
    assert "free" in lines[7]
    broken = [joined(line) for line in nodes.gpu_lines(fleet, fleet.nodes["node-007"], 76, 8)]
    assert "▲ Xid 79" in broken[3]
    two = nodes.gpu_lines(fleet, fleet.nodes["node-000"], 116, 4)
    assert len(two) == 4
    assert "gpu4" in joined(two[0])


def test_detail_lines_tell_what_runs_and_what_is_wrong() -> None:
    view = node(
        "n",
        [gpu("n", 0, replica="m-r1"), gpu("n", 1)],
        problems=({"code": "port_taken", "message": "port 20001 is taken", "hint": "stop python (pid 7)"},),
        labels={"rack": "r1"},
    )
    own = replica("m", 1, "n", gpu_indexes=(0,), phase=Phase.LOADING)
    fleet = of(WatchSnapshot(cluster=cluster(), nodes=(view,), replicas=(own,)))
    text = "\n".join(joined(line) for line in nodes.detail_lines(fleet, view, NOW))
    for words in ("m/r1 (gpu0) loading", "free gpu1", "disk 71%", "heartbeat 0.9s ago", "clock +3 ms", "rack=r1"):
        assert words in text
    assert "● port 20001 is taken → stop python (pid 7)" in text


# ----------------------------------------------------------------------------------------------------------- models


def test_the_tree(fleet: FleetState) -> None:
    rows = models.rows(fleet, NOW, wall=WALL)
    by_id = {row.id: row for row in rows}
    head = by_id["deployment/deepseek-v3.2"]
    assert texts(head)[0] == "deepseek-v3.2"
    assert texts(head)[3:7] == ["4/4 ready", "96%", "177", "13"]
    child = by_id["replica/deepseek-v3.2-r2"]
    assert child.depth == 1
    assert texts(child)[:4] == ["r2", "", "node-015·0-7", "▲ hot"]
    assert texts(child)[-1] == "3d04h"
    failed = by_id["replica/glm-4.6-r3"]
    assert texts(failed)[4:11] == [UNKNOWN] * 7
    assert all(len(row.cells) == len(models.COLUMNS) for row in rows)


def test_replicas_are_in_the_order_of_their_numbers() -> None:
    own = tuple(replica("m", ordinal, "n") for ordinal in (10, 2, 1))
    rows = models.rows(
        of(WatchSnapshot(cluster=cluster(), deployments=(deployment("m", 3, 3),), replicas=own)), NOW, wall=WALL
    )
    assert [row.id for row in rows][1:] == ["replica/m-r1", "replica/m-r2", "replica/m-r10"]


def test_engines_started_by_hand_have_their_own_group() -> None:
    lone = replica("found", 1, "n", id="pid-1234", model="mine", managed=False)
    rows = models.rows(of(WatchSnapshot(cluster=cluster(), replicas=(lone,))), NOW, wall=WALL)
    assert [row.id for row in rows] == ["deployment/found", "replica/pid-1234"]
    assert texts(rows[0])[:3:2] == ["mine", "found, not managed"]
    assert texts(rows[1])[1] == "unmanaged"


def test_latency_is_of_the_proxies_and_else_of_the_worst_engine() -> None:
    own = (
        replica("m", 1, "n", sample=sample(0.1, 1, 0, 10, 0.5)),
        replica("m", 2, "n", sample=sample(0.1, 1, 0, 10, 0.9)),
    )
    measured = of(
        WatchSnapshot(
            cluster=cluster(), deployments=(deployment("m", 2, 2, traffic=traffic("m", 20, 0.3)),), replicas=own
        )
    )
    assert texts(models.rows(measured, NOW, wall=WALL)[0])[8] == "300ms"
    unmeasured = of(WatchSnapshot(cluster=cluster(), deployments=(deployment("m", 2, 2),), replicas=own))
    assert texts(models.rows(unmeasured, NOW, wall=WALL)[0])[8] == "900ms"


def test_a_silent_node_makes_its_replicas_stale(fleet: FleetState) -> None:
    rows = {row.id: row for row in models.rows(fleet, NOW, wall=WALL)}
    on_lost = next(one for one in fleet.replicas.values() if one.node == "node-019")
    assert rows[f"replica/{on_lost.id}"].stale
    assert not rows["replica/deepseek-v3.2-r1"].stale
    assert all(row.stale for row in models.rows(fleet, NOW + 60, wall=WALL))


def test_words_about_one_replica_and_one_deployment(fleet: FleetState) -> None:
    words = "\n".join(joined(line) for line in models.replica_lines(fleet, fleet.replicas["glm-4.6-r3"], NOW))
    for part in ("▲ failed for 12s: exit 1", "restarts 3", "RuntimeError: CUDA error"):
        assert part in words
    words = "\n".join(joined(line) for line in models.deployment_lines(fleet, fleet.deployments["glm-4.6"]))
    for part in ("2/3 ready", "zai-org/GLM-4.6-FP8", "max-model-len=131072", "● r3 failed"):
        assert part in words


# --------------------------------------------------------------------------------------------------------- overview


def test_totals_leave_out_what_is_not_heard(fleet: FleetState) -> None:
    sums = overview.totals(fleet)
    assert (sums.nodes, sums.ready, sums.draining, sums.cordoned, sums.suspect, sums.lost) == (60, 56, 1, 1, 1, 1)
    assert sums.gpus == 480
    assert sums.kv == pytest.approx(0.96)
    assert {line.key: line.value for line in overview.fleet_meters(sums)}["replicas"] == "24/27"


def test_an_empty_fleet_is_all_unknown() -> None:
    fleet = of(WatchSnapshot(cluster=cluster(proxies=())))
    sums = overview.totals(fleet)
    assert (sums.util, sums.vram, sums.watts, sums.kv) == (None, None, None, None)
    shown = {line.key: line.value for line in overview.fleet_meters(sums)}
    assert shown["util"] == UNKNOWN
    assert shown["power"] == "– W"
    assert overview.out_note(fleet) == "out –"
    assert {line.value for line in overview.latency_meters(fleet)} == {UNKNOWN}


def test_heat_is_grouped_by_rack_and_shows_marks(fleet: FleetState) -> None:
    groups = dict(overview.heat_groups(fleet))
    assert next(iter(groups)) == "r01"
    cells = {one.id: one.glyphs for one in (heat for blocks in groups.values() for heat in blocks)}
    assert cells["node-019"] == "▲" * 8
    assert cells["node-023"] == "~" * 8
    assert cells["node-031"] == "‖" * 8
    assert cells["node-007"][3] == "▲"


def test_heat_without_labels_is_cut_into_lines() -> None:
    bare = tuple(node(f"n-{place:02d}", [gpu(f"n-{place:02d}", 0)]) for place in range(25))
    groups = overview.heat_groups(of(WatchSnapshot(cluster=cluster(), nodes=bare)), per_line=10)
    assert [(label, len(blocks)) for label, blocks in groups] == [("n-00", 10), ("n-10", 10), ("n-20", 5)]


def test_a_small_fleet_lists_its_gpus() -> None:
    rows = overview.gpu_rows(of(small_fleet()), NOW)
    assert [row.id for row in rows][:2] == ["sim-a/0", "sim-a/1"]
    assert "demo/r1" in texts(rows[0])
    assert "free" in texts(rows[1])


def test_the_strip_carries_glyphs_for_what_is_wrong(fleet: FleetState) -> None:
    line = joined(overview.strip_line(fleet, overview.totals(fleet)))
    assert line.startswith("▲ nodes 56/60 ▏● replicas 24/27 ▏GPU ")


def test_watts() -> None:
    assert overview.watts(684.0) == "684 W"
    assert overview.watts(447_000.0) == "447.0 kW"
    assert overview.watts(None) == "– W"


# ---------------------------------------------------------------------------------------------------------- trouble


def test_troubles_come_worst_first_with_a_key_each(fleet: FleetState) -> None:
    found = trouble.troubles(fleet, NOW)
    severities = [one.severity for one in found]
    assert severities == sorted(severities, key=[Severity.CRIT, Severity.WARN, Severity.INFO].index)
    told = {one.label: (one.what, one.key) for one in found}
    assert told["deepseek-v3.2/r2"] == ("KV 96%, 9 waiting, TTFT p95 3780ms", "s: scale")
    assert told["node-007 gpu3"] == ("Xid 79: GPU has fallen off the bus", "c: cordon")
    assert told["node-019"][0].startswith("silent 48s; 1 replica on it")
    assert told["node-044"] == ("disk 93%, 490 GiB left", "⏎: node")
    assert told["qwen3-vl-8b"][0] == "3/4 ready: r4 loading 41s"
    assert "clock is +1.8s off" in told["node-012"][0]
    assert trouble.counts(found) == (4, 4)
    rows = trouble.rows(found)
    assert len({row.id for row in rows}) == len(found)


def test_a_healthy_cluster_has_none() -> None:
    assert trouble.troubles(of(small_fleet()), NOW) == []


def test_trouble_of_the_cluster_itself() -> None:
    down = cluster(store_reachable=False, brake="most nodes vanished at once", proxies=(), leader=None)
    found = {one.name: one.what for one in trouble.troubles(of(WatchSnapshot(cluster=down)), NOW)}
    assert found["brake"] == "brake: most nodes vanished at once"
    assert "replicas go on serving" in found["store"]
    assert "no request is routed" in found["proxy"]


def test_a_drain_tells_how_far_it_is() -> None:
    view = node("n", draining=True)
    busy = of(WatchSnapshot(cluster=cluster(), nodes=(view,), replicas=(replica("m", 1, "n", inflight=14),)))
    assert [one.what for one in trouble.troubles(busy, NOW)] == ["drain: 1 replica left, 14 in flight"]
    empty = of(WatchSnapshot(cluster=cluster(), nodes=(view,)))
    assert [one.what for one in trouble.troubles(empty, NOW)] == ["drained: empty, U brings it back"]


# ------------------------------------------------------------------------------------------------- events and engine


def test_events_are_newest_first(fleet: FleetState) -> None:
    rows = events.rows(fleet)
    assert texts(rows[0]) == [
        "14:22:05",
        "○",
        "route",
        "proxy-2",
        "replica/deepseek-v3.2-r2",
        "spill to r4: kv 96% > 95%",
        "ok",
    ]
    assert texts(events.brief_rows(fleet, 3)[1])[2] == "glm-4.6 2 → 3 replicas, generation 12"
    found = events.find(fleet, rows[0].id)
    assert found is not None
    assert events.target(found) == ("replica", "deepseek-v3.2-r2")


def test_in_flight_of_proxies_beside_the_engines_own(fleet: FleetState) -> None:
    rows = {row.id: texts(row) for row in engine.inflight_rows(fleet, NOW)}
    assert rows["deepseek-v3.2-r2"][3:9] == ["▲ hot", "48", "48", "9", "256", "3780ms"]
    fleet.take_delta(WatchDelta(cluster=cluster(proxies=())), 101.0)
    assert engine.proxy_rows(fleet, 101.0) == []


def test_the_headline_of_an_engine(fleet: FleetState) -> None:
    line = joined(engine.headline(fleet.replicas["deepseek-v3.2-r2"], WALL))
    assert line == " models › deepseek-v3.2 › r2   ▲ hot · node-015 gpu0-7 · sglang 0.25.0 · up 3d04h · :20012"


def test_whose_a_gpus_memory_is_stands_below_it():
    from nebula_core.records.sample import GpuProcess, GpuSample
    from nebula_tui.presenters.nodes import _memory_words

    gib = 1024**3
    sample = GpuSample(
        gpu="g",
        index=0,
        processes=(
            GpuProcess(pid=1, name="vllm", memory_used_bytes=40 * gib, replica="chat-r1"),
            GpuProcess(pid=2, name="python", memory_used_bytes=12 * gib, user="ana", container="trainer"),
            GpuProcess(pid=3, name="VLLM::Worker", memory_used_bytes=8 * gib, orphan=True),
        ),
        memory_unexplained_bytes=5 * gib,
        throttle_reasons=("power_cap",),
        xid=31,
    )
    assert [text for text, _ in _memory_words(sample)] == [
        "pid 1 vllm 40.0 GiB chat/r1",
        "pid 2 python 12.0 GiB of ana, container trainer",
        "pid 3 VLLM::Worker 8.0 GiB an orphan of ours",
        "5.0 GiB are held by nobody named",
        "slowed by power_cap",
        "Xid 31 in this boot",
    ]
