"""What the NVIDIA driver says in the kernel log: which Xid, on which card, and what must follow from it.

A line reads `NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.` Codes, their meaning and
the immediate action are those of NVIDIA's Xid catalog (docs.nvidia.com/deploy/xid-errors), Ampere and newer. A code that
is not in the table is told and holds nothing back: most are the fault of a program, not of the card.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple


class Remedy(StrEnum):
    """What brings the card back."""

    #: The card is sound; the program that used it may not be.
    RESTART = "restart the engine"
    RESET = "reset the GPU"
    REBOOT = "reboot the machine"


class XidMeaning(NamedTuple):
    text: str
    remedy: Remedy


class XidEvent(NamedTuple):
    """One Xid as the kernel logged it."""

    #: PCI address in the driver's short form, lower case: `0000:3b:00`.
    bus: str
    code: int
    #: The process the driver blames; None when it names none.
    pid: int | None
    detail: str


_RESTART, _RESET, _REBOOT = Remedy.RESTART, Remedy.RESET, Remedy.REBOOT

MEANINGS: Mapping[int, XidMeaning] = MappingProxyType(
    {
        8: XidMeaning("the GPU stopped processing", _RESTART),
        13: XidMeaning("graphics engine exception", _RESTART),
        31: XidMeaning("memory page fault of a program", _RESTART),
        32: XidMeaning("invalid or corrupted push buffer", _RESTART),
        43: XidMeaning("a program's channel was reset", _RESTART),
        45: XidMeaning("a program's channels were cleaned up", _RESTART),
        46: XidMeaning("the GPU does not stop", _RESET),
        48: XidMeaning("double-bit ECC error", _RESET),
        62: XidMeaning("internal microcontroller halt", _RESET),
        63: XidMeaning("a memory row was marked for remapping", _RESTART),
        64: XidMeaning("a memory row could not be remapped", _RESET),
        74: XidMeaning("NVLink error", _RESET),
        79: XidMeaning("fell off the bus", _REBOOT),
        94: XidMeaning("contained ECC error", _RESTART),
        95: XidMeaning("uncontained ECC error", _RESET),
        109: XidMeaning("context switch timeout", _RESET),
        119: XidMeaning("the GPU system processor does not answer", _RESET),
        120: XidMeaning("error of the GPU system processor", _RESET),
        140: XidMeaning("unrecovered ECC error", _RESET),
        143: XidMeaning("the GPU could not be initialised", _RESET),
    }
)
#: The driver's own word on what a card needs now; `0x0 (None)` takes back what it said before.
RECOVERY = 154

_LINE = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2})(?:\.\d)?\): (\d{1,4}),? ?(.*)")
_PID = re.compile(r"\bpid='?(\d{1,10})")
_RECOVERED = re.compile(r"\bto 0x0\b")
_NEEDS_REBOOT = re.compile(r"\bto 0x\w+ \([^)]*[Rr]eboot")


def parse_line(line: str) -> XidEvent | None:
    """The Xid in one line of the kernel log; None when there is none."""
    found = _LINE.search(line)
    if found is None:
        return None
    detail = found.group(3).strip()
    blamed = _PID.search(detail)
    return XidEvent(short_bus(found.group(1)), int(found.group(2)), int(blamed.group(1)) if blamed else None, detail)


def short_bus(address: str) -> str:
    """`00000000:3B:00.0`, as NVML writes it, and `0000:3b:00` are one card."""
    domain, _, rest = address.lower().partition(":")
    return f"{domain[-4:].rjust(4, '0')}:{rest.partition('.')[0]}"


class Held(NamedTuple):
    """What keeps a card from being used."""

    code: int
    text: str
    remedy: Remedy

    @property
    def fault(self) -> str:
        return f"Xid {self.code}: {self.text}; {self.remedy}"


def quarantine(held: Mapping[str, Held], events: list[XidEvent]) -> dict[str, Held]:
    """Cards, by bus, that must not be used after `events`, in the order they were logged.

    A card stays held for the rest of the boot (the kernel log of a boot begins empty), with one way out: the driver
    itself says by Xid 154 that no recovery is needed any more, which it does after a reset. What only a reboot mends is
    not taken back even then, and nothing milder replaces it.
    """
    after = dict(held)
    for event in events:
        former = after.get(event.bus)
        if event.code == RECOVERY:
            if _RECOVERED.search(event.detail):
                if former is not None and former.remedy is not Remedy.REBOOT:
                    del after[event.bus]
                continue
            remedy = Remedy.REBOOT if _NEEDS_REBOOT.search(event.detail) else Remedy.RESET
            meaning = XidMeaning("the driver asks for a recovery", remedy)
        elif (known := MEANINGS.get(event.code)) is not None:
            meaning = known
        else:
            continue
        if meaning.remedy is Remedy.RESTART or (former is not None and former.remedy is Remedy.REBOOT):
            continue
        if former is None or meaning.remedy is Remedy.REBOOT:
            after[event.bus] = Held(event.code, meaning.text, meaning.remedy)
    return after


def latest(known: Mapping[str, int], events: list[XidEvent]) -> dict[str, int]:
    """The latest code of each card, by bus."""
    return {**known, **{event.bus: event.code for event in events if event.code != RECOVERY}}
