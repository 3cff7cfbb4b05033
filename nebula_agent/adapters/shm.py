"""Shared memory that engines leave behind in /dev/shm: found by who maps it, removed when nobody does.

Python's multiprocessing names its segments `psm_*` and its semaphores `sem.mp-*`; a killed vLLM leaves 400 MiB of them
(engines, 2.8). A file is removed only when no live process maps it or has it open, and when it is known to be of the
engine that was stopped: seen in its maps, or made by our user while it lived.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

DIRECTORY = Path("/dev/shm")  # noqa: S108 - looked at, and swept, never written
_NAME = re.compile(r"^(?:psm_|sem\.mp-)")
_MAPPED = re.compile(rb"(/dev/shm/(?:psm_|sem\.mp-)[^\s]*)")


def leftovers_possible() -> bool:
    return DIRECTORY.is_dir()


def mapped_by(pids: Iterable[int]) -> frozenset[Path]:
    """Shared memory files that these processes map or have open. Blocking: call it in a thread."""
    found: set[Path] = set()
    for pid in pids:
        found |= _of(pid)
    return frozenset(found)


def sweep(known: Iterable[Path], *, made_between: tuple[float, float] | None) -> tuple[Path, ...]:
    """Removes what was left behind; answers what was removed. Blocking: call it in a thread.

    `known` were seen mapped by the engine; `made_between` (unix seconds) also takes files of our user from that time.
    """
    if not DIRECTORY.is_dir():
        return ()
    candidates = {path for path in known if path.exists()}
    if made_between is not None:
        candidates |= _made_between(*made_between)
    if not candidates:
        return ()
    in_use = mapped_by(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    removed = []
    for path in sorted(candidates - in_use):
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("shm_not_removed", path=str(path), error=str(error))
            continue
        removed.append(path)
    return tuple(removed)


def _made_between(start: float, end: float) -> set[Path]:
    found = set()
    for entry in os.scandir(DIRECTORY):
        if not _NAME.match(entry.name):
            continue
        try:
            facts = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        # Change and modification: a segment is made, sized and perhaps never written again.
        made = min(facts.st_mtime, facts.st_ctime)
        if facts.st_uid == os.geteuid() and start <= made <= end:
            found.add(Path(entry.path))
    return found


def _of(pid: int) -> set[Path]:
    found: set[Path] = set()
    try:
        maps = Path(f"/proc/{pid}/maps").read_bytes()
        found |= {Path(os.fsdecode(name)) for name in _MAPPED.findall(maps)}
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                target = str(Path(entry.path).readlink())
            except OSError:
                continue
            if target.startswith("/dev/shm/") and _NAME.match(target.removeprefix("/dev/shm/")):  # noqa: S108
                found.add(Path(target.removesuffix(" (deleted)")))
    except OSError:
        return found  # gone, or not ours to see
    return found
