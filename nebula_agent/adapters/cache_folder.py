"""The folder of models on this node's disk: everything in it is reached from one open folder, never by a path.

    models/<id>/    whole: its files, and a manifest that says what they should be; when it was used is its mtime
    partial/<id>/   on its way: files, a `.part`, and what was listed
    locks/<id>      who fetches it: pid, boot, and a heartbeat in its mtime
    .trash/<word>   what is being removed

Every step opens one name relative to a folder that is open already, and follows no symlink (`O_NOFOLLOW`); ids and
file names are checked before. What is removed is renamed into the trash first, so that no reader meets half of it, and unlinked
there by `rmtree` with a folder descriptor, which enters no symlink either (reliability T21, C15).
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from nebula_agent.decisions.model_cache import Disk, Entry, LockFacts, is_lock_stale
from nebula_agent.decisions.model_files import Manifest, why_bad_path
from nebula_core.errors import NebulaError
from nebula_core.records.model_source import ENTRY_ID

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MANIFEST = ".nebula-manifest.json"
_MOST_MANIFEST_BYTES = 4 * 1024**2
_CHUNK = 1024**2
_KINDS = ("models", "partial", "locks", ".trash")


class CacheRefused(NebulaError):
    """A name that is none of the cache's, or something in its folder that the cache did not put there."""

    code = "cache_refused"


class CacheLocked(NebulaError):
    """Another process fetches this model right now."""

    code = "cache_locked"


class CacheFolder:
    """`open` it first. Every call blocks for as long as the disk does: use it in threads."""

    def __init__(self, root: Path, boot_id: str) -> None:
        self.root = root
        self._boot_id = boot_id
        self._path = root
        self._fds: dict[str, int] = {}

    def open(self) -> None:
        """Makes the folder where there is none. Raises OSError, CacheRefused."""
        if self._fds:
            return
        # Engines run as other users in containers: models are readable, never writable for them.
        self.root.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._path = self.root.resolve()
        root = os.open(self._path, _DIRECTORY)
        fds = {"": root}
        try:
            device = os.fstat(root).st_dev
            for kind in _KINDS:
                fds[kind] = _make_folder(root, kind)
                if os.fstat(fds[kind]).st_dev != device:
                    raise CacheRefused(  # noqa: TRY301 - what was opened is closed on the way out
                        f"{self.root / kind} is another file system", hint="Mount the whole folder there instead"
                    )
        except BaseException:
            for fd in fds.values():
                os.close(fd)
            raise
        self._fds = fds
        self.empty_trash()

    @property
    def is_open(self) -> bool:
        return bool(self._fds)

    def close(self) -> None:
        fds, self._fds = self._fds, {}
        for fd in fds.values():
            os.close(fd)

    # --- what is here

    def disk(self) -> Disk:
        facts = os.fstatvfs(self._fds[""])
        return Disk(facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize)

    def entries(self) -> tuple[Entry, ...]:
        """Whole and partial ones; a model that is both (fetched anew) is told once, as whole."""
        found: dict[str, Entry] = {}
        for kind in ("partial", "models"):
            for name in os.listdir(self._fds[kind]):  # noqa: PTH208 - by descriptor
                entry = self._entry(kind, name)
                if entry is not None:
                    found[entry.id] = entry
        return tuple(found[name] for name in sorted(found))

    def manifest(self, entry_id: str, kind: str = "models") -> Manifest | None:
        """What the entry should be; None: it is not whole (of `partial`: nothing is known)."""
        with self._opened(kind, entry_id) as folder:
            found = None if folder is None else read_manifest(folder)
        # A copy of another model's folder: what follows from its manifest would be done to that one.
        return found if found is not None and found.id == entry_id else None

    def path(self, entry_id: str) -> Path:
        """Where an engine finds it. Only a word to hand on: nothing here goes by it, and no disk is asked for it."""
        return self._path / "models" / _checked(entry_id)

    def facts(self, manifest: Manifest) -> dict[str, tuple[int, int] | None]:
        """`(size, mtime_ns)` of each file of a whole model; None: missing, or no plain file."""
        seen: dict[str, tuple[int, int] | None] = {}
        with self._opened("models", manifest.id) as folder:
            for file in manifest.files:
                seen[file.path] = None if folder is None else _facts(folder, file.path)
        return seen

    def read(self, entry_id: str, path: str, most: int) -> bytes | None:
        """The beginning of one file of a whole model."""
        with self._opened("models", entry_id) as folder:
            if folder is None:
                return None
            with _opened_file(folder, path, os.O_RDONLY) as fd:
                return None if fd is None else os.read(fd, most)

    def sha256(self, entry_id: str, path: str) -> str | None:
        """Of one file of a whole model, read through."""
        with self._opened("models", entry_id) as folder:
            if folder is None:
                return None
            with _opened_file(folder, path, os.O_RDONLY) as fd:
                return None if fd is None else hash_file(fd).hexdigest()

    def now(self) -> float:
        """By the clock of the disk: that of another machine, when the folder is shared."""
        name = f"clock-{secrets.token_hex(8)}"
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fds[".trash"])
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
            os.unlink(name, dir_fd=self._fds[".trash"])

    # --- changes

    def touch(self, entry_id: str) -> None:
        """It is used now."""
        with self._opened("models", entry_id) as folder:
            if folder is not None:
                os.utime(folder)

    @contextmanager
    def filling(self, entry_id: str) -> Iterator[int]:
        """The folder of a partial model, to be filled through `open_part` and `finish_part`."""
        _make_folder(self._fds["partial"], _checked(entry_id), close=True)
        with self._opened("partial", entry_id) as folder:
            if folder is None:
                raise CacheRefused(f"{entry_id} vanished while it was fetched", hint="Look who removes files there")
            yield folder

    def keep_listing(self, folder: int, manifest: Manifest) -> None:
        """What of a partial model is here for certain, written whole."""
        _write_manifest(folder, manifest)

    def complete(self, entry_id: str, manifest: Manifest) -> None:
        """From `partial` to `models`, with its manifest; what was there under this id goes."""
        with self._opened("partial", entry_id) as folder:
            if folder is None:
                raise CacheRefused(f"{entry_id} vanished while it was fetched", hint="Look who removes files there")
            _write_manifest(folder, manifest)
            os.utime(folder)
            os.fsync(folder)
        self._discard("models", entry_id)
        os.rename(entry_id, entry_id, src_dir_fd=self._fds["partial"], dst_dir_fd=self._fds["models"])
        os.fsync(self._fds["models"])

    def demote(self, entry_id: str, damaged: str) -> None:
        """A whole model of which a file is damaged counts as partial: what is good of it is used again."""
        self._discard("partial", entry_id)
        with self._opened("models", entry_id) as folder:
            if folder is not None:
                remove_file(folder, damaged)
        with suppress(FileNotFoundError):
            os.rename(_checked(entry_id), entry_id, src_dir_fd=self._fds["models"], dst_dir_fd=self._fds["partial"])

    def remove(self, entry_id: str) -> None:
        """All of it, at once for every reader. Raises CacheLocked, also while another process fetches it."""
        with self.locked(entry_id):
            self._discard("models", entry_id)
            self._discard("partial", entry_id)

    def drop_partial(self, entry_id: str) -> None:
        """By whoever holds its lock."""
        self._discard("partial", entry_id)

    def empty_trash(self) -> None:
        for name in os.listdir(self._fds[".trash"]):  # noqa: PTH208 - by descriptor
            _unlink_all(name, self._fds[".trash"])

    def _discard(self, kind: str, entry_id: str) -> None:
        word = secrets.token_hex(12)
        try:
            os.rename(_checked(entry_id), word, src_dir_fd=self._fds[kind], dst_dir_fd=self._fds[".trash"])
        except FileNotFoundError:
            return
        _unlink_all(word, self._fds[".trash"])

    # --- locks

    @contextmanager
    def locked(self, entry_id: str) -> Iterator["CacheLock"]:
        """Only this process fetches or removes the entry meanwhile. Raises CacheLocked with who does."""
        lock = CacheLock(self._fds["locks"], _checked(entry_id), self._boot_id, self.now)
        lock.take()
        try:
            yield lock
        finally:
            lock.release()

    def holder(self, entry_id: str) -> str | None:
        """Who fetches it, in words; None: nobody."""
        return CacheLock(self._fds["locks"], _checked(entry_id), self._boot_id, self.now).holder()

    # --- small parts

    def _entry(self, kind: str, name: str) -> Entry | None:
        if ENTRY_ID.fullmatch(name) is None:
            return None
        with self._opened(kind, name) as folder:
            if folder is None:
                return None
            manifest = read_manifest(folder)
            if manifest is not None and manifest.id != name:
                manifest = None
            used_at = os.fstat(folder).st_mtime
            whole = kind == "models" and manifest is not None
            size, files = (manifest.size_bytes, len(manifest.files)) if whole and manifest else _weigh(folder)
        return Entry(
            id=name,
            source=name if manifest is None else manifest.source,
            size_bytes=size,
            files=files,
            used_at=used_at,
            complete=whole,
            revision=None if manifest is None else manifest.revision,
            digest=manifest.digest if whole and manifest else None,
        )

    @contextmanager
    def _opened(self, kind: str, entry_id: str) -> Iterator[int | None]:
        try:
            fd = os.open(_checked(entry_id), _DIRECTORY, dir_fd=self._fds[kind])
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise
            yield None
            return
        try:
            yield fd
        finally:
            os.close(fd)


class CacheLock:
    """A file that names its owner; who holds it renews its mtime. Taking and leaving go through one flock."""

    def __init__(self, folder: int, name: str, boot_id: str, now: Callable[[], float]) -> None:
        self._folder = folder
        self._name = name
        self._boot_id = boot_id
        self._now = now
        self._inode: int | None = None

    def take(self) -> None:
        """Raises CacheLocked."""
        with self._turn():
            holder = self.holder()
            if holder is not None:
                raise CacheLocked(f"{holder} is busy with it", hint="It goes on by itself; wait for it")
            with suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self._name, flags, 0o600, dir_fd=self._folder)
            try:
                began = psutil.Process().create_time()
                os.write(fd, json.dumps({"pid": os.getpid(), "boot_id": self._boot_id, "began": began}).encode())
                self._inode = os.fstat(fd).st_ino
            finally:
                os.close(fd)

    def renew(self) -> bool:
        """The heartbeat; whether it is still ours."""
        try:
            found = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
            if found.st_ino != self._inode:
                return False
            os.utime(self._name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def release(self) -> None:
        with self._turn(), suppress(FileNotFoundError):
            if os.stat(self._name, dir_fd=self._folder, follow_symlinks=False).st_ino == self._inode:
                os.unlink(self._name, dir_fd=self._folder)

    def holder(self) -> str | None:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(self._name, flags, dir_fd=self._folder)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ELOOP}:
                raise
            return None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return None  # no agent wrote that
            renewed_at = found.st_mtime
            lock = _lock_facts(os.read(fd, 4096))
        finally:
            os.close(fd)
        began = None
        if lock is not None and lock.boot_id == self._boot_id:
            with suppress(psutil.Error):
                began = psutil.Process(lock.pid).create_time()
        age = max(0.0, self._now() - renewed_at)
        if is_lock_stale(lock, age, self._boot_id, began):
            return None
        return "another process" if lock is None else f"process {lock.pid}"

    @contextmanager
    def _turn(self) -> Iterator[None]:
        fd = os.open(".turn", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


@contextmanager
def open_part(folder: int, path: str) -> Iterator[int]:
    """The unfinished file of a partial model, to read what is there and to write on. Raises CacheRefused."""
    with _opened_file(folder, f"{path}.part", os.O_RDWR | os.O_CREAT, checked=path) as fd:
        if fd is None:
            raise CacheRefused(f"{path}: something else is in its place", hint="Look who writes into the cache")
        os.fchmod(fd, 0o644)
        yield fd


def finish_part(folder: int, path: str) -> int:
    """From `.part` to its name, on disk; its mtime (ns)."""
    with _parent(folder, path, make=False) as (parent, name):
        if parent is None:
            raise CacheRefused(f"{path} vanished", hint="Look who removes files there")
        os.rename(f"{name}.part", name, src_dir_fd=parent, dst_dir_fd=parent)
        os.fsync(parent)
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_mtime_ns


def remove_file(folder: int, path: str) -> None:
    """Of a partial model: the file, finished or not."""
    with _parent(folder, path, make=False) as (parent, name):
        for each in (name, f"{name}.part"):
            if parent is not None:
                with suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(each, dir_fd=parent)


def file_facts(folder: int, path: str) -> tuple[int, int] | None:
    """`(size, mtime_ns)`; None: there is no such plain file."""
    return _facts(folder, path)


def part_size(folder: int, path: str) -> int:
    found = _facts(folder, f"{path}.part", checked=path)
    return 0 if found is None else found[0]


def hash_file(fd: int) -> "hashlib._Hash":
    """SHA-256 over a file from its beginning; the position is its end afterwards."""
    digest = hashlib.sha256()
    os.lseek(fd, 0, os.SEEK_SET)
    while chunk := os.read(fd, _CHUNK):
        digest.update(chunk)
    return digest


def _checked(entry_id: str) -> str:
    if ENTRY_ID.fullmatch(entry_id) is None:
        raise CacheRefused(f"{entry_id[:120]!r} is no id of a model", hint="Look at `nebula cache list`")
    return entry_id


def _make_folder(parent: int, name: str, *, close: bool = False) -> int:
    made = False
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent)
        made = True
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        if made:
            # Whatever the umask says: engines in containers run as other users.
            os.fchmod(fd, 0o755)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            raise CacheRefused(f"{name}: something else is in its place", hint="Move it out of the cache") from error
        raise
    if close:
        os.close(fd)
    return fd


@contextmanager
def _parent(folder: int, path: str, *, make: bool) -> Iterator[tuple[int | None, str]]:
    """The open folder that holds a file of a model, and the file's own name in it."""
    reason = why_bad_path(path)
    if reason is not None:
        raise CacheRefused(f"{path[:120]!r} {reason}", hint="Report it to whoever publishes that model")
    *parts, name = path.split("/")
    here: int | None = os.dup(folder)
    try:
        for part in parts:
            try:
                if make and here is not None:
                    following = _make_folder(here, part)
                else:
                    following = os.open(part, _DIRECTORY, dir_fd=here)
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                    raise
                if here is not None:
                    os.close(here)
                here = None
                break
            os.close(here)  # type: ignore[arg-type] # it is open as long as the loop goes on
            here = following
        yield here, name
    finally:
        if here is not None:
            os.close(here)


@contextmanager
def _opened_file(folder: int, path: str, flags: int, *, checked: str | None = None) -> Iterator[int | None]:
    """One plain file, or None. `checked` is the name to be judged where the file's own has `.part` behind it."""
    with _parent(folder, checked or path, make=bool(flags & os.O_CREAT)) as (parent, _):
        fd: int | None = None
        if parent is not None:
            try:
                name = path.rpartition("/")[2]
                fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644, dir_fd=parent)
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO}:
                    raise
        try:
            if fd is not None and not _is_plain(os.fstat(fd), writing=bool(flags & os.O_RDWR)):
                yield None
            else:
                yield fd
        finally:
            if fd is not None:
                os.close(fd)


def _is_plain(found: os.stat_result, *, writing: bool) -> bool:
    """A file, and when it is written to, one that has no other name outside."""
    return stat.S_ISREG(found.st_mode) and (not writing or found.st_nlink == 1)


def _facts(folder: int, path: str, *, checked: str | None = None) -> tuple[int, int] | None:
    with _parent(folder, checked or path, make=False) as (parent, _):
        if parent is None:
            return None
        try:
            found = os.stat(path.rpartition("/")[2], dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def read_manifest(folder: int) -> Manifest | None:
    try:
        fd = os.open(_MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:
            raise
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        content = b""
        while len(content) < _MOST_MANIFEST_BYTES and (chunk := os.read(fd, _CHUNK)):
            content += chunk
        return Manifest.from_json(content)
    except ValueError:
        return None
    finally:
        os.close(fd)


def _write_manifest(folder: int, manifest: Manifest) -> None:
    word = f".nebula-{secrets.token_hex(6)}"
    fd = os.open(word, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        view = memoryview(manifest.to_json().encode())
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        os.unlink(word, dir_fd=folder)
        raise
    os.close(fd)
    os.rename(word, _MANIFEST, src_dir_fd=folder, dst_dir_fd=folder)


def _weigh(folder: int) -> tuple[int, int]:
    """Bytes and files below an open folder, no symlink followed."""
    size = files = 0
    for _, _, names, fd in os.fwalk(".", dir_fd=folder, follow_symlinks=False):
        for name in names:
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                size += found.st_blocks * 512
                files += 1
    return size, files


def _unlink_all(name: str, folder: int) -> None:
    # Looked at first: rmtree opens what it is given, and the opening of a pipe never ends.
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def _lock_facts(content: bytes) -> LockFacts | None:
    try:
        values = json.loads(content)
        return LockFacts(int(values["pid"]), str(values["boot_id"]), float(values["began"]))
    except (ValueError, KeyError, TypeError):
        return None
