"""Joins of the snapshot, case by case; no store, no clock."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.records.base import frozen_map
from nebula_core.records.engine_health import EngineHealth, MetricsSchema
from nebula_core.records.found import FoundEngine
from nebula_core.records.node import DrainIntent, Gpu, Node, NodeIntent
from nebula_core.records.placement import Wanted
from nebula_core.records.plan import Bucket, Plan, PlanEntry, Unplaceable
from nebula_core.records.replica import EndpointAddress, Phase, ReplicaStatus
from nebula_core.records.report import ModelTraffic, Problem
from nebula_core.records.sample import EngineSample, GpuSample, HostSample
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.records.views import ReplicaView
from nebula_proxy.control.views import Look, Process, in_steps, traffic_of
from tests.support.cluster_model import make_deployment, make_node
from tests.support.records import a_placement, a_proxy_report, a_report, a_status

NOW = 100.0


def snapshot(**parts: object) -> ClusterSnapshot:
    values = {name: frozen_map(value) for name, value in parts.items() if isinstance(value, dict)}
    return replace(ClusterSnapshot(incarnation="i"), nodes=frozen_map({"n1": make_node("n1", 2)}), **values)  # type: ignore[arg-type]


def placed(**changes: object) -> dict[str, object]:
    return {"chat-r1": a_placement(gpus=("sim-n1-1",), **changes)}


def test_a_decision_its_agent_has_not_answered_is_pending() -> None:
    view = snapshot(placements=placed()).with_reports([a_report()], at=NOW)
    [replica] = Look(view, NOW).replicas.values()
    assert (replica.phase, replica.wanted, replica.gpu_indexes) == (Phase.PENDING, "run", (1,))
    assert "agent" in (replica.phase_reason or "")
    assert [gpu.replica for gpu in Look(view, NOW).nodes["n1"].gpus] == [None, "chat-r1"]


@pytest.mark.parametrize(
    ("wanted", "phase"), [(Wanted.RUN, Phase.PENDING), (Wanted.DRAIN, Phase.DRAINING), (Wanted.STOP, Phase.STOPPED)]
)
def test_what_is_not_reported_goes_by_what_is_wanted(wanted: Wanted, phase: Phase) -> None:
    view = snapshot(placements=placed(wanted=wanted)).with_reports([a_report()], at=NOW)
    assert Look(view, NOW).replicas["chat-r1"].phase is phase


def test_replicas_of_a_silent_node_are_lost_and_say_what_they_were() -> None:
    view = snapshot(placements=placed()).with_reports([a_report(replicas=(a_status(),))], at=NOW)
    for seconds, state, phase in ((0, "ready", Phase.READY), (5, "suspect", Phase.READY), (11, "lost", Phase.LOST)):
        look = Look(view, NOW + seconds)
        assert look.nodes["n1"].state == state
        assert look.replicas["chat-r1"].phase is phase
        assert look.nodes["n1"].heartbeat_age_seconds == seconds
    assert "it was ready" in (look.replicas["chat-r1"].phase_reason or "")


def test_a_node_never_heard_of_is_lost_without_an_age() -> None:
    node = Look(snapshot(), NOW).nodes["n1"]
    assert (node.state, node.heartbeat_age_seconds, node.agent_pid) == ("lost", None, None)


def test_a_forgotten_node_is_gone_but_one_that_reports_is_seen() -> None:
    view = snapshot().with_reports([a_report("n9", gpus=(GpuSample(gpu="g", index=3),))], at=NOW)
    assert set(Look(view, NOW).nodes) == {"n1", "n9"}
    [gpu] = Look(view, NOW).nodes["n9"].gpus
    assert (gpu.id, gpu.index) == ("g", 3)
    assert set(Look(view, NOW + 60).nodes) == {"n1"}


def test_the_node_of_the_placement_speaks_for_a_replica() -> None:
    view = snapshot(placements=placed()).with_reports(
        [a_report("n1", replicas=(a_status(pid=1),)), a_report("n2", replicas=(a_status(node="n2", pid=2),))], at=NOW
    )
    assert Look(view, NOW).replicas["chat-r1"].pid == 1
    elsewhere = snapshot(placements=placed()).with_reports(
        [a_report("n1"), a_report("n2", replicas=(a_status(node="n2", pid=2),))], at=NOW
    )
    assert Look(elsewhere, NOW).replicas["chat-r1"].phase is Phase.PENDING


def test_intents_are_shown() -> None:
    intent = NodeIntent(
        node="n1", cordoned=True, cordoned_gpus=("sim-n1-0",), drain=DrainIntent(by="li", since=1.0, reason="fan")
    )
    node = Look(snapshot(intents={"n1": intent}), NOW).nodes["n1"]
    assert (node.cordoned, node.draining, node.drain) == (True, True, intent.drain)
    assert [gpu.cordoned for gpu in node.gpus] == [True, False]


def test_what_proxies_say_is_added_up() -> None:
    reports = [
        a_proxy_report("p1", inflight={"chat-r1": 3}, ejected={"chat-r1": "refused"}),
        a_proxy_report("p2", inflight={"chat-r1": 4, "gone-r1": 1}),
    ]
    view = snapshot(placements=placed()).with_reports([a_report(replicas=(a_status(),))], reports, at=NOW)
    look = Look(view, NOW)
    assert look.replicas["chat-r1"].inflight == 7
    assert look.replicas["chat-r1"].ejected == {"p1": "refused"}
    assert [(proxy.id, proxy.inflight) for proxy in look.cluster().proxies] == [("p1", 3), ("p2", 5)]


def test_traffic_adds_rates_and_keeps_the_worst_quantile() -> None:
    parts = [
        ModelTraffic(model="m", requests_per_second=1.0, ttft_p95_seconds=0.2, waiting=1),
        ModelTraffic(model="m", requests_per_second=2.5, ttft_p95_seconds=0.9, waiting=2),
        ModelTraffic(model="m"),
    ]
    whole = traffic_of("m", parts)
    assert (whole.requests_per_second, whole.ttft_p95_seconds, whole.waiting) == (3.5, 0.9, 3)
    assert whole.generation_tokens_per_second is None


@pytest.mark.parametrize(
    ("wanted", "statuses", "plan", "said"),
    [
        (1, [], Plan(), "waiting for 1"),
        (1, [("chat-r1", Phase.READY)], Plan(), "ready"),
        (2, [("chat-r1", Phase.READY), ("chat-r2", Phase.LOADING)], Plan(), "starting 1"),
        (1, [("chat-r1", Phase.FAILED)], Plan(), "failed: boom"),
        (1, [], Plan(unplaceable=(Unplaceable(deployment="chat", count=1, reason="no room"),)), "blocked: no room"),
        (1, [], Plan(unplaceable=(Unplaceable(deployment="other", count=1, reason="no room"),)), "waiting for 1"),
        (1, [], Plan(brake="two nodes fell silent"), "held: two nodes fell silent"),
        (0, [], Plan(), "stopped"),
        (
            1,
            [("chat-r1", Phase.READY)],
            Plan(entries=(PlanEntry(bucket=Bucket.MOVING, deployment="chat", replica="chat-r1", reason="x"),)),
            "ready, replacing 1",
        ),
    ],
)
def test_the_state_of_a_deployment_in_one_line(
    wanted: int, statuses: list[tuple[str, Phase]], plan: Plan, said: str
) -> None:
    reported = tuple(a_status(name, phase=phase, phase_reason="boom") for name, phase in statuses)
    view = snapshot(
        deployments={"chat": make_deployment("chat", wanted)},
        placements={name: a_placement(name) for name, _ in statuses},
    ).with_reports([a_report(replicas=reported)], at=NOW)
    deployment = Look(view, NOW, plan=plan).deployments["chat"]
    assert deployment.status == said
    assert bool(deployment.reasons) == said.startswith(("blocked", "failed"))


def test_a_draining_replica_does_not_count_as_ready() -> None:
    view = snapshot(
        deployments={"chat": make_deployment("chat", 0)}, placements=placed(wanted=Wanted.DRAIN)
    ).with_reports([a_report(replicas=(a_status(),))], at=NOW)
    deployment = Look(view, NOW).deployments["chat"]
    assert (deployment.replicas_ready, deployment.status) == (0, "stopping 1")


def test_clock_skew_and_process_come_from_outside() -> None:
    process = Process(leader=("a", 3), snapshot_age_seconds=4.2, store_reachable=False, clock_skews={"n1": 1.8})
    look = Look(snapshot(), NOW, process=process)
    assert look.nodes["n1"].clock_skew_seconds == 1.8
    cluster = look.cluster()
    assert (cluster.leader, cluster.epoch, cluster.store_reachable, cluster.snapshot_age_seconds) == (
        "a",
        3,
        False,
        4.2,
    )


def test_everything_said_of_a_replica_is_shown() -> None:
    said = ReplicaStatus(
        id="chat-r1",
        deployment="chat",
        model="m",
        node="n1",
        gpus=("sim-n1-1",),
        engine="vllm",
        engine_version="0.25",
        runtime="docker",
        image="img",
        phase=Phase.READY,
        phase_reason="because",
        phase_seconds=7.0,
        generation=4,
        endpoint=EndpointAddress(host="h", port=1),
        pid=9,
        container_id="c",
        started_at=3.0,
        restarts=2,
        managed=False,
        found=FoundEngine(served_models=("m",)),
        simulated=True,
        load_seconds=5.0,
        sample=EngineSample(requests_running=1),
        sample_age_seconds=0.5,
        failure_log=("line",),
        first_failure_reason="at first",
        first_failure_log=("first line",),
        evidence="/data/evidence/chat-r1.txt",
        health=EngineHealth(alive=True),
        metrics_schema=MetricsSchema(expected=3, found=3),
    )
    look = Look(snapshot().with_reports([a_report(replicas=(said,))], at=NOW), NOW)
    shown = look.replicas["chat-r1"]
    for name in ReplicaView.model_fields.keys() & ReplicaStatus.model_fields.keys():
        assert getattr(said, name) != ReplicaStatus.model_fields[name].default, f"{name} is not tried"
        assert getattr(shown, name) == getattr(said, name), name


def test_everything_known_of_a_node_is_shown() -> None:
    node = Node(
        name="n1",
        boot_id="b",
        version="1",
        hostname="host",
        address="10.0.0.1",
        gpus=(Gpu(id="g", index=3, name="H200", memory_total_bytes=7, simulated=True),),
        labels={"pool": "a"},
        driver_version="580",
        engines=("vllm",),
        runtimes=("docker",),
        simulated=True,
    )
    problem = Problem(code="x", message="y")
    said = a_report(host=HostSample(cpu_ratio=0.5), gpus=(GpuSample(gpu="g", index=3),), problems=(problem,))
    view = replace(snapshot(), nodes=frozen_map({"n1": node})).with_reports([said], at=NOW)
    shown = Look(view, NOW).nodes["n1"]
    for name in ("hostname", "address", "labels", "driver_version", "engines", "runtimes", "simulated"):
        assert getattr(shown, name) == getattr(node, name), name
    assert (shown.agent_pid, shown.version, shown.host, shown.problems) == (100, "0", said.host, (problem,))
    [gpu] = shown.gpus
    for name in ("id", "index", "name", "memory_total_bytes", "simulated"):
        assert getattr(gpu, name) == getattr(node.gpus[0], name), name
    assert gpu.sample == said.gpus[0]


def test_views_are_what_validation_would_have_made_of_them() -> None:
    """They are put together unvalidated, for speed: each field has its name and type all the same."""
    sampled = a_report(replicas=(a_status(gpus=("sim-n1-0",)),), gpus=(GpuSample(gpu="sim-n1-0", index=0),))
    view = snapshot(
        placements={**placed(), "chat-r2": a_placement("chat-r2")}, intents={"n1": NodeIntent(node="n1")}
    ).with_reports([sampled, a_report("n9")], [a_proxy_report()], at=NOW)
    look = Look(view, NOW)
    for made in (*look.nodes.values(), *look.replicas.values(), look.cluster()):
        assert made == type(made).model_validate(made.model_dump())
        assert made.__dict__.keys() == type(made).model_fields.keys()
        assert made == type(made).from_json(made.to_json())
        for gpu in getattr(made, "gpus", ()):
            assert isinstance(gpu, str) or gpu.__dict__.keys() == type(gpu).model_fields.keys()


@given(st.floats(0, 10**7))
def test_steps_of_an_age_never_overstate_it_nor_lag_far(age: float) -> None:
    shown = in_steps(age)
    assert 0 <= shown <= age
    assert age - shown <= max(3.0, age / 5.9)


@given(st.floats(0, 10**6), st.floats(0, 10**6))
def test_steps_keep_the_order(one: float, two: float) -> None:
    low, high = sorted((one, two))
    assert in_steps(low) <= in_steps(high)
