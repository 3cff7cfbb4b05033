"""The kernel log, for what the NVIDIA driver says only there: read without waiting, from the beginning of the boot.

`/dev/kmsg` gives one record per read (`priority,sequence,microseconds,flags;text`), "try again" at its end, and "broken
pipe" where records were overwritten before they were read: those are lost, and the next one follows. Who may not read
it (a hardened service) may still be a reader of the journal, which has the same lines: then `journalctl` is followed.
"""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

#: Read at one time: a log storm must not hold up the heartbeat.
MOST_READS = 2000
_RECORD_BYTES = 8192


class KernelLog:
    """Lines not yet given, in order. One that may not be read gives none, and says why once."""

    def __init__(self, path: Path, *, journal: str | None = None) -> None:
        """`journal` is the program to follow when `path` cannot be read; None: none."""
        self._rest = b""
        self._follower: subprocess.Popen[bytes] | None = None
        #: Why it cannot be read; None: it can.
        self.unreadable: str | None = None
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._handle = self._follow(journal) if journal is not None else -1
            if self._handle < 0:
                self.unreadable = f"{path}: {error.strerror}"
                hint = "Xid errors will not be seen: add the agent's user to the group systemd-journal"
                log.info("kernel_log_unreadable", path=str(path), error=error.strerror, hint=hint)

    def _follow(self, program: str) -> int:
        command = [program, "--dmesg", "--boot", "--follow", "--no-tail", "--output=cat", "--quiet"]
        try:
            follower = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError:
            return -1
        assert follower.stdout is not None  # noqa: S101 - a pipe was asked for
        self._follower = follower
        handle = os.dup(follower.stdout.fileno())
        follower.stdout.close()
        os.set_blocking(handle, False)
        return handle

    def lines(self) -> list[str]:
        """What was logged since the last call."""
        found: list[bytes] = []
        for _ in range(MOST_READS if self._handle >= 0 else 0):
            try:
                data = os.read(self._handle, _RECORD_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:
                    continue
                data = b""
                self.unreadable = error.strerror
            if not data:
                if self.unreadable is not None or self._follower is not None:
                    self.unreadable = self.unreadable or "journalctl ended"
                    log.warning("kernel_log_ended", error=self.unreadable)
                    self.close()
                break
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._rest = self._rest[-_RECORD_BYTES:]
            found += whole
        return [line.decode("utf-8", "replace") for line in found]

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.kill()
            follower.wait(5)


def open_kernel_log(path: Path) -> KernelLog:
    return KernelLog(path, journal=shutil.which("journalctl"))
