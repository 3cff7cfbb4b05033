"""The end of an engine: what its node says of it when nothing more can be done."""

from types import SimpleNamespace

from nebula_agent.adapters import kernel_memory
from nebula_agent.adapters.gpus import GpuReading
from nebula_agent.adapters.runtime import Ended, Look, Started
from nebula_agent.decisions.lifecycle import Life
from nebula_agent.loops.context import Problems, with_faults
from nebula_agent.loops.engine_end import given_up, is_gone, why_ended
from nebula_core.records.sample import GpuSample


def started(**changes):
    values = {
        "runtime": "process",
        "engine_epoch": "e1",
        "host": "h",
        "probe_host": "h",
        "port": 1,
        "log_file": "/none",
    }
    return Started(started_at=0.0, boot_id="b", gpus=("GPU-a", "GPU-b"), **(values | changes))


def test_gpus_of_a_process_that_cannot_be_killed_need_a_reboot_until_it_is_gone(monkeypatch):
    context = SimpleNamespace(problems=Problems(), stuck_gpus={})
    monkeypatch.setattr("nebula_agent.loops.engine_end.waits_in_kernel", lambda pid: pid == 7)
    assert not is_gone("chat-r1", started(), Ended(killed=True, survivors=(7,)), context)
    (problem,) = context.problems.all()
    assert (problem.code, problem.severity) == ("unkillable", "crit")
    assert "state D" in problem.message
    reading = GpuReading(samples=tuple(GpuSample(gpu=f"GPU-{name}", index=at) for at, name in enumerate("abc")))
    told = with_faults(reading, context.stuck_gpus["chat-r1"])
    assert [sample.fault for sample in told.samples] == [
        "needs reboot: pid 7 of chat-r1 cannot be ended",
        "needs reboot: pid 7 of chat-r1 cannot be ended",
        None,
    ]
    assert with_faults(reading, {}) is reading
    assert is_gone("chat-r1", started(), Ended(), context)
    assert (context.problems.all(), context.stuck_gpus) == ((), {})


def test_what_the_driver_says_of_a_gpu_is_not_overwritten():
    reading = GpuReading(samples=(GpuSample(gpu="GPU-a", index=0, fault="Xid 79"),))
    assert with_faults(reading, {"GPU-a": "needs reboot"}).samples[0].fault == "Xid 79"


def test_an_oom_kill_since_the_start_explains_a_sigkill(monkeypatch):
    monkeypatch.setattr("nebula_agent.loops.engine_end.oom_kills", lambda: 5)
    assert "out-of-memory killer. Out of host memory" in why_ended(started(oom_kills=4), Look(Life.ENDED, -9), "b")
    assert "by hand" in why_ended(started(oom_kills=5), Look(Life.ENDED, -9), "b")
    assert "by hand" in why_ended(started(), Look(Life.ENDED, -9), "b")
    assert "out of GPU memory" in why_ended(
        started(), Look(Life.ENDED, 1), "b", ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"]
    )
    assert why_ended(started(), Look(Life.ENDED, -9), "another boot") == "the machine was restarted"


def test_the_kernel_is_asked_for_its_count(tmp_path, monkeypatch):
    assert kernel_memory.oom_kills() is None or kernel_memory.oom_kills() >= 0
    monkeypatch.setattr(kernel_memory, "_VMSTAT", tmp_path / "none")
    assert kernel_memory.oom_kills() is None


def test_giving_up_is_loud_and_says_what_to_do():
    problem = given_up("chat-r1", "exit code 1")
    assert problem.severity == "crit"
    assert "exit code 1" in problem.message
    assert "nebula restart" in problem.hint
