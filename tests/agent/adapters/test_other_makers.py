"""Ascend through a program that prints the captured tables, AMD through a tree of files, several makers as one."""

import asyncio
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.adapters import patient_gpus
from nebula_agent.adapters.accelerators import SeveralGpus, open_gpus
from nebula_agent.adapters.amd import AmdGpus
from nebula_agent.adapters.ascend import AscendNpus
from nebula_agent.adapters.gpus import GpuReading, NoGpus
from nebula_agent.adapters.simulated_gpus import SimulatedGpus
from nebula_agent.decisions.npu_smi import parse_table
from nebula_core.records.report import Problem
from nebula_core.runtime.clock import SystemClock
from tests.support.clock import FakeClock

TABLES = Path(__file__).parents[1] / "fixtures" / "npu_smi"
MIB = 1024**2


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """Whoever asks waits for a program as long as a busy machine takes to start one."""
    monkeypatch.setattr(patient_gpus, "PATIENCE_SECONDS", 50.0)


def program(folder, script):
    path = folder / "npu-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_table_of_cards_with_one_chip():
    table = parse_table((TABLES / "one_chip.txt").read_text())
    assert table.version == "25.2.0"
    first, second = table.chips
    assert (first.bus, first.number, first.name, first.fault) == ("0000:C1:00.0", 0, "910B4-1", None)
    assert (first.watts, first.celsius, first.utilization_ratio) == (91.3, 33, 0.41)
    assert (first.memory_used_bytes, first.memory_total_bytes) == (30197 * MIB, 65536 * MIB)
    assert [(each.pid, each.name, each.memory_used_bytes) for each in first.processes] == [
        (692318, "python3", 27012 * MIB)
    ]
    assert (second.celsius, second.fault, second.processes) == (None, "npu-smi calls its health Critical", ())


def test_a_table_of_cards_with_two_chips():
    chips = parse_table((TABLES / "two_chips.txt").read_text()).chips
    assert [(npu.card, npu.chip, npu.number) for npu in chips] == [(0, 0, 0), (0, 1, 1), (7, 0, 14)]
    assert [npu.watts for npu in chips] == [162.6, None, 172.0]
    assert [len(npu.processes) for npu in chips] == [1, 0, 1]


@given(st.text())
def test_no_table_is_too_odd(text):
    parse_table(text)


@given(st.data())
def test_a_damaged_table_never_invents_a_chip(data):
    lines = (TABLES / "two_chips.txt").read_text().splitlines()
    kept = [line for line in lines if data.draw(st.booleans())]
    assert len(parse_table("\n".join(kept)).chips) <= 3


async def test_ascend_is_read_through_its_program(tmp_path):
    npus = AscendNpus(program(tmp_path, f"[ $1 = info ] && cat {TABLES}/one_chip.txt"), SystemClock())
    reading = await npus.read({})
    assert [(gpu.id, gpu.vendor, gpu.name) for gpu in reading.inventory] == [
        ("NPU-0000:C1:00.0", "huawei", "Ascend 910B4-1"),
        ("NPU-0000:C2:00.0", "huawei", "Ascend 910B4-1"),
    ]
    assert [sample.fault for sample in reading.samples] == [None, "npu-smi calls its health Critical"]
    await npus.aclose()


async def test_a_program_that_fails_is_told_and_cards_do_not_vanish(tmp_path):
    clock = FakeClock()
    path = program(tmp_path, f"cat {TABLES}/one_chip.txt")
    npus = AscendNpus(path, clock)
    assert len((await npus.read({})).inventory) == 2
    program(tmp_path, "echo 'dcmi module initialize failed. ret is -8005'; exit 2")
    await clock.advance(6)
    reading = await npus.read({})
    assert "dcmi module" in reading.problems[0].message
    assert len(reading.inventory) == 2
    assert all(sample.fault for sample in reading.samples)
    await npus.aclose()


async def test_a_program_that_hangs_delays_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(patient_gpus, "PATIENCE_SECONDS", 0.2)
    clock = FakeClock()
    npus = AscendNpus(program(tmp_path, "exec sleep 60"), clock)
    loop = asyncio.get_running_loop()
    began = loop.time()
    reading = await npus.read({})
    assert (reading.inventory, reading.problems) == ((), ())
    await clock.advance(25)
    reading = await npus.read({})
    assert loop.time() - began < 50
    assert reading.problems[0].code == "gpus_hung"
    await npus.aclose()


@pytest.fixture
def amd_tree(tmp_path):
    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    device = "sys/class/drm/card1/device"
    write(f"{device}/vendor", "0x1002")
    write(f"{device}/device", "0x74a1")
    write(f"{device}/product_name", "AMD Instinct MI300X")
    write(f"{device}/unique_id", "5f1c2d3e4b5a6978")
    write(f"{device}/uevent", "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:C1:00.0")
    write(f"{device}/mem_info_vram_total", 192 * 1024**3)
    write(f"{device}/mem_info_vram_used", 20 * 1024**3)
    write(f"{device}/gpu_busy_percent", 63)
    write(f"{device}/hwmon/hwmon4/temp1_input", 54000)
    write(f"{device}/hwmon/hwmon4/power1_average", 312000000)
    write(f"{device}/hwmon/hwmon4/power1_cap", 750000000)
    write(f"{device}/pp_dpm_sclk", "0: 500Mhz\n1: 2100Mhz *")
    write(f"{device}/current_link_speed", "32.0 GT/s PCIe")
    write(f"{device}/current_link_width", 16)
    write(f"{device}/ras/umc_err_count", "ue: 1\nce: 5")
    write("sys/class/drm/card0/device/vendor", "0x1a03")
    write("sys/class/drm/card1-DP-1/status", "connected")
    write("sys/module/amdgpu/version", "6.10.5")
    write("sys/class/kfd/kfd/topology/nodes/1/gpu_id", 51234)
    write("sys/class/kfd/kfd/topology/nodes/1/properties", f"domain 0\nlocation_id {0xC1 << 8}\nsimd_count 304")
    write("sys/class/kfd/kfd/topology/nodes/0/gpu_id", 0)
    write("sys/class/kfd/kfd/proc/4711/vram_51234", 18 * 1024**3)
    return tmp_path


async def test_amd_is_read_from_files(amd_tree):
    gpus = AmdGpus(SystemClock(), amd_tree)
    reading = await gpus.read({})
    (gpu,), (sample,) = reading.inventory, reading.samples
    assert (gpu.id, gpu.name, gpu.vendor) == ("AMD-5f1c2d3e4b5a6978", "AMD Instinct MI300X", "amd")
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (20 * 1024**3, 192 * 1024**3)
    assert (sample.utilization_ratio, sample.temperature_celsius) == (0.63, 54)
    assert (sample.power_watts, sample.power_limit_watts, sample.sm_clock_mhz) == (312, 750, 2100)
    assert (sample.pcie_generation, sample.pcie_width, sample.memory_clock_mhz) == (5, 16, None)
    assert (sample.ecc_uncorrected_total, sample.ecc_corrected_total) == (1, 5)
    assert [(each.pid, each.memory_used_bytes) for each in sample.processes] == [(4711, 18 * 1024**3)]
    assert (reading.driver_version, reading.buses) == ("6.10.5", {gpu.id: "0000:c1:00"})
    await gpus.aclose()


async def test_a_card_that_is_gone_from_the_files_is_lost(amd_tree):
    clock = FakeClock()
    gpus = AmdGpus(clock, amd_tree)
    await gpus.read({})
    (amd_tree / "sys/class/drm/card1/device/vendor").unlink()
    await clock.advance(2)
    reading = await gpus.read({})
    assert reading.samples[0].fault == "lost: the driver does not list it any more"
    await gpus.aclose()


async def test_makers_are_chosen_and_read_as_one(amd_tree, tmp_path):
    assert isinstance(open_gpus("none", SystemClock()), NoGpus)
    folder = tmp_path / "bin"
    folder.mkdir()
    path = program(folder, f"cat {TABLES}/two_chips.txt")
    both = SeveralGpus([AscendNpus(path, SystemClock()), AmdGpus(SystemClock(), amd_tree), _NoDriver()])
    reading = await both.read({})
    assert [gpu.vendor for gpu in reading.inventory] == ["huawei", "huawei", "huawei", "amd"]
    assert reading.driver_version == "26.0.rc2, 6.10.5"
    assert reading.problems == ()
    await both.aclose()
    alone = SeveralGpus([_NoDriver()])
    assert [problem.code for problem in (await alone.read({})).problems] == ["no_gpu_driver"]


class _NoDriver(NoGpus):
    async def read(self, holders):
        del holders
        return GpuReading(problems=(Problem(code="no_gpu_driver", message="none", severity="info"),))


async def test_every_maker_keeps_the_form(amd_tree, tmp_path):
    """One contract: ids are unique, a sample for every GPU in the same order, ratios are ratios, unknown is None."""
    path = program(tmp_path, f"cat {TABLES}/one_chip.txt")
    for gpus in (AscendNpus(path, SystemClock()), AmdGpus(SystemClock(), amd_tree), SimulatedGpus("n1", 3), NoGpus()):
        reading = await gpus.read({})
        ids = [gpu.id for gpu in reading.inventory]
        assert len(set(ids)) == len(ids)
        assert [sample.gpu for sample in reading.samples] == ids
        for sample in reading.samples:
            assert sample.utilization_ratio is None or 0 <= sample.utilization_ratio <= 1
            assert sample.memory_total_bytes is None or (sample.memory_used_bytes or 0) <= sample.memory_total_bytes
        await gpus.aclose()
