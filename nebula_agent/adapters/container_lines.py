"""What a container writes, kept in the replica's log file like any engine's: followed, bounded, and never twice.

Beside the file stands a cursor: the container, the time of its last line in the file, and the size the file had then. An
agent that returns cuts the file back to that size and asks for the lines after that time, so nothing is doubled and
nothing is left out, wherever the former agent was killed.

That holds as long as a log has one writer at a time. So the files are met in the stream's own thread alone, between the lock
of the file and its release: whoever was closed may still have a line in hand, or wait for a disk that hangs, and the next one
begins when it has written its last cursor. Nobody on the event loop waits for either.
"""

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from nebula_agent.adapters.docker_engine import ContainerEngine, ReadLines, Stream
from nebula_agent.adapters.log_files import LARGEST_BYTES, shorten

log = structlog.get_logger(__name__)

#: A container that writes more is read no faster: Docker keeps its own bound and drops the oldest.
MOST_BYTES_PER_SECOND = 8 * 1024**2
CURSOR_SECONDS = 1.0


def cursor_file(log_file: Path) -> Path:
    return log_file.with_suffix(".log.cursor")


class ContainerLines:
    """Follows one container into one file until it ends or `close` is called."""

    def __init__(
        self, container: str, log_file: Path, *, largest: int = LARGEST_BYTES, since: float | None = None
    ) -> None:
        """`since` (Unix seconds): nothing that was written before; None: from its first line on."""
        self._container = container
        self._from = None if since is None else f"{since:.0f}"
        self._path = log_file
        self._largest = largest
        self._stream: Stream | None = None
        self._closed = False
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        #: Why its file took nothing the last time; None: it did.
        self._unkept: str | None = None

    @property
    def following(self) -> bool:
        return not self._at_rest.is_set()

    def begin(self, engine: ContainerEngine, ended: Callable[[], None]) -> None:
        """Goes on where the file ends. `ended` is called on the loop, unless it is the file that took no more.

        Does nothing where it is followed already, or was closed.
        """
        if self.following or self._closed:
            return

        def over() -> None:
            self._at_rest.set()
            if self._unkept is None:
                ended()

        self._stream = engine.follow_lines(self._container, self._keep, over)
        self._at_rest.clear()

    def close(self) -> None:
        """No more is followed, for good. Returns at once: the thread ends what it has in hand, see `over`."""
        self._closed = True
        if self._stream is not None:
            self._stream.close()

    async def over(self, seconds: float) -> bool:
        """Whether it is at rest within so long: its last line and its cursor are on the disk."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._at_rest.wait()
        return not self.following

    # --- in the stream's thread

    def _keep(self, read: ReadLines) -> None:
        try:
            with _Writer(self._container, self._path, self._largest) as writer:
                pace = _Pace()
                for at, text in read(_unix(writer.at) or self._from):
                    if self._closed:
                        return
                    if writer.write(at, text):
                        self._unkept = None
                        pace.hold_back(len(text))
        except OSError as error:
            if self._unkept != str(error):
                log.error("container_lines_not_kept", container=self._container[:12], error=str(error))
            self._unkept = str(error)


class _Writer:
    """The one writer of a log and its cursor: while it is open, another one of the same log waits to be. Raises OSError."""

    def __init__(self, container: str, path: Path, largest: int) -> None:
        self._container = container
        self._path = path
        self._largest = largest
        self._handle = -1
        self._size = 0
        self._noted_at = 0.0
        #: When the last line in the file was written, as Docker tells the time; empty: there is none.
        self.at = self._skip_to = b""

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            self._size = os.fstat(self._handle).st_size
            noted = self._noted()
            if noted is None:
                # Before its first line: how much of the file is of others.
                self._note()
            else:
                self.at, size = noted
                self._skip_to = self.at
                if self._size > size:
                    # Written, but not noted: it comes again.
                    os.ftruncate(self._handle, size)
                    self._size = size
        except BaseException:
            os.close(self._handle)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._note()
        finally:
            os.close(self._handle)

    def write(self, at: bytes, text: bytes) -> bool:
        """False where the file had that line when it was opened: a stream begins with those of the moment asked for."""
        if at <= self._skip_to:
            return False
        rest = memoryview(text)
        while rest:
            rest = rest[os.write(self._handle, rest) :]
        self._size += len(text)
        self.at = at
        if self._size > self._largest and shorten(self._path, self._largest):
            self._size = 0
            self._note()
        elif time.monotonic() - self._noted_at >= CURSOR_SECONDS:
            self._note()
        return True

    def _note(self) -> None:
        self._noted_at = time.monotonic()
        text = json.dumps({"container": self._container, "at": self.at.decode("ascii", "replace"), "size": self._size})
        draft = cursor_file(self._path).with_suffix(".draft")
        with suppress(OSError):  # a full disk: the lines after the last note come again
            draft.write_text(text, encoding="ascii")
            draft.replace(cursor_file(self._path))

    def _noted(self) -> tuple[bytes, int] | None:
        """(time, size) of the cursor; None when there is none, or it is of another container."""
        try:
            found = json.loads(cursor_file(self._path).read_text(encoding="ascii"))
            if found["container"] == self._container:
                return str(found["at"]).encode("ascii"), int(found["size"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None


class _Pace:
    """Holds back who reads more than MOST_BYTES_PER_SECOND."""

    def __init__(self) -> None:
        self._second = 0.0
        self._bytes = 0

    def hold_back(self, size: int) -> None:
        now = time.monotonic()
        if now - self._second >= 1.0:
            self._second, self._bytes = now, 0
        self._bytes += size
        if self._bytes > MOST_BYTES_PER_SECOND:
            time.sleep(max(0.0, self._second + 1.0 - now))


def _unix(at: bytes) -> str | None:
    """`1764057600.123456789` of Docker's time, to the nanosecond; None where it is none."""
    head, _, tail = at.decode("ascii", "replace").rstrip("Z").partition(".")
    try:
        seconds = int(datetime.fromisoformat(f"{head}+00:00").timestamp())
    except ValueError:
        return None
    return f"{seconds}.{tail[:9]:0<9}"
