"""Policy, exits, ports, orders, digests, and what a compact record may leave out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.decisions.exits import describe_exit, find_cause
from nebula_agent.decisions.launch_digest import launch_digest
from nebula_agent.decisions.obedience import ORDERS_KEPT, Orders
from nebula_agent.decisions.policy import CODE_ARGS, RESERVED_ARGS, LocalPolicy, why_refused
from nebula_agent.decisions.ports import blocks
from nebula_agent.decisions.reporting import FULL_EVERY_SECONDS, compact, is_full_due
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import Adapter, DeploymentSpec
from nebula_core.records.replica import Phase
from nebula_core.records.report import Problem
from nebula_core.records.sample import EngineSample, GpuSample, HostSample
from nebula_core.records.snapshot import fold
from tests.support.records import a_placement, a_report, a_status


def spec(**changes):
    return DeploymentSpec.model_validate({"source": "Qwen/Qwen2.5-7B", **changes})


# --- the node's policy


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("Qwen/Qwen2.5-7B", True),
        ("Other/Model", False),
        ("/models", True),
        ("/models/a/b", True),
        ("/models-of-others/a", False),
        ("/models/../etc", False),
        ("/etc", False),
        ("./models/a", False),
    ],
)
def test_sources_are_allowed_by_prefix_and_pattern(source, allowed):
    policy = LocalPolicy(sources=("/models/", "Qwen/*"))
    refused = why_refused(policy, a_placement(spec=spec(source=source)))
    assert (refused is None) is allowed
    if refused:
        assert "`sources`" in refused


def test_adapters_are_sources_too():
    adapted = spec(adapters=(Adapter(name="sql", source="/evil"),))
    assert "adapter sql" in why_refused(LocalPolicy(sources=("Qwen/*",)), a_placement(spec=adapted))


@pytest.mark.parametrize("name", sorted(RESERVED_ARGS))
@pytest.mark.parametrize("spelled", [str, lambda name: name.replace("-", "_"), str.upper])
def test_what_the_agent_sets_cannot_be_set_from_afar_however_it_is_spelled(name, spelled):
    refused = why_refused(LocalPolicy(), a_placement(spec=spec(args={spelled(name): "x"})))
    assert "set by the agent" in refused


@pytest.mark.parametrize("name", sorted(CODE_ARGS))
def test_options_that_load_code_need_the_nodes_word(name):
    placement = a_placement(spec=spec(args={name: True}))
    assert "allowed_args" in why_refused(LocalPolicy(), placement)
    assert why_refused(LocalPolicy(allowed_args=(name,)), placement) is None


def test_engines_and_gpus_are_bounded():
    assert "engine vllm" in why_refused(LocalPolicy(engines=("simulated",)), a_placement())
    assert "2 are asked" in why_refused(LocalPolicy(max_gpus=1), a_placement(gpus=("GPU-1", "GPU-2")))
    assert (
        why_refused(LocalPolicy(sources=(), engines=("simulated",)), a_placement(spec=spec(engine="simulated"))) is None
    )


# --- how an engine ended


@pytest.mark.parametrize(
    ("status", "lines", "said"),
    [
        (1, [], "exit code 1"),
        (-11, [], "killed by SIGSEGV"),
        (139, [], "exit code 139 (SIGSEGV)"),
        (None, [], "ended (exit status unknown: it was adopted)"),
        (1, ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"], "out of GPU memory"),
        (1, ["ValueError: No available memory for the cache blocks."], "too little GPU memory for the KV cache"),
        (1, ["OSError: [Errno 98] Address already in use"], "its port was taken"),
        (2, ["vllm: error: unrecognized arguments: --nope"], "an option is wrong: vllm: error"),
        (-9, ["INFO all is well"], "out-of-memory killer"),
        (
            1,
            ["noise", "RuntimeError: Engine core initialization failed.", "noise"],
            "Engine core initialization failed",
        ),
    ],
)
def test_the_end_is_told_with_its_cause(status, lines, said):
    assert said in describe_exit(status, lines)


def test_the_cause_beats_the_last_line():
    lines = ["CUDA out of memory", *["  File x, line 1"] * 50, "RuntimeError: Engine core initialization failed."]
    assert find_cause(lines).startswith("out of GPU memory")


@given(st.integers(-64, 255) | st.none(), st.lists(st.text(max_size=80), max_size=10))
def test_nothing_an_engine_prints_breaks_the_telling(status, lines):
    assert describe_exit(status, lines)


# --- ports


@given(
    low=st.integers(1, 60_000),
    length=st.integers(0, 80),
    size=st.integers(1, 12),
    taken=st.sets(st.integers(1, 60_100), max_size=30),
    last=st.none() | st.integers(1, 60_100),
)
def test_blocks_stay_in_the_range_and_touch_nothing_taken(low, length, size, taken, last):
    found = blocks((low, low + length), size, taken, last)
    used = [port for block in found for port in block]
    assert all(len(block) == size for block in found)
    assert len(used) == len(set(used))
    assert all(low <= port <= low + length for port in used)
    assert not taken & set(used)
    if last is not None and any(block.start > last for block in found):
        assert found[0].start > last


# --- orders


def test_orders_only_rise_and_a_stranger_from_an_old_epoch_is_below_the_floor():
    orders = Orders().obeyed(a_placement("chat-r1", epoch=3, revision=10))
    assert orders.max_epoch == 3
    assert orders.not_before("chat-r1", 3) == (3, 10)
    assert orders.not_before("chat-r2", 3) == (3, 0)
    # Known before the batch: an older epoch of the same leader change may still be read.
    assert orders.not_before("chat-r2", 2) == (2, 0)
    assert orders.obeyed(a_placement("chat-r1", epoch=2, revision=99)).max_epoch == 3


def test_what_is_remembered_of_the_gone_is_bounded():
    full = Orders(1, frozen_map({f"a-r{index}": (1, index) for index in range(ORDERS_KEPT)}))
    after = full.obeyed(a_placement("b-r1"))
    assert len(after.by_replica) == ORDERS_KEPT
    assert "b-r1" in after.by_replica
    assert "a-r0" not in after.by_replica


# --- digests


def test_only_what_reaches_the_engine_makes_another_launch():
    one = a_placement()
    same = one.model_copy(
        update={
            "spec": one.spec.model_copy(update={"replicas": 9, "drain_grace_seconds": 1.0}),
            "revision": 9,
            "epoch": 9,
        }
    )
    assert launch_digest(one) == launch_digest(same)
    for changes in ({"gpus": ("GPU-2",)}, {"restart_nonce": 1}, {"spec": spec(args={"seed": 1})}):
        assert launch_digest(one.model_copy(update=changes)) != launch_digest(one)


# --- reports


def report(**changes):
    status = a_status(sample=EngineSample(requests_running=1, generation_tokens_per_second=5.25), phase_seconds=3.0)
    gpu = GpuSample(gpu="GPU-1", index=0, memory_used_bytes=5, utilization_ratio=0.5)
    return a_report(replicas=(status,), gpus=(gpu,), host=HostSample(cpu_ratio=0.25), **changes)


def test_figures_are_no_change_but_phases_problems_and_faults_are():
    first = report()
    moved = report(sequence=2)
    status = moved.replicas[0]
    moved = moved.model_copy(
        update={
            "replicas": (status.model_copy(update={"phase_seconds": 4.0, "sample": EngineSample(requests_running=2)}),),
            "gpus": (GpuSample(gpu="GPU-1", index=0, memory_used_bytes=6),),
            "host": HostSample(cpu_ratio=0.9),
        }
    )
    assert not is_full_due(first, 10.0, moved, 11.0)
    assert is_full_due(first, 10.0, moved, 10.0 + FULL_EVERY_SECONDS)
    assert is_full_due(None, None, moved, 11.0)
    failed = moved.model_copy(update={"replicas": (status.model_copy(update={"phase": Phase.FAILED}),)})
    assert is_full_due(first, 10.0, failed, 11.0)
    lost = moved.model_copy(update={"gpus": (GpuSample(gpu="GPU-1", index=0, fault="lost"),)})
    assert is_full_due(first, 10.0, lost, 11.0)
    told = moved.model_copy(update={"problems": (Problem(code="a", message="b"),)})
    assert is_full_due(first, 10.0, told, 11.0)


def test_a_compact_record_folded_into_the_full_one_gives_the_figures_of_the_second():
    before = report()
    status = before.replicas[0]
    sample = EngineSample(
        requests_running=7, requests_waiting=1, kv_cache_usage=0.25, generation_tokens_per_second=120.0
    )
    after = before.model_copy(
        update={
            "sequence": 2,
            "host": HostSample(cpu_ratio=0.5),
            "gpus": (GpuSample(gpu="GPU-1", index=0, memory_used_bytes=9, utilization_ratio=0.75),),
            "replicas": (status.model_copy(update={"sample": sample}),),
        }
    )
    folded = fold(before, compact(after))
    assert folded.gpus == after.gpus
    assert folded.replicas[0].sample == sample
    assert folded.host.cpu_ratio == 0.5
    assert len(compact(after).to_json()) < 260
    # An engine that answers no scrape has no figures of this second, whatever it said before.
    replica = after.replicas[0].model_copy(update={"sample_age_seconds": 3.0})
    silent = fold(before, compact(after.model_copy(update={"replicas": (replica,)})))
    assert silent.replicas[0].sample.requests_running is None
    assert silent.replicas[0].sample.generation_tokens_per_second is None


def test_a_sigkill_by_the_kernel_for_want_of_memory_is_named():
    assert describe_exit(-9, [], oom_killed=True).startswith("killed by SIGKILL: the kernel's out-of-memory killer")
    assert "out-of-memory killer" in describe_exit(137, [], oom_killed=True)
    assert "out-of-memory killer" in describe_exit(None, [], oom_killed=True)
    # An engine that left by itself was not killed, whatever else the kernel did meanwhile.
    assert describe_exit(1, [], oom_killed=True) == "exit code 1"
    assert "somebody by hand" in describe_exit(-9, [])
