"""The machine the agent runs on: its load, memory, disk and network."""

import socket
from pathlib import Path
from typing import NamedTuple

import psutil

from nebula_core.records.sample import HostSample


class _Traffic(NamedTuple):
    at: float
    received: int
    sent: int


class Host:
    """Samples the host; rates are over the time between two samples. Never blocks for long."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._former: _Traffic | None = None
        psutil.cpu_percent(interval=None)  # the first answer has nothing to compare with

    def sample(self, now: float) -> HostSample:
        memory = psutil.virtual_memory()
        received, sent = self._rates(now)
        disk = self._disk()
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

    def _disk(self) -> tuple[int, int] | None:
        try:
            usage = psutil.disk_usage(str(self._directory))
        except OSError:
            return None
        return usage.used, usage.total

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


def hostname() -> str:
    return socket.gethostname()


def cpu_count() -> int | None:
    return psutil.cpu_count(logical=True)


def memory_total_bytes() -> int:
    return psutil.virtual_memory().total
