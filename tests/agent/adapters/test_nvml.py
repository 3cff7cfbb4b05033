"""NVML in all its moods: the real binding, in a process that loads the stub library."""

import json
import os
import subprocess
import sys
import time

import pytest

from nebula_agent.adapters import nvml
from tests.support.clock import FakeClock
from tests.support.nvml import StubNvml


class Reader:
    def __init__(self, env):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.adapters.nvml_reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )

    def read(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the reader died"
        return json.loads(line)

    def until(self, holds, seconds=60):
        deadline = time.monotonic() + seconds
        while not holds(reading := self.read()):
            assert time.monotonic() < deadline, reading
        return reading

    def close(self):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    return StubNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def reader(stub):
    stub.set("ok")
    made = Reader(stub.env(os.getpid()))
    yield made
    made.close()


def seen(reading):
    return len(reading["gpus"]) == 2


def test_everything_answers(reader):
    reading = reader.until(seen)
    assert [gpu["id"] for gpu in reading["gpus"]] == ["GPU-stub-0", "GPU-stub-1"]
    assert reading["driver"] == "580.00.stub"
    assert reading["problems"] == []
    first, second = reading["samples"]
    assert first["memory_used_bytes"] == 1 << 30
    assert second["memory_used_bytes"] == 2 << 30
    assert first["memory_total_bytes"] == 80 << 30
    assert (first["utilization_ratio"], first["temperature_celsius"], first["power_watts"]) == (0.37, 51, 321.5)
    assert first["power_limit_watts"] == 700
    # The stub has no such function, like an old driver.
    assert first["sm_clock_mhz"] is None
    assert first["throttle_reasons"] == ["power_cap", "hw_thermal"]
    ecc = [first[f"ecc_{name}_total"] for name in ("corrected", "uncorrected", "uncorrected_lifetime")]
    assert ecc == [0, 10, 11]
    assert (first["row_remap_pending"], second["row_remap_pending"]) == (False, True)
    assert [first[f"pcie_{name}"] for name in ("generation", "generation_max", "width", "width_max")] == [4, 5, 8, 16]
    assert [first[f"nvlink{name}"] for name in ("s_active", "s_total", "_errors_total")] == [3, 4, 7]
    assert reading["buses"] == {"GPU-stub-0": "0000:3b:00", "GPU-stub-1": "0000:3c:00"}
    assert [(each["pid"], each["memory_used_bytes"]) for each in first["processes"]] == [(os.getpid(), 1 << 30)]
    assert second["processes"] == []


def test_what_a_card_does_not_support_is_unknown(reader, stub):
    reader.until(seen)
    stub.set("unsupported")
    reading = reader.until(lambda reading: reading["samples"][0]["utilization_ratio"] is None)
    sample = reading["samples"][0]
    assert sample["memory_used_bytes"] == 1 << 30
    assert (sample["temperature_celsius"], sample["power_watts"], sample["fault"]) == (None, None, None)


def test_a_lost_card_has_a_fault_and_its_neighbour_goes_on(reader, stub):
    reader.until(seen)
    stub.set("lost")
    reading = reader.until(lambda reading: reading["samples"][1]["fault"])
    assert "fell off the bus" in reading["samples"][1]["fault"]
    assert reading["samples"][1]["memory_used_bytes"] is None
    assert reading["samples"][0]["fault"] is None
    assert reading["samples"][0]["utilization_ratio"] == 0.37
    assert [gpu["id"] for gpu in reading["gpus"]] == ["GPU-stub-0", "GPU-stub-1"]


def test_a_driver_that_hangs_delays_nobody_and_is_told(reader, stub):
    reader.until(seen)
    stub.set("hang")
    reading = reader.until(lambda reading: reading["problems"])
    assert reading["seconds"] < 10  # a driver that hangs would hold it for ever
    assert reading["problems"][0]["code"] == "nvml_hung"
    assert {sample["fault"] for sample in reading["samples"]} == {"the driver hangs"}
    assert {sample["memory_used_bytes"] for sample in reading["samples"]} == {None}
    stub.set("ok")
    reading = reader.until(lambda reading: not reading["problems"])
    assert reading["samples"][0]["memory_used_bytes"] == 1 << 30


def test_cards_do_not_vanish_with_the_driver(reader, stub):
    reader.until(seen)
    stub.set("dead")
    reading = reader.until(lambda reading: reading["problems"])
    assert len(reading["gpus"]) == 2
    assert all(sample["fault"] for sample in reading["samples"])


def test_no_permission_says_so(stub):
    stub.set("noperm")
    reader = Reader(stub.env())
    try:
        reading = reader.until(lambda reading: reading["problems"])
        assert reading["problems"][0]["code"] == "nvml_failed"
        assert reading["gpus"] == []
    finally:
        reader.close()


def test_no_driver_is_no_trouble():
    reader = Reader({"LD_LIBRARY_PATH": ""})
    try:
        reading = reader.until(lambda reading: reading["gpus"] or reading["problems"])
        if reading["gpus"]:
            pytest.skip("this machine has NVIDIA GPUs")
        assert reading["problems"][0]["code"] == "no_gpu_driver"
        assert reading["problems"][0]["severity"] == "info"
    finally:
        reader.close()


def test_throughput_is_asked_of_one_card_at_a_time(reader):
    reader.until(seen)
    reading = reader.until(lambda reading: reading["samples"][1]["pcie_send_bytes_per_second"] is not None)
    for sample in reading["samples"]:
        assert (sample["pcie_receive_bytes_per_second"], sample["pcie_send_bytes_per_second"]) == (2 << 20, 1 << 20)


def test_figures_that_no_card_can_mean_are_unknown(reader, stub):
    reader.until(seen)
    stub.set("odd")
    reading = reader.until(lambda reading: reading["samples"][0]["utilization_ratio"] is None)
    assert reading["samples"][0]["temperature_celsius"] is None
    assert reading["samples"][0]["memory_used_bytes"] == 1 << 30


def test_a_card_in_parts_is_its_parts(reader, stub):
    reader.until(seen)
    stub.set("mig")
    reading = reader.until(lambda reading: len(reading["gpus"]) == 3)
    whole, *parts = reading["gpus"]
    assert (whole["id"], whole["parent"]) == ("GPU-stub-0", None)
    assert [(part["id"], part["index"], part["parent"]) for part in parts] == [
        ("MIG-stub-0", 200, "GPU-stub-1"),
        ("MIG-stub-1", 201, "GPU-stub-1"),
    ]
    assert [part["memory_total_bytes"] for part in parts] == [40 << 30, 40 << 30]
    sample = reading["samples"][1]
    assert (sample["utilization_ratio"], sample["temperature_celsius"]) == (None, 51)
    stub.set("ok")
    assert len(reader.until(lambda reading: len(reading["gpus"]) == 2)["samples"]) == 2


def test_a_card_that_is_not_listed_any_more_is_lost(reader, stub):
    reader.until(seen)
    stub.set("vanished")
    reading = reader.until(lambda reading: reading["samples"][1]["fault"])
    assert "does not list it" in reading["samples"][1]["fault"]
    assert reading["samples"][0]["fault"] is None


def test_a_library_that_crashes_takes_nobody_along(reader, stub):
    reader.until(seen)
    stub.set("crash")
    reading = reader.until(lambda reading: reading["problems"])
    assert reading["problems"][0]["code"] == "nvml_crashed"
    assert {sample["fault"] for sample in reading["samples"]} == {"the driver's library crashes"}
    stub.set("ok")
    reading = reader.until(lambda reading: not reading["problems"])
    assert reading["samples"][0]["memory_used_bytes"] == 1 << 30


def test_codes_are_those_of_the_binding():
    binding = pytest.importorskip("pynvml")
    named = ("GPU_IS_LOST", "RESET_REQUIRED", "UNKNOWN", "LIBRARY_NOT_FOUND", "DRIVER_NOT_LOADED")
    for name in named:
        assert getattr(nvml, name) == getattr(binding, f"NVML_ERROR_{name}")


async def test_old_figures_are_not_shown_again_after_a_child_was_given_up(stub):
    stub.set("ok")
    clock = FakeClock()
    gpus = nvml.Nvml(clock, {**os.environ, **stub.env(os.getpid())})
    try:
        for _ in range(50):  # the first start of the child takes its time
            if len((await gpus.read({})).inventory) == 2:
                break
        stub.set("hang")
        await gpus.read({})
        await clock.advance(nvml.ABANDON_SECONDS + 1)
        assert (await gpus.read({})).problems[0].code == "nvml_hung"
        reading = await gpus.read({})  # another child is asked, and has said nothing yet
        assert {sample.fault for sample in reading.samples} == {"the driver hangs"}
        assert {sample.memory_used_bytes for sample in reading.samples} == {None}
        assert len(reading.inventory) == 2
    finally:
        stub.set("ok")
        await gpus.aclose()
