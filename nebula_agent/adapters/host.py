"""The machine the agent runs on: its load, memory, disk and network."""

import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from nebula_agent.adapters.disk_threads import DiskSilent, DiskThreads
from nebula_core.records.sample import HostSample


class _Traffic(NamedTuple):
    at: float
    received: int
    sent: int


#: What the disk last said of itself is passed on for so long; then its fill is unknown.
DISK_OLD_SECONDS = 5.0
#: A sample waits no longer for it: an answer takes microseconds, unless there will be none.
DISK_SECONDS = 0.2


class Host:
    """Samples the host; rates are over the time between two samples."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._disk = DiskThreads("fill")
        #: When the disk was last heard, and the bytes used and in all that it said.
        self._heard: tuple[float, tuple[int, int] | None] | None = None
        self._former: _Traffic | None = None
        psutil.cpu_percent(interval=None)  # the first answer has nothing to compare with

    async def sample(self, now: float) -> HostSample:
        """At `now`, in monotonic seconds."""
        disk = await self._fill(now)
        memory = psutil.virtual_memory()
        received, sent = self._rates(now)
        return HostSample(
            cpu_ratio=round(psutil.cpu_percent(interval=None) / 100, 4),
            load_1m=round(psutil.getloadavg()[0], 2),
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            disk_used_bytes=None if disk is None else disk[0],
            disk_total_bytes=None if disk is None else disk[1],
            network_receive_bytes_per_second=received,
            network_send_bytes_per_second=sent,
        )

    async def _fill(self, now: float) -> tuple[int, int] | None:
        """Bytes used and bytes in all; None when nobody knows."""
        with suppress(DiskSilent):
            self._heard = now, await self._disk.look(DISK_SECONDS, _usage, self._directory)
        return None if self._heard is None or now - self._heard[0] > DISK_OLD_SECONDS else self._heard[1]

    def _rates(self, now: float) -> tuple[float | None, float | None]:
        cards = psutil.net_io_counters(pernic=True)
        latest = _Traffic(
            now,
            sum(card.bytes_recv for name, card in cards.items() if name != "lo"),
            sum(card.bytes_sent for name, card in cards.items() if name != "lo"),
        )
        former, self._former = self._former, latest
        if former is None or now <= former.at:
            return None, None
        seconds = now - former.at
        received, sent = latest.received - former.received, latest.sent - former.sent
        if received < 0 or sent < 0:
            return None, None  # a card went away, or its counter began anew
        return round(received / seconds, 1), round(sent / seconds, 1)


def _usage(directory: Path) -> tuple[int, int] | None:
    """Blocks for the disk's time."""
    try:
        found = psutil.disk_usage(str(directory))
    except OSError:
        return None
    return found.used, found.total


def hostname() -> str:
    return socket.gethostname()


def cpu_count() -> int | None:
    return psutil.cpu_count(logical=True)


def memory_total_bytes() -> int:
    return psutil.virtual_memory().total
