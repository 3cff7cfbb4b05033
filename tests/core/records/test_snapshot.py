"""The laws of the snapshot: order and batching of steps do not matter, nothing is edited, silence is judged alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.records.access import ApiKey, Role
from nebula_core.records.compact import NodeDelta, ReplicaDelta
from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.event import Change, ChangeKind
from nebula_core.records.node import Node, NodeIntent
from nebula_core.records.placement import SignedPlacement
from nebula_core.records.replica import Phase
from nebula_core.records.sample import EngineSample, GpuSample
from nebula_core.records.snapshot import ClusterSnapshot, NodeState, fold
from tests.support.records import a_placement, a_proxy_report, a_report, a_status

NAMES = st.sampled_from(["a", "b", "c"])


def value(kind: ChangeKind, name: str, number: int) -> str:
    match kind:
        case ChangeKind.DEPLOYMENT:
            return Deployment(name=name, generation=number, spec=DeploymentSpec(source="m", replicas=number)).to_json()
        case ChangeKind.NODE:
            return Node(name=name, boot_id=str(number), version="0", hostname=name, address="10.0.0.1").to_json()
        case ChangeKind.INTENT:
            return NodeIntent(node=name, generation=number).to_json()
        case ChangeKind.PLACEMENT:
            placement = a_placement(name, epoch=number)
            return SignedPlacement(payload=placement.to_json(), key_id="k", signature="s").to_json()
        case ChangeKind.KEY:
            return ApiKey(
                id=name, name=name, role=Role.VIEWER, secret_sha256=str(number), created_at=1, created_by="x"
            ).to_json()


@st.composite
def histories(draw: st.DrawFn) -> list[Change]:
    steps = draw(st.lists(st.tuples(st.sampled_from(ChangeKind), NAMES, st.integers(0, 4)), max_size=30))
    return [
        Change(revision=revision, kind=kind, id=name, value=value(kind, name, number) if number else None)
        for revision, (kind, name, number) in enumerate(steps, 1)
    ]


@given(histories(), st.lists(st.integers(0, 30), max_size=5))
def test_batches_do_not_matter(changes: list[Change], cuts: list[int]) -> None:
    whole = ClusterSnapshot().with_changes(changes)
    stepwise = ClusterSnapshot()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(changes)], strict=True):
        stepwise = stepwise.with_changes(changes[start:end])
    assert stepwise == whole
    assert whole.revision == len(changes)


@given(histories())
def test_the_last_word_on_each_record_counts(changes: list[Change]) -> None:
    whole = ClusterSnapshot().with_changes(changes)
    last = {(change.kind, change.id): change for change in changes}
    assert whole == ClusterSnapshot().with_changes(
        sorted(last.values(), key=lambda change: change.revision)
    ).with_changes([Change(revision=len(changes), kind=ChangeKind.NODE, id="nobody")] if changes else [])
    present = sum(len(part) for part in (whole.deployments, whole.nodes, whole.intents, whole.placements, whole.keys))
    assert present == sum(change.value is not None for change in last.values())


@given(histories(), histories())
def test_a_step_edits_nothing(first: list[Change], second: list[Change]) -> None:
    before = ClusterSnapshot().with_changes(first)
    copy = ClusterSnapshot().with_changes(first)
    before.with_changes(second)
    before.with_reports([a_report()], [a_proxy_report()], at=1.0)
    before.forgiving(5.0)
    assert before == copy
    with pytest.raises(TypeError):
        before.deployments["x"] = None  # type: ignore[index]


def test_a_broken_record_is_an_error_of_its_own() -> None:
    with pytest.raises(ValueError, match="generation"):
        ClusterSnapshot().with_changes(
            [Change(revision=1, kind=ChangeKind.DEPLOYMENT, id="x", value='{"name":"x","spec":{"source":"m"}}')]
        )


@given(st.lists(st.integers(1, 40), max_size=40))
def test_figures_only_go_forward(sequences: list[int]) -> None:
    snapshot = ClusterSnapshot().with_reports([a_report(sequence=10)], at=0.0)
    highest = 10
    for number, sequence in enumerate(sequences, 1):
        snapshot = snapshot.with_deltas([NodeDelta(node="n1", sequence=sequence, cpu=sequence / 100)], at=float(number))
        if sequence > highest:
            highest = sequence
            assert snapshot.reports["n1"].at == number
    assert snapshot.reports["n1"].sequence == highest
    if highest > 10:
        assert snapshot.reports["n1"].report.host.cpu_ratio == highest / 100


def test_a_restarted_agent_is_not_taken_for_an_old_report() -> None:
    first = a_report(sequence=500, at=5_000.0)
    snapshot = ClusterSnapshot().with_reports([first], at=1.0)
    # A report from before, read again after a resync.
    assert snapshot.with_reports([a_report(sequence=400, at=4_900.0)], at=2.0) == snapshot
    for restarted in (
        a_report(sequence=1, at=5_001.0),
        a_report(sequence=1, at=4_000.0, agent_pid=101),
        a_report(sequence=1, at=4_000.0, boot_id="boot-2"),
    ):
        assert snapshot.with_reports([restarted], at=2.0).reports["n1"].report == restarted


def test_a_restarted_proxy_is_not_taken_for_an_old_report() -> None:
    snapshot = ClusterSnapshot().with_reports((), [a_proxy_report(sequence=50)], at=1.0)
    assert snapshot.with_reports((), [a_proxy_report(sequence=40)], at=2.0) == snapshot
    restarted = a_proxy_report(sequence=1, started_at=901.0)
    assert snapshot.with_reports((), [restarted], at=2.0).proxies["p1"].report == restarted


@given(st.floats(0, 1e6), st.floats(0, 100))
def test_states_follow_from_silence_alone(received: float, silent: float) -> None:
    snapshot = ClusterSnapshot().with_reports([a_report(at=9e9)], at=received)
    now = received + silent
    silent = now - received
    state = snapshot.node_state("n1", now)
    assert state is (NodeState.LOST if silent > 10 else NodeState.SUSPECT if silent > 2 else NodeState.READY)
    assert snapshot.node_state("nobody", now) is NodeState.LOST
    assert snapshot.heartbeat_age("nobody", now) is None


@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_forgiven_seconds_are_not_counted(now: float, deaf: float) -> None:
    snapshot = ClusterSnapshot().with_reports([a_report()], [a_proxy_report()], at=0.0)
    before = snapshot.heartbeat_age("n1", now)
    after = snapshot.forgiving(deaf).heartbeat_age("n1", now + deaf)
    assert after == pytest.approx(before, abs=1e-6)
    assert snapshot.forgiving(deaf).proxies["p1"].at == deaf


def test_silent_proxies_go_and_silent_nodes_stay() -> None:
    snapshot = ClusterSnapshot().with_reports([a_report()], [a_proxy_report("p1")], at=0.0)
    snapshot = snapshot.with_reports((), [a_proxy_report("p2", inflight={"chat-r1": 2})], at=8.0)
    later = snapshot.without_silent(now=12.0)
    assert set(later.proxies) == {"p2"}
    assert set(later.reports) == {"n1"}
    assert later.inflight("chat-r1") == 2
    assert later.without_silent(now=12.0) is later


def test_figures_of_another_set_of_gpus_are_left_out() -> None:
    report = a_report(gpus=(GpuSample(gpu="GPU-1", index=0),), replicas=(a_status(sample=EngineSample()),))
    folded = fold(
        report,
        NodeDelta(
            node="n1",
            sequence=2,
            gpus=((0.5, 1, 2.0, 3.0), (0.6, 1, 2.0, 3.0)),
            replicas=(ReplicaDelta(id="chat-r1", phase="draining", running=1), ReplicaDelta(id="other", phase="ready")),
        ),
    )
    assert folded.gpus == report.gpus
    assert [status.id for status in folded.replicas] == ["chat-r1"]
    assert folded.replicas[0].phase is Phase.DRAINING
    assert folded.replicas[0].phase_seconds == 0.0
    folded = fold(report, NodeDelta(node="n1", sequence=2, gpus=((0.5, None, 60.0, None),)))
    assert folded.gpus[0].utilization_ratio == 0.5
    assert folded.gpus[0].memory_used_bytes is None


def test_of_two_nodes_with_one_replica_the_placed_one_counts() -> None:
    reports = [a_report(node, replicas=(a_status(node=node),)) for node in ("n1", "n2")]
    placed = Change(
        revision=1, kind=ChangeKind.PLACEMENT, id="chat-r1", value=value(ChangeKind.PLACEMENT, "chat-r1", 1)
    )
    for order in (reports, reports[::-1]):
        snapshot = ClusterSnapshot().with_changes([placed]).with_reports(order, at=0.0)
        assert snapshot.replicas()["chat-r1"].node == "n1"
