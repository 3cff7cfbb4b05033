"""Whose the memory of a GPU is, and the words for it."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.decisions.cgroup import Container, container_of
from nebula_agent.decisions.gpu_ledger import ProcessFacts, entered, orphans, stranger, strangers
from nebula_core.records.sample import GpuProcess, GpuSample

GIB = 1024**3


def sample(*processes, used=None, **more):
    return GpuSample(gpu="GPU-1", index=1, memory_used_bytes=used, processes=processes, **more)


def held(pid, gib, **more):
    return GpuProcess(pid=pid, memory_used_bytes=gib * GIB, **more)


def test_every_process_gets_its_owner_and_the_rest_is_unexplained():
    facts = {
        1: ProcessFacts("vllm", "nebula", None, replica="chat-r1"),
        2: ProcessFacts("python", "ana", "trainer"),
        3: ProcessFacts("vllm", "nebula", None, started_for="old-r1"),
    }
    (found,) = entered([sample(held(1, 40), held(2, 12), held(3, 8), used=65 * GIB)], facts.__getitem__)
    assert [(each.replica, each.user, each.container, each.orphan) for each in found.processes] == [
        ("chat-r1", "nebula", None, False),
        (None, "ana", "trainer", False),
        (None, "nebula", None, True),
    ]
    assert found.memory_unexplained_bytes == 5 * GIB
    assert orphans([found]) == {3: ["GPU-1"]}


def test_a_driver_that_does_not_say_what_each_holds_leaves_it_unknown():
    (found,) = entered([sample(GpuProcess(pid=1), used=GIB)], lambda _: ProcessFacts())
    assert found.memory_unexplained_bytes is None


def test_who_fills_a_gpu_is_named():
    foreign = held(4711, 12, name="python", user="ana", container="trainer")
    assert stranger(sample(foreign)) == (
        "12.0 GiB are held by pid 4711 (python, of ana, container trainer), which is none of ours"
    )
    assert "an orphan of ours" in stranger(sample(held(9, 78, orphan=True)))
    assert stranger(sample(held(1, 40, replica="chat-r1"))) is None
    assert stranger(sample(held(2, 1))) is None
    assert strangers([sample(foreign)])["GPU-1"].code == "gpu_held"


def test_memory_that_nobody_holds_is_told_when_no_engine_of_ours_explains_it():
    hidden = sample(used=78 * GIB, memory_unexplained_bytes=78 * GIB)
    assert "78.0 GiB are held by nobody the driver names" in stranger(hidden)
    assert stranger(sample(held(1, 40, replica="chat-r1"), memory_unexplained_bytes=20 * GIB)) is None
    assert stranger(sample(used=GIB, memory_unexplained_bytes=GIB)) is None


@given(
    st.lists(st.tuples(st.integers(1, 99), st.integers(0, 100)), unique_by=lambda pair: pair[0]), st.integers(0, 500)
)
def test_the_parts_never_exceed_the_whole(processes, used):
    listed = tuple(held(pid, gib) for pid, gib in processes)
    (found,) = entered([sample(*listed, used=used * GIB)], lambda _: ProcessFacts())
    explained = sum(gib for _, gib in processes) * GIB
    assert found.memory_unexplained_bytes == max(0, used * GIB - explained)


ID = "0123456789abcdef" * 4


def test_a_container_is_told_from_a_cgroup():
    assert container_of(f"12:pids:/docker/{ID}\n11:memory:/docker/{ID}\n") == Container(ID, "docker")
    assert container_of(f"0::/system.slice/docker-{ID}.scope\n") == Container(ID, "docker")
    assert container_of(f"0::/machine.slice/libpod-{ID}.scope/container\n") == Container(ID, "podman")
    kubernetes = f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-pod1_2.slice/cri-containerd-{ID}.scope"
    assert container_of(kubernetes) == Container(ID, "containerd")
    assert container_of(f"9:cpu:/kubepods/burstable/pod1/{ID}") == Container(ID, "kubernetes")
    other = "f" * 64
    assert container_of(f"0::/docker/{other}/docker/{ID}") == Container(ID, "docker")
    assert container_of("0::/user.slice/user-0.slice/session-1.scope\n") is None
    assert container_of("") is None


@given(st.text())
def test_no_cgroup_is_too_odd(text):
    container_of(text)
