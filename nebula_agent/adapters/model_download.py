"""One download of a model, in a thread of its own: listed, resumed, hashed, completed. `Transfer` is what others see of it.

What a killed agent left is used: a file that is whole by its size and by what was listed of it is not fetched again, the
beginning of another is hashed and the rest asked for by range. A revision is fixed by the first listing of a run, and a
file that differs from what was listed before goes first.
"""

import errno
import os
import threading
import time
from collections.abc import Callable

from nebula_agent.adapters import cache_folder
from nebula_agent.adapters.cache_folder import CacheFolder, CacheLock
from nebula_agent.adapters.model_place import FetchFailed, Place, RangeRefused
from nebula_agent.decisions.model_files import KeptFile, Listing, Manifest, RemoteFile, choose_files
from nebula_core.errors import NebulaError
from nebula_core.records.model_source import ModelSource

#: The lock is renewed so often.
HEARTBEAT_SECONDS = 5.0


class Stopped(NebulaError):
    """Nobody waits any more, or the agent ends: what is here stays, to be gone on with."""

    code = "stopped"


class Transfer:
    """Figures of a running download; written by its thread, read by anyone."""

    def __init__(self) -> None:
        self.done_bytes = 0
        self.total_bytes: int | None = None
        #: Bytes that are still to be written, once listed.
        self.missing_bytes: int | None = None
        self.file = ""
        self._stop = threading.Event()
        self._why: str | None = None
        #: Set by the keeper once there is room for `missing_bytes`.
        self.roomy = threading.Event()

    def stop(self, why: str | None = None) -> None:
        """`why` is a failure (no room); None: it is merely not wanted."""
        self._why = self._why or why
        self._stop.set()
        self.roomy.set()

    def check(self) -> None:
        """Raises Stopped or FetchFailed once it is to end."""
        if self._stop.is_set():
            if self._why is not None:
                raise FetchFailed(self._why, final=True)
            raise Stopped("it is not wanted any more")


def download(
    source: ModelSource,
    place: Callable[[], Place],
    folder: CacheFolder,
    transfer: Transfer,
    *,
    pickled: bool = False,
) -> Manifest:
    """Blocks until the model is whole. Raises FetchFailed, CacheLocked, CacheRefused, Stopped, OSError."""
    with folder.locked(source.id) as lock:
        already = folder.manifest(source.id)
        if already is not None:
            return already
        opened = place()
        try:
            return _fill(source, opened, folder, transfer, lock, pickled=pickled)
        except FetchFailed as error:
            if error.final:
                folder.drop_partial(source.id)
            raise
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                # Others may need the room; nothing is gained by half a model.
                folder.drop_partial(source.id)
                raise FetchFailed(
                    f"disk full while {transfer.file or source.text} was written ({error.strerror})",
                    hint="Make room, or place it elsewhere",
                    final=True,
                ) from error
            raise
        finally:
            opened.close()


def _fill(
    source: ModelSource,
    place: Place,
    folder: CacheFolder,
    transfer: Transfer,
    lock: CacheLock,
    *,
    pickled: bool,
) -> Manifest:
    listing = place.listing()
    chosen = _chosen(source, listing, pickled=pickled)
    with folder.filling(source.id) as here:
        known = _forget_changed(here, chosen)
        transfer.total_bytes = sum(file.size or 0 for file in chosen)
        begun = sum(
            known[file.path].size if file.path in known else cache_folder.part_size(here, file.path) for file in chosen
        )
        transfer.missing_bytes = max(0, transfer.total_bytes - begun)
        transfer.roomy.wait()
        transfer.check()
        manifest = Manifest(
            id=source.id, source=source.text, weights=source.weights, revision=listing.revision, fetched_at=time.time()
        )
        beat = _Heartbeat(lock, transfer)
        for file in chosen:
            kept = known.get(file.path)
            if kept is None:
                whole = {done.path: done for done in (*known.values(), *manifest.files)}
                folder.keep_listing(
                    here, manifest.model_copy(update={"begun": file.same_as, "files": tuple(whole.values())})
                )
                digest, size = _fetch(place, listing, file, here, transfer, beat)
                mtime = cache_folder.finish_part(here, file.path)
                kept = KeptFile(path=file.path, size=size, sha256=digest, mtime_ns=mtime, mark=file.same_as)
            else:
                transfer.done_bytes += kept.size
            manifest = manifest.model_copy(update={"files": (*manifest.files, kept)})
    transfer.check()
    if listing.revision is None and set(chosen) != set(_chosen(source, place.listing(), pickled=pickled)):
        # Each file is as it was listed, and the last of them may belong to another state of the model than the first.
        raise FetchFailed(f"{source.text} changed at its place while it was fetched", hint="It is fetched anew")
    if not lock.renew():
        raise FetchFailed(f"{source.text}: another process has taken over its lock")
    folder.complete(source.id, manifest)
    return manifest


def _chosen(source: ModelSource, listing: Listing, *, pickled: bool) -> tuple[RemoteFile, ...]:
    chosen = choose_files(source, listing, pickled=pickled)
    if isinstance(chosen, str):
        raise FetchFailed(chosen, final=True)
    return chosen


def _forget_changed(here: int, chosen: tuple[RemoteFile, ...]) -> dict[str, KeptFile]:
    """Files that are here, whole, and still what is listed; others of these names are removed, begun ones too."""
    former = cache_folder.read_manifest(here)
    kept = {file.path: file for file in former.files} if former is not None else {}
    begun = "" if former is None else former.begun
    known = {}
    for file in chosen:
        mine = kept.get(file.path)
        facts = cache_folder.file_facts(here, file.path)
        if mine is not None and facts == (mine.size, mine.mtime_ns) and mine.mark == file.same_as:
            known[file.path] = mine
        elif facts is not None or begun != file.same_as:
            cache_folder.remove_file(here, file.path)
    return known


def _fetch(
    place: Place, listing: Listing, file: RemoteFile, here: int, transfer: Transfer, beat: "_Heartbeat"
) -> tuple[str, int]:
    transfer.file = file.path
    with cache_folder.open_part(here, file.path) as fd:
        size = os.fstat(fd).st_size
        if file.size is not None and size > file.size:
            os.ftruncate(fd, 0)
            size = 0
        digest = cache_folder.hash_file(fd)
        transfer.done_bytes += size
        if file.size is None or size < file.size or file.size == 0:
            try:
                with place.open(listing, file, size) as body:
                    if body.starts_at != size:
                        transfer.done_bytes -= size
                        size = 0
                        os.ftruncate(fd, 0)
                        os.lseek(fd, 0, os.SEEK_SET)
                        digest = cache_folder.hash_file(fd)
                    for chunk in body:
                        transfer.check()
                        beat.tick()
                        size += len(chunk)
                        if file.size is not None and size > file.size:
                            raise FetchFailed(f"{file.path}: more bytes came than the {file.size} that were listed")
                        digest.update(chunk)
                        view = memoryview(chunk)
                        while view:
                            view = view[os.write(fd, view) :]
                        transfer.done_bytes += len(chunk)
            except RangeRefused:
                os.ftruncate(fd, 0)
                raise
        if file.size is not None and size != file.size:
            raise FetchFailed(f"{file.path}: the connection ended after {size} of {file.size} bytes")
        found = digest.hexdigest()
        if file.sha256 is not None and found != file.sha256:
            os.ftruncate(fd, 0)
            raise FetchFailed(
                f"{file.path}: checksum {found[:12]}… instead of {file.sha256[:12]}…",
                hint="The bytes were damaged on the way; look at the hub or at a proxy between",
            )
        os.fsync(fd)
    return found, size


class _Heartbeat:
    def __init__(self, lock: CacheLock, transfer: Transfer) -> None:
        self._lock = lock
        self._transfer = transfer
        self._at = time.monotonic()

    def tick(self) -> None:
        """Raises FetchFailed when the lock has been taken over: two must not write."""
        now = time.monotonic()
        if now - self._at < HEARTBEAT_SECONDS:
            return
        self._at = now
        if not self._lock.renew():
            raise FetchFailed(f"{self._transfer.file}: another process has taken over the lock")
