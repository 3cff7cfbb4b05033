"""A folder for the temporary files of each start of an engine, removed with whatever the engine left in it.

vLLM keeps its sockets in TMPDIR and leaves them when it is killed. A socket's path has at most 107 characters, so a deep data
folder is no place for them: then they go below the machine's own temporary folder.
"""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Collection
from pathlib import Path

import structlog

from nebula_core.errors import NebulaError

log = structlog.get_logger(__name__)

#: What an engine may add to the path: a slash, and a name of 36 characters (vLLM's).
_LONGEST = 107 - 37
_EPOCH_CHARACTERS = 12


class StartFolders:
    """Folders by engine epoch. Everything here blocks for a disk's time: call it in a thread."""

    def __init__(self, data_dir: Path, agent_id: str) -> None:
        near = Path(data_dir) / "tmp"
        fits = len(str(near)) + 1 + _EPOCH_CHARACTERS <= _LONGEST
        self.root = near if fits else Path(tempfile.gettempdir()) / f"nebula-{agent_id}"
        self._making = threading.Lock()

    def make(self, engine_epoch: str) -> Path:
        """Raises OSError; NebulaError when somebody else has made the folder above it."""
        with self._making:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = self.root.lstat()
            if facts.st_uid != os.geteuid() or self.root.is_symlink():
                raise NebulaError(f"{self.root} belongs to another user", hint="Remove it, or set TMPDIR of the agent")
            folder = self.root / engine_epoch
            folder.mkdir(mode=0o700, exist_ok=True)
            return folder

    def remove(self, engine_epoch: str) -> None:
        """The engine is gone; whatever is left in its folder goes too."""
        folder = self.root / engine_epoch
        if folder.is_dir():
            shutil.rmtree(folder, onerror=_not_removed)
        # The last start takes the folder above with it: outside the data folder nobody else would remove it.
        with self._making, contextlib.suppress(OSError):  # another start is in it, or it was never made
            self.root.rmdir()

    def sweep(self, known: Collection[str]) -> None:
        """Removes the folders of starts that nobody knows any more."""
        with self._making:
            there = [folder.name for folder in self.root.iterdir()] if self.root.is_dir() else []
        for name in there:
            if name not in known:
                self.remove(name)


def _not_removed(_function: object, path: str, error: object) -> None:
    log.warning("temporary_file_not_removed", path=path, error=str(error))
