"""Log files that engines write themselves: read from behind, followed, and kept from growing without bound.

The engine holds the file open for appending, so it cannot be renamed away: when it is too large its content is copied to
the former part and the file is emptied in place. Lines written between the two steps may be lost; a disk is not filled.
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from nebula_agent.adapters.node_files import former_log

LARGEST_BYTES = 16 * 1024 * 1024
LONGEST_LINE = 8192
_TAIL_BYTES = 256 * 1024


class Piece(NamedTuple):
    """What one look at the end of a file brought."""

    lines: list[str]
    #: Bytes that were skipped because there were too many.
    skipped_bytes: int = 0


def last_lines(path: Path, count: int, after: int = 0) -> list[str]:
    """The last lines of a file, none of them from before the byte `after` (of an earlier start)."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = after if after <= size else 0  # it was emptied in between
            begin = max(start, size - _TAIL_BYTES)
            file.seek(begin)
            data = file.read(_TAIL_BYTES)
    except OSError:
        return []
    lines = data.decode("utf-8", "replace").splitlines()
    if begin > start and lines:
        lines = lines[1:]  # its beginning is cut off
    return [line[:LONGEST_LINE] for line in lines[-count:]] if count > 0 else []


def size(path: Path) -> int:
    """In bytes; 0 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def shorten(path: Path, largest: int = LARGEST_BYTES) -> bool:
    """Empties a file that has grown too large, keeping a copy of its last part. Whether it was."""
    try:
        size = path.stat().st_size
    except OSError:
        return False
    if size <= largest:
        return False
    former = former_log(path)
    with path.open("rb") as source, former.open("wb") as target:
        former.chmod(0o600)
        source.seek(max(0, size - largest))
        shutil.copyfileobj(source, target)
    os.truncate(path, 0)
    return True


class Follower:
    """Follows one file from where it is now; `poll` blocks for a disk's time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset: int | None = None
        self._rest = b""

    def start(self, lines: int) -> list[str]:
        """The last lines there are; following goes on after them."""
        try:
            size = self._path.stat().st_size
        except OSError:
            size = 0
        self._offset, self._rest = size, b""
        return last_lines(self._path, lines)

    def poll(self, most_bytes: int) -> Piece:
        """Whole lines that came since the last look; of too many, the newest."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if self._offset is None:
                    self._offset = size
                if size < self._offset:
                    self._offset, self._rest = 0, b""  # it was emptied
                skipped = max(0, size - self._offset - most_bytes)
                if skipped:
                    self._rest = b""
                file.seek(self._offset + skipped)
                data = file.read(most_bytes)
        except OSError:
            return Piece([])
        self._offset += skipped + len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if skipped and whole:
            whole = whole[1:]  # its beginning was skipped
        if len(self._rest) > LONGEST_LINE:
            whole.append(self._rest)
            self._rest = b""
        return Piece([line.decode("utf-8", "replace").rstrip("\r")[:LONGEST_LINE] for line in whole], skipped)


def note(path: Path, line: str) -> None:
    """A line of the agent's own, in the log of an engine that writes none there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("a", encoding="utf-8") as log:
        log.write(f"{line}\n")
