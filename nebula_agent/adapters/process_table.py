"""The table of processes as discovery reads it: command lines of those not seen before, and the sockets of a few.

Each look lists the numbers in /proc and reads the command line of those that came in the last looks alone: between fork and
exec a process shows its parent's, and in a container on a busy machine that may take seconds (`runc init`). What this user
may not see is None, and nothing is concluded from it.
"""

import os
import stat
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nebula_agent.adapters.process_runtime import MARKER, born
from nebula_agent.decisions.cgroup import container_of
from nebula_agent.decisions.listeners import Listener, listeners

#: A command line longer than this is cut: an engine's is not.
_MOST_BYTES = 64 * 1024
#: Open files looked at of one process; a server has its listening socket among the first.
_MOST_FILES = 20_000
#: Longest file of a key.
_MOST_KEY_BYTES = 64 * 1024
#: Command lines read in one look; the rest waits for the next.
_MOST_NEW = 4_096
#: In so many looks a process that came is read; the looks are a second apart.
YOUNG_LOOKS = 15


class NewProcess(NamedTuple):
    pid: int
    argv: tuple[str, ...]


class ProcessTable:
    """Remembers which numbers were seen. `root` is /proc."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root
        self._seen: set[int] = set()
        #: Not read yet, or to be read anew.
        self._unread: set[int] = set()
        #: In how many looks more each that came is read.
        self._young: dict[int, int] = {}
        #: Of the agent itself: who shares it is a process like any other beside it.
        self._own_container = self._container("self")

    def new(self) -> list[NewProcess]:
        """Processes that came in the last looks, and those to be read anew."""
        pids = self._pids()
        fresh = pids - self._seen
        self._seen = pids
        self._young = {pid: left - 1 for pid, left in self._young.items() if left > 1 and pid in pids}
        self._young.update(dict.fromkeys(fresh, YOUNG_LOOKS))
        self._unread = (self._unread | fresh) & pids
        reading = [*sorted(self._unread), *sorted(self._young.keys() - self._unread)][:_MOST_NEW]
        self._unread.difference_update(reading)
        found = ((pid, self.command_line(pid)) for pid in reading)
        return [NewProcess(pid, argv) for pid, argv in found if argv]

    def forget(self) -> None:
        """Everything is read anew by the next look: a number may have been given again meanwhile."""
        self._unread |= self._seen

    def command_line(self, pid: int) -> tuple[str, ...]:
        """Empty for one that is gone, or a thread of the kernel."""
        try:
            with (self._root / str(pid) / "cmdline").open("rb") as file:
                raw = file.read(_MOST_BYTES)
        except OSError:
            return ()
        return tuple(part.decode("utf-8", "replace") for part in raw.rstrip(b"\0").split(b"\0")) if raw else ()

    def is_marked(self, pid: int) -> bool | None:
        """Whether some agent started it, of whichever cluster; None: its environment may not be read."""
        try:
            raw = (self._root / str(pid) / "environ").read_bytes()
        except OSError:
            return None
        return any(entry.startswith(f"{MARKER}=".encode()) for entry in raw.split(b"\0"))

    def environment(self, pid: int, name: str) -> str | None:
        """One variable of its environment."""
        try:
            raw = (self._root / str(pid) / "environ").read_bytes()
        except OSError:
            return None
        head = f"{name}=".encode()
        return next(
            (entry[len(head) :].decode("utf-8", "replace") for entry in raw.split(b"\0") if entry.startswith(head)),
            None,
        )

    def parent(self, pid: int) -> int | None:
        try:
            stat = (self._root / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
            return int(stat.rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return None

    def container(self, pid: int) -> str | None:
        """The container it is in, as its cgroup says; None: in none, or in the agent's own."""
        found = self._container(pid)
        return None if found == self._own_container else found

    def _container(self, pid: int | str) -> str | None:
        try:
            found = container_of((self._root / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return None
        return None if found is None else found.id

    def file_of(self, pid: int, path: str) -> bytes | None:
        """A file that a process's command line names, as that process sees it; None: it may not, or cannot, be read.

        This agent may read more than the process may. So only its user's own files are read (root's processes read any),
        within its own root, which is its container's; and no link is followed, which could lead out of it.
        """
        parts = PurePosixPath(path).parts
        user = self._user(pid)
        if user is None or not parts or parts[0] != "/" or ".." in parts:
            return None
        home = self._root / str(pid) / "root"
        handles: list[int] = []
        try:
            handles.append(os.open(home, os.O_PATH | os.O_DIRECTORY))
            for folder in parts[1:-1]:
                handles.append(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handles[-1]))
            # Not blocking: a pipe under this name must not hold the look.
            handles.append(os.open(parts[-1], os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=handles[-1]))
            facts = os.fstat(handles[-1])
            if not stat.S_ISREG(facts.st_mode) or user not in {0, facts.st_uid}:
                return None
            return os.read(handles[-1], _MOST_KEY_BYTES)
        except OSError:
            return None
        finally:
            for handle in handles:
                os.close(handle)

    def _user(self, pid: int) -> int | None:
        """Who it runs as. Not by the owner of its folder: that of a process that hides itself is root's."""
        try:
            text = (self._root / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
            words = next(line for line in text.splitlines() if line.startswith("Uid:")).split()
            return int(words[1]) if words[1] == words[2] else None
        except (OSError, ValueError, IndexError, StopIteration):
            return None

    def elsewhere(self, pid: int) -> bool:
        """Whether it has a network of its own, so that its addresses are not this machine's."""
        try:
            return (self._root / str(pid) / "ns/net").readlink() != (self._root / "self/ns/net").readlink()
        except OSError:
            return False

    def listening(self, pid: int, ports: Collection[int]) -> list[Listener]:
        """Who listens on these ports where the process is."""
        found: list[Listener] = []
        for name in ("tcp", "tcp6"):
            try:
                table = (self._root / str(pid) / "net" / name).read_text(encoding="ascii", errors="replace")
            except OSError:
                continue
            found += listeners(table, ports)
        return found

    def holds(self, pids: Collection[int], inode: int) -> bool | None:
        """Whether one of them has this socket open; None: none of theirs may be looked at."""
        wanted = f"socket:[{inode}]"
        seen = False
        for pid in pids:
            try:
                with os.scandir(self._root / str(pid) / "fd") as files:
                    for count, entry in enumerate(files):
                        seen = True
                        if count >= _MOST_FILES:
                            break
                        if str(Path(entry.path).readlink()) == wanted:
                            return True
            except OSError:
                continue
        return False if seen else None

    def family(self, pid: int) -> frozenset[int]:
        """It and all that descends from it. Reads the parent of every process: seldom."""
        parents: dict[int, list[int]] = {}
        for one in self._pids():
            if (parent := self.parent(one)) is not None:
                parents.setdefault(parent, []).append(one)
        found, waiting = {pid}, [pid]
        while waiting:
            for child in parents.get(waiting.pop(), ()):
                if child not in found:
                    found.add(child)
                    waiting.append(child)
        return frozenset(found)

    def _pids(self) -> set[int]:
        with os.scandir(self._root) as entries:
            return {int(entry.name) for entry in entries if entry.name.isascii() and entry.name.isdecimal()}

    def born(self, pid: int) -> float | None:
        return born(pid)
