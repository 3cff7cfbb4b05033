"""Xid lines of the kernel log, and which cards they keep from being used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.decisions.xid import MEANINGS, Remedy, XidEvent, latest, parse_line, quarantine, short_bus

BUS = "0000:3b:00"


def event(code, detail="", bus=BUS):
    return XidEvent(bus, code, None, detail)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "4,1299,98765432,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.",
            XidEvent(BUS, 79, 1234, "pid=1234, name=python, GPU has fallen off the bus."),
        ),
        (
            "NVRM: Xid (PCI:0000:2b:00): 79, GPU has fallen off the bus.",
            XidEvent("0000:2b:00", 79, None, "GPU has fallen off the bus."),
        ),
        (
            "kernel: NVRM: Xid (PCI:0000:3B:00): 13, pid='4711', name=vllm, Graphics Exception: ESR 0x505648",
            XidEvent(BUS, 13, 4711, "pid='4711', name=vllm, Graphics Exception: ESR 0x505648"),
        ),
        (
            "NVRM: Xid (PCI:0000:3b:00): 63, pid=1896, Row Remapper: New row marked for remapping",
            XidEvent(BUS, 63, 1896, "pid=1896, Row Remapper: New row marked for remapping"),
        ),
        ("NVRM: GPU 0000:2b:00.0: GPU has fallen off the bus.", None),
        ("usb 1-1: new high-speed USB device", None),
        ("NVRM: Xid (PCI:nonsense): 79, x", None),
    ],
)
def test_a_line_is_read(line, expected):
    assert parse_line(line) == expected


@pytest.mark.parametrize("address", ["00000000:3B:00.0", "0000:3b:00", "0000:3B:00.0"])
def test_one_card_has_one_address(address):
    assert short_bus(address) == BUS


def test_a_card_that_fell_off_is_held_until_the_reboot():
    held = quarantine({}, [event(79)])
    assert held[BUS].fault == "Xid 79: fell off the bus; reboot the machine"
    assert (
        quarantine(held, [event(154, "GPU recovery action changed from 0x2 (Node Reboot Required) to 0x0 (None)")])
        == held
    )


def test_a_reset_releases_what_a_reset_mends():
    held = quarantine({}, [event(95)])
    assert held[BUS].remedy is Remedy.RESET
    assert (
        quarantine(held, [event(154, "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)")]) == {}
    )


def test_the_drivers_own_word_holds_a_card():
    assert (
        quarantine({}, [event(154, "changed from 0x0 (None) to 0x1 (GPU Reset Required)")])[BUS].remedy is Remedy.RESET
    )
    rebooting = quarantine({}, [event(154, "changed from 0x0 (None) to 0x2 (Node Reboot Required)")])
    assert rebooting[BUS].remedy is Remedy.REBOOT


def test_a_programs_fault_holds_nothing():
    assert quarantine({}, [event(13), event(31), event(43), event(999)]) == {}
    assert latest({}, [event(13), event(31)]) == {BUS: 31}


events = st.builds(
    event,
    st.sampled_from([*MEANINGS, 154, 1, 999]),
    st.sampled_from(["", "to 0x0 (None)", "to 0x1 (GPU Reset Required)", "to 0x2 (Node Reboot Required)"]),
    st.sampled_from(["0000:3b:00", "0000:3c:00"]),
)


@given(st.lists(events), st.lists(events))
def test_cards_are_judged_by_their_own_lines_in_order(earlier, later):
    whole = quarantine({}, [*earlier, *later])
    assert whole == quarantine(quarantine({}, earlier), later)
    for bus in ("0000:3b:00", "0000:3c:00"):
        alone = quarantine({}, [each for each in [*earlier, *later] if each.bus == bus])
        assert alone.get(bus) == whole.get(bus)


@given(st.lists(events))
def test_what_needs_a_reboot_stays_held(found):
    held = quarantine({}, [event(79), *found])
    assert held[BUS].remedy is Remedy.REBOOT


@given(st.text())
def test_no_line_is_too_odd(line):
    parse_line(line)
