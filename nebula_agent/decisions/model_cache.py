"""What may stay on the node's disk: room for a download, and which models go when there is none (least recently used).

*Room*: a download wants 1.2 times what is missing of it (reliability 20), and leaves the disk below the high watermark.
*Eviction* goes from the least recently used until there is room, or down to the low watermark. It never touches what is
protected: a model that a replica of this node runs or will be started from, one that somebody fetches or waits for,
one that is locked. What is protected is said by the caller, and asked again right before each removal.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

GIB = 1024**3
#: What a download needs free, in parts of what is missing of it.
ROOM_RATIO = 1.2
#: Never used up by a download: the agent's own books and logs need some.
RESERVE_BYTES = 64 * 1024**2
#: A partial download that nobody has gone on with for so long is garbage.
PARTIAL_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """By the agent's settings."""

    #: Most bytes of all models together; None: as much as the disk has.
    max_bytes: int | None = None
    #: Fill of the disk, 0..1, above which no download leaves it.
    high: float = 0.9
    #: Eviction goes on down to this one.
    low: float = 0.8


@dataclass(frozen=True, slots=True)
class Disk:
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One model on the disk, whole or partial."""

    id: str
    source: str
    size_bytes: int
    files: int
    #: Unix seconds by the disk's own clock.
    used_at: float
    complete: bool
    revision: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What has to go first, in this order; or why even that does not help."""

    evict: tuple[Entry, ...] = ()
    reason: str | None = None


def missing_bytes(missing: int, disk: Disk, entries: Sequence[Entry], limits: CacheLimits) -> int:
    """How much has to be freed before `missing` more bytes may come; 0 or less: nothing."""
    wanted = int(missing * ROOM_RATIO) + RESERVE_BYTES
    short = [wanted - disk.free_bytes, missing - (disk.free_bytes - int(disk.total_bytes * (1 - limits.high)))]
    if limits.max_bytes is not None:
        short.append(sum(entry.size_bytes for entry in entries) + missing - limits.max_bytes)
    return max(short)


def make_room(
    missing: int, disk: Disk, entries: Sequence[Entry], protected: Collection[str], limits: CacheLimits
) -> Room:
    """What goes so that `missing` bytes may come."""
    short = missing_bytes(missing, disk, entries, limits)
    if short <= 0:
        return Room()
    # While at it, down to the low watermark: the next download does not have to evict again.
    wished = max(short, missing - (disk.free_bytes - int(disk.total_bytes * (1 - limits.low))))
    gone: list[Entry] = []
    freed = 0
    for entry in _by_use(entries, protected):
        if freed >= wished:
            break
        gone.append(entry)
        freed += entry.size_bytes
    if freed < short:
        return Room(reason=_why_no_room(missing, disk, entries, protected, limits))
    return Room(tuple(gone))


def overfull(
    disk: Disk, entries: Sequence[Entry], protected: Collection[str], limits: CacheLimits
) -> tuple[Entry, ...]:
    """What goes when the disk has filled up by itself: above the high watermark, down to the low one."""
    short = 0
    if disk.free_bytes < disk.total_bytes * (1 - limits.high):
        short = int(disk.total_bytes * (1 - limits.low)) - disk.free_bytes
    if limits.max_bytes is not None:
        short = max(short, sum(entry.size_bytes for entry in entries) - limits.max_bytes)
    gone: list[Entry] = []
    for entry in _by_use(entries, protected):
        if short <= 0:
            break
        gone.append(entry)
        short -= entry.size_bytes
    return tuple(gone)


def outdated(entries: Sequence[Entry], protected: Collection[str], now: float) -> tuple[Entry, ...]:
    """Partial downloads that nobody goes on with; `now` by the clock of the disk."""
    return tuple(
        entry for entry in _by_use(entries, protected) if not entry.complete and now - entry.used_at >= PARTIAL_SECONDS
    )


def _by_use(entries: Sequence[Entry], protected: Collection[str]) -> list[Entry]:
    """Those that may go, in the order in which they do: partial ones first, then the least recently used."""
    free = [entry for entry in entries if entry.id not in protected]
    return sorted(free, key=lambda entry: (entry.complete, entry.used_at, entry.id))


def _why_no_room(
    missing: int, disk: Disk, entries: Sequence[Entry], protected: Collection[str], limits: CacheLimits
) -> str:
    need = (
        f"disk full: needs {missing * ROOM_RATIO / GIB:.1f} GiB free, "
        f"{disk.free_bytes / GIB:.1f} of {disk.total_bytes / GIB:.1f} GiB are"
    )
    held = sum(entry.size_bytes for entry in entries if entry.id in protected)
    kept = f", and {held / GIB:.1f} GiB of models are in use" if held else ""
    most = "" if limits.max_bytes is None else f"; models may take {limits.max_bytes / GIB:.1f} GiB together"
    return f"{need} (fill at most {limits.high:.0%}){kept}{most}; make room, or place it elsewhere"


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How far a download is."""

    done_bytes: int = 0
    #: None: not listed yet.
    total_bytes: int | None = None
    #: Over the last seconds.
    bytes_per_second: float | None = None

    @property
    def ratio(self) -> float | None:
        if not self.total_bytes:
            return None
        return min(1.0, self.done_bytes / self.total_bytes)

    @property
    def eta_seconds(self) -> float | None:
        if self.total_bytes is None or not self.bytes_per_second:
            return None
        return max(0.0, (self.total_bytes - self.done_bytes) / self.bytes_per_second)

    def words(self) -> str:
        """`42 %, 6.1 of 14.5 GiB, 112 MB/s, 75 s left`."""
        if self.total_bytes is None or self.ratio is None:
            return "asking what there is"
        parts = [f"{self.ratio:.0%}", f"{_size(self.done_bytes)} of {_size(self.total_bytes)}"]
        if self.bytes_per_second:
            parts.append(f"{self.bytes_per_second / 1e6:.1f} MB/s")
        if self.eta_seconds is not None and self.bytes_per_second:
            parts.append(f"{self.eta_seconds:.0f} s left")
        return ", ".join(parts)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 1024**2:.1f} MiB"


@dataclass(frozen=True, slots=True)
class LockFacts:
    """Who says that it fetches a model."""

    pid: int
    boot_id: str
    #: Of that process, since the boot: another process with the same pid began at another time.
    began: float


#: A lock of another machine (the folder may be shared) that was not renewed for so long has no owner any more.
LOCK_SECONDS = 60.0


def is_lock_stale(lock: LockFacts | None, age_seconds: float, boot_id: str, began: float | None) -> bool:
    """Whether it may be taken over.

    `lock` None: it cannot be read. `age_seconds` since its heartbeat, by the clock of the disk; `began` is when the
    process with its pid began on this machine, None: there is none.
    """
    if lock is not None and lock.boot_id == boot_id:
        return began is None or abs(began - lock.began) > 1.0
    return age_seconds >= LOCK_SECONDS
