"""Where a replica goes, and the sentence that says why it does not."""

from dataclasses import replace

import pytest

from nebula_core.planning.index import build_index
from nebula_core.planning.place import Placed, Rejected, Request, place
from nebula_core.planning.policy import PlanPolicy
from nebula_core.planning.rooms import build_rooms
from nebula_core.records.base import frozen_map
from nebula_core.records.node import DrainIntent, Node, NodeIntent
from nebula_core.records.replica import Phase
from nebula_core.records.sample import GpuProcess, GpuSample
from nebula_core.records.snapshot import ClusterSnapshot
from tests.support.cluster_model import GIB, ClusterModel, make_deployment, make_node
from tests.support.records import a_placement, a_report, a_status


def cluster(*nodes: Node, now: float = 100.0, **parts: object) -> ClusterSnapshot:
    view = ClusterSnapshot(nodes=frozen_map({node.name: node for node in nodes}), **parts)  # type: ignore[arg-type]
    return view.with_reports([a_report(node.name) for node in nodes], at=now)


def ask(view: ClusterSnapshot, *, now: float = 100.0, neighbours: dict[str, int] | None = None, **spec: object):
    rooms = build_rooms(build_index(view, PlanPolicy(), now))
    return place(Request("chat", make_deployment(**spec).spec, neighbours or {}), rooms)  # type: ignore[arg-type]


def only_reason(view: ClusterSnapshot, *, now: float = 100.0, **spec: object) -> str:
    found = ask(view, now=now, **spec)
    assert isinstance(found, Rejected)
    (verdict,) = found.verdicts
    assert not verdict.fits
    return verdict.reason


def holding(node: str, *gpus: int, replica: str = "other-r1") -> dict[str, object]:
    taken = a_placement(replica, node, deployment="other", gpus=tuple(f"sim-{node}-{index}" for index in gpus))
    return {"placements": frozen_map({replica: taken})}


def test_spread_prefers_the_node_with_fewest_of_the_same():
    found = ask(cluster(make_node("n1"), make_node("n2")), neighbours={"n1": 1})
    assert isinstance(found, Placed)
    assert found.node == "n2"


def test_without_spread_the_fullest_node_that_fits_is_filled():
    view = cluster(make_node("n1"), make_node("n2"), **holding("n2", 0, 1))
    found = ask(view, neighbours={"n2": 1}, placement={"spread": False}, gpus=2)
    assert isinstance(found, Placed)
    assert (found.node, found.indexes) == ("n2", (2, 3))


def test_among_equals_large_blocks_stay_whole():
    view = cluster(make_node("n1", 8), make_node("n2", 2))
    found = ask(view, gpus=2)
    assert isinstance(found, Placed)
    assert found.node == "n2"


def test_gpus_stand_side_by_side_where_they_can():
    view = cluster(make_node("n1", 8), **holding("n1", 1, 3))
    found = ask(view, gpus=2)
    assert isinstance(found, Placed)
    assert found.indexes == (4, 5)
    single = ask(view, gpus=1)
    assert isinstance(single, Placed)
    assert single.indexes == (0,), "the smallest hole that does"


def test_gpus_apart_are_better_than_none():
    found = ask(cluster(make_node("n1", 4), **holding("n1", 1, 2)), gpus=2)
    assert isinstance(found, Placed)
    assert found.indexes == (0, 3)


def test_labels_are_asked_for():
    view = cluster(make_node("n1"), make_node("n2", labels={"pool": "a"}))
    found = ask(view, placement={"labels": {"pool": "a"}})
    assert isinstance(found, Placed)
    assert found.node == "n2"
    assert only_reason(cluster(make_node("n1")), placement={"labels": {"pool": "a"}}) == "has no label pool=a"


@pytest.mark.parametrize(
    ("intent", "reason"),
    [
        (NodeIntent(node="n1", cordoned=True, by="ops"), "cordoned by ops"),
        (NodeIntent(node="n1", drain=DrainIntent(by="li", since=0.0)), "draining, by li"),
    ],
)
def test_a_closed_node_takes_nothing(intent: NodeIntent, reason: str):
    view = cluster(make_node("n1"), intents=frozen_map({"n1": intent}))
    assert only_reason(view) == reason


def test_a_silent_node_takes_nothing():
    assert only_reason(cluster(make_node("n1")), now=103.0) == "suspect: silent for 3 s"
    assert only_reason(cluster(make_node("n1")), now=130.0) == "lost: silent for 30 s"
    assert only_reason(ClusterSnapshot(nodes=frozen_map({"n1": make_node("n1")}))) == "has not reported yet"


def test_engines_and_runtimes():
    node = make_node("n1", engines=("simulated", "llamacpp"), runtimes=("process",))
    assert only_reason(cluster(node), engine="vllm") == "cannot run vllm (runs simulated, llamacpp)"
    assert only_reason(cluster(node), runtime="docker") == "has no runtime docker (has process)"
    with_docker = make_node("n1", engines=(), runtimes=("docker",))
    assert isinstance(ask(cluster(with_docker), engine="vllm"), Placed)
    assert only_reason(cluster(with_docker), engine="simulated") == "cannot run simulated (runs no engine)"


def test_too_few_and_taken_gpus_are_named():
    assert only_reason(cluster(make_node("n1", 0))) == "has no GPU"
    assert only_reason(cluster(make_node("n1", 1)), gpus=2) == "has 1 GPU"
    view = cluster(make_node("n1", 2), **holding("n1", 0))
    assert only_reason(view, gpus=2) == "1 of 2 GPUs free (held: other-r1)"
    cordoned = NodeIntent(node="n1", cordoned_gpus=("sim-n1-1",))
    view = replace(view, intents=frozen_map({"n1": cordoned}))
    assert only_reason(view, gpus=1) == "0 of 1 GPUs free (held: cordoned, other-r1)"


def test_a_gpu_reported_in_use_is_taken_without_a_placement():
    unmanaged = a_status("vllm-8000", managed=False, gpus=("sim-n1-0",))
    stopped = a_status("chat-r9", phase=Phase.STOPPED, gpus=("sim-n1-1",))
    view = cluster(make_node("n1", 2)).with_reports([a_report(sequence=2, replicas=(unmanaged, stopped))], at=100.0)
    found = ask(view, gpus=1)
    assert isinstance(found, Placed)
    assert found.indexes == (1,)
    assert only_reason(view, gpus=2) == "1 of 2 GPUs free (held: vllm-8000)"


def test_a_faulty_gpu_is_never_used():
    sample = GpuSample(gpu="sim-n1-0", index=0, fault="Xid 79: fell off the bus")
    view = cluster(make_node("n1", 1)).with_reports([a_report(sequence=2, gpus=(sample,))], at=100.0)
    assert only_reason(view) == "0 of 1 GPUs free (held: Xid 79: fell off the bus)"


def used(index: int, gib: float, *processes: GpuProcess) -> GpuSample:
    return GpuSample(
        gpu=f"sim-n1-{index}",
        index=index,
        memory_total_bytes=80 * GIB,
        memory_used_bytes=int(gib * GIB),
        processes=processes,
    )


def test_a_foreign_process_keeps_a_gpu_and_is_named():
    orphan = GpuProcess(pid=4711, name="VLLM::EngineCore", memory_used_bytes=78 * GIB)
    view = cluster(make_node("n1", 1)).with_reports([a_report(sequence=2, gpus=(used(0, 78.0, orphan),))], at=100.0)
    assert only_reason(view) == "gpu 0 has 78.0 GiB in use by pid 4711 VLLM::EngineCore"


def test_a_display_does_not_keep_a_gpu():
    view = cluster(make_node("n1", 1)).with_reports([a_report(sequence=2, gpus=(used(0, 1.5),))], at=100.0)
    assert isinstance(ask(view), Placed)


def test_memory_asked_for_is_measured_on_the_device():
    view = cluster(make_node("n1", 2)).with_reports(
        [a_report(sequence=2, gpus=(used(0, 49.0), used(1, 10.0)))], at=100.0
    )
    found = ask(view, gpu_memory_bytes=40 * GIB)
    assert isinstance(found, Placed)
    assert found.indexes == (1,)
    rejected = ask(view, gpus=2, gpu_memory_bytes=40 * GIB)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == (
        "needs 2 × 40.0 GiB; nearest is n1: 1 of 2 GPUs have 40.0 GiB free; the best free one has 70.0 GiB"
    )


def test_unknown_memory_is_not_enough_memory():
    node = make_node("n1", 1)
    gpu = node.gpus[0].model_copy(update={"memory_total_bytes": None})
    view = cluster(node.model_copy(update={"gpus": (gpu,)}))
    assert isinstance(ask(view), Placed)
    assert only_reason(view, gpu_memory_bytes=GIB) == "0 of 1 GPUs have 1.0 GiB free; none is free"


def test_engines_without_a_gpu_have_slots():
    model = ClusterModel([make_node("n1", 0, cpu_slots=2)])
    model.deploy(make_deployment("embed", 3, gpus=0))
    model.settle()
    assert len(model.ready("embed")) == 2
    assert model.plan().unplaceable[0].verdicts[0].reason == "no CPU slot free, 2 of 2 used"


def test_an_external_engine_needs_no_gpu():
    assert isinstance(
        ask(cluster(make_node("n1", 0, engines=())), engine="external", source="http://10.0.0.1:8000"), Placed
    )


def test_verdicts_name_the_nearest_twenty_first_those_that_are_merely_full():
    names = [f"n{number:02}" for number in range(25)]
    full = {
        f"other-r{number}": a_placement(f"other-r{number}", name, gpus=(f"sim-{name}-0", f"sim-{name}-1"))
        for number, name in enumerate(names)
    }
    view = cluster(*(make_node(name, 2) for name in names), make_node("aa", 1), placements=frozen_map(full))
    found = ask(view, gpus=2)
    assert isinstance(found, Rejected)
    assert [verdict.node for verdict in found.verdicts] == names[:20]


def test_no_node_at_all():
    found = ask(ClusterSnapshot())
    assert found == Rejected("needs 1 GPU; there is no node", ())
