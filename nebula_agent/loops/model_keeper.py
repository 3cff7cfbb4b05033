"""Models of this node: which there are, which are on their way, which go when there is no room.

One download per model, whoever waits for it: replicas, commands; a few at once, each in a thread of its own. A
download is tried again with a growing pause unless trying again cannot help, goes on where it stopped, and ends when nobody
waits any more. Room is made for it before it writes: the least recently used models go, never one that is pinned (a
replica runs it or will be started from it), waited for, or locked by another process.
"""

import asyncio
import collections
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from nebula_agent.adapters.cache_folder import CacheFolder, CacheLocked, CacheRefused
from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.model_download import Stopped, Transfer, download
from nebula_agent.adapters.model_place import FetchFailed
from nebula_agent.adapters.model_places import open_place
from nebula_agent.adapters.object_store import S3Access
from nebula_agent.adapters.own_thread import OwnThread
from nebula_agent.decisions.model_cache import CacheLimits, Disk, Entry, FetchProgress, make_room, outdated, overfull
from nebula_agent.decisions.model_files import asks_for_code, entry_file, to_hash, why_damaged
from nebula_agent.decisions.policy import LocalPolicy, why_source_refused
from nebula_core.errors import NebulaError
from nebula_core.records.base import frozen_map
from nebula_core.records.model_source import ModelSource
from nebula_core.records.report import CachedModel, ModelCacheFacts, ModelFetch
from nebula_core.runtime.clock import Clock

log = structlog.get_logger(__name__)

TRIES = 4
#: Between two tries of a download: so long, then twice as long.
PAUSE_SECONDS = 2.0
TELL_SECONDS = 0.5
#: Over which a rate is measured.
RATE_SECONDS = 10.0
#: The disk is looked at so often; others may write to it.
LOOK_SECONDS = 60.0
#: Models a report names; the rest counts in its sums.
MOST_REPORTED = 200
#: A download ends when the disk has less than this left.
LEAST_FREE_BYTES = 64 * 1024**2


class ModelNotHere(NebulaError):
    """A model could not be had or may not be used; the message says what to change."""

    code = "model_not_here"


class Fetch:
    """One model on its way; `here` once it is whole."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.progress = FetchProgress()
        self.here = False
        self.failed: str | None = None
        #: Who waits, with what to call when something changed.
        self.waiters: dict[str, Callable[[], None]] = {}
        self.task: asyncio.Task[None] | None = None
        self.note: str | None = None

    @property
    def over(self) -> bool:
        return self.here or self.failed is not None

    @property
    def words(self) -> str:
        return f"{self.source.text}: {self.failed or self.note or self.progress.words()}"

    def say(self, note: str | None) -> None:
        self.note = note
        self.tell()

    def tell(self) -> None:
        for call in tuple(self.waiters.values()):
            call()


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What of the agent's settings and environment a download needs."""

    limits: CacheLimits
    at_once: int = 2
    env: Mapping[str, str] = field(default_factory=frozen_map)
    s3: S3Access = field(default_factory=S3Access)


class ModelKeeper:
    """`pins` answers ids of models that replicas of this node hold on to."""

    def __init__(
        self,
        folder: CacheFolder,
        settings: CacheSettings,
        policy: LocalPolicy,
        clock: Clock,
        *,
        pause_seconds: float = PAUSE_SECONDS,
        pins: Callable[[], Collection[str]] = lambda: (),
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.entries: tuple[Entry, ...] = ()
        self.disk: Disk | None = None
        self.pins = pins
        self.changed = changed
        self._folder = folder
        self._settings = settings
        self._policy = policy
        self._clock = clock
        self._pause_seconds = pause_seconds
        self._fetches: dict[str, Fetch] = {}
        self._failed: dict[str, ModelFetch] = {}
        self._transfers: set[Transfer] = set()
        self._turns = asyncio.Semaphore(settings.at_once)
        self._looking = asyncio.Lock()
        self._disk = DiskThreads("cache")

    # --- what is here

    async def open(self) -> None:
        """Raises OSError or CacheRefused: the folder cannot be used."""
        await self._disk.do("folder", self._folder.open)
        await self.look()

    async def look(self) -> None:
        """What is on the disk now."""
        async with self._looking:
            former = self.entries
            self.entries, self.disk = await self._disk.do(
                "folder", lambda: (self._folder.entries(), self._folder.disk())
            )
        if former != self.entries:
            self.changed()

    async def iterate(self) -> None:
        """Looks, and tidies: what nobody goes on with, and what is too much for the disk."""
        await self.look()
        now = await self._disk.do("folder", self._folder.now)
        old = outdated(self.entries, self.protected(), now)
        if old:
            await self._remove(old, "nobody goes on with it")
        kept: frozenset[str] = frozenset()
        while self.disk is not None:
            gone = overfull(self.disk, self.entries, self.protected() | kept, self._settings.limits)
            locked = await self._remove_most(gone, "the disk is too full")
            if not locked:
                break
            kept |= locked

    def entry(self, source: ModelSource) -> Entry | None:
        """The whole model, if it is here."""
        return next((each for each in self.entries if each.id == source.id and each.complete), None)

    def path(self, source: ModelSource) -> Path:
        """Where its entry is, or will be."""
        return self._folder.path(source.id)

    def why_refused(self, source: ModelSource) -> str | None:
        return why_source_refused(self._policy, source)

    def protected(self) -> frozenset[str]:
        """Ids that nothing removes."""
        return frozenset(self.pins()) | frozenset(self._fetches)

    async def take(self, source: ModelSource) -> Path:
        """Where an engine finds it, after it was looked through. Raises ModelNotHere; what is damaged is fetched anew."""
        damaged, asks = await self._disk.do(source.id, self._look_through, source)
        if damaged is not None:
            await self.look()
            raise ModelNotHere(
                f"model {source.text}: {damaged}", hint="What is damaged is fetched again at the next start"
            )
        if asks is not None and not source.code and not self._policy.auto_map:
            raise ModelNotHere(
                f"model {source.text}: its {asks} names code of its own (auto_map), which is not run",
                hint="Set args.trust-remote-code where the policy of this node allows it, or `auto_map` in that policy "
                "if the engine knows the model without its code",
            )
        manifest = await self._disk.do(source.id, self._folder.manifest, source.id)
        file = None if manifest is None else entry_file(source.weights, (each.path for each in manifest.files))
        path = self._folder.path(source.id)
        return path if file is None else path / file

    def _look_through(self, source: ModelSource) -> tuple[str | None, str | None]:
        """What is damaged, and which file asks for code."""
        folder = self._folder
        manifest = folder.manifest(source.id)
        if manifest is None:
            return "it is not on this node any more", None
        seen = folder.facts(manifest)
        damaged = why_damaged(manifest, seen)
        bad = damaged.partition(" ")[0] if damaged is not None else ""
        if damaged is None:
            for file in to_hash(manifest, seen):
                if folder.sha256(manifest.id, file.path) != file.sha256:
                    damaged, bad = f"{file.path} is damaged: its checksum is not the one it was fetched with", file.path
                    break
        if damaged is not None:
            log.error("model_damaged", model=source.text, reason=damaged)
            folder.demote(manifest.id, bad)
            return damaged, None
        folder.touch(manifest.id)
        for file in manifest.files:
            if file.path.endswith(".json") and "/" not in file.path:
                content = folder.read(manifest.id, file.path, file.size + 1)
                if content is not None and asks_for_code(file.path, content):
                    return None, file.path
        return None, None

    def reported(self) -> tuple[CachedModel, ...]:
        protected = self.protected()
        entries = sorted(self.entries, key=lambda each: -each.used_at)[:MOST_REPORTED]
        return tuple(
            CachedModel(
                id=each.id,
                source=each.source,
                size_bytes=each.size_bytes,
                files=each.files,
                complete=each.complete,
                in_use=each.id in protected,
                used_at=round(each.used_at),
                revision=each.revision,
                digest=each.digest,
            )
            for each in sorted(entries, key=lambda each: (each.source, each.id))
        )

    def facts(self) -> ModelCacheFacts | None:
        disk = self.disk
        if disk is None:
            return None
        limits = self._settings.limits
        free = {each.id for each in self.entries} - self.protected()
        # To the MiB: a report that differs is sent whole.
        return ModelCacheFacts(
            used_bytes=sum(each.size_bytes for each in self.entries),
            evictable_bytes=sum(each.size_bytes for each in self.entries if each.id in free),
            room_bytes=_rounded(max(0, disk.free_bytes - int(disk.total_bytes * (1 - limits.high)))),
            max_bytes=limits.max_bytes,
            models=len(self.entries),
        )

    def fetches(self) -> tuple[ModelFetch, ...]:
        """On their way, and those that failed lately."""
        under_way = {
            name: ModelFetch(
                source=each.source.text,
                id=name,
                progress=None if each.progress.ratio is None else round(each.progress.ratio, 2),
                done_bytes=each.progress.done_bytes,
                total_bytes=each.progress.total_bytes,
                message=each.words,
            )
            for name, each in self._fetches.items()
            if not each.over
        }
        every = {**self._failed, **under_way}
        return tuple(every[name] for name in sorted(every)[:MOST_REPORTED])

    # --- fetching

    def want(self, source: ModelSource, who: str, call: Callable[[], None]) -> Fetch:
        """The download of this model, begun if nobody waits for it yet; `call` is called when something of it changed."""
        fetch = self._fetches.get(source.id)
        if fetch is None or fetch.over:
            fetch = self._fetches[source.id] = Fetch(source)
            fetch.task = asyncio.create_task(self._run(fetch), name=f"fetch:{source.id}")
        fetch.waiters[who] = call
        return fetch

    def let_go(self, fetch: Fetch, who: str) -> None:
        """Nobody waits: it ends, and what came stays for the next time."""
        fetch.waiters.pop(who, None)
        if not fetch.waiters:
            if fetch.task is not None:
                fetch.task.cancel()
            if self._fetches.get(fetch.source.id) is fetch:
                del self._fetches[fetch.source.id]
            self.changed()

    async def close(self) -> None:
        tasks = [each.task for each in self._fetches.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for transfer in self._transfers:
            transfer.stop()

    async def _run(self, fetch: Fetch) -> None:
        source, pause = fetch.source, self._pause_seconds
        self._failed.pop(source.id, None)
        log.info("model_fetching", model=source.text, id=source.id)
        tries, reason = 0, None
        while True:
            try:
                if self._turns.locked():
                    fetch.say("waits for another download")
                async with self._turns:
                    fetch.say(None)
                    await self._try(fetch)
                reason = None
                break
            except CacheLocked as error:
                fetch.say(error.message)
                await self._clock.sleep(1.0)
            except (NebulaError, OSError) as error:
                tries += 1
                reason = _words(error)
                log.warning("model_fetch_failed", model=source.text, attempt=tries, error=str(error))
                if (
                    tries == TRIES
                    or isinstance(error, CacheRefused)
                    or (isinstance(error, FetchFailed) and error.final)
                ):
                    break
                fetch.say(f"try {tries} of {TRIES} failed: {reason[:300]}")
                await self._clock.sleep(pause)
                pause *= 2
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.exception("model_fetch_broke", model=source.text)
                reason = f"the agent failed: {type(error).__name__}"
                break
        try:
            await self.look()
        except OSError as error:
            # Whoever waits for this model must hear of its end, whatever the disk says.
            reason = reason or f"the cache cannot be read: {error}"
        if reason is None:
            fetch.here = True
            log.info("model_fetched", model=source.text, id=source.id)
        else:
            fetch.failed = reason
            self._failed[source.id] = ModelFetch(source=source.text, id=source.id, message=reason, failed=True)
            while len(self._failed) > MOST_REPORTED:
                del self._failed[next(iter(self._failed))]
        fetch.tell()
        self.changed()

    async def _try(self, fetch: Fetch) -> None:
        """One try, in a thread that also ends when this task is cancelled: within one chunk, or the limit of a read."""
        source, settings = fetch.source, self._settings
        transfer, thread = Transfer(), OwnThread(f"fetch-{source.id}")
        self._transfers.add(transfer)
        working = thread.ask(
            lambda: download(
                source,
                lambda: open_place(source, self._policy, settings.env, settings.s3),
                self._folder,
                transfer,
                pickled=self._policy.pickled_weights,
            )
        )
        rate = _Rate()
        try:
            while not working.done():
                await asyncio.wait({working}, timeout=TELL_SECONDS)
                await self._watch(fetch, transfer, rate)
            working.result()
        except Stopped as error:
            raise asyncio.CancelledError from error
        finally:
            transfer.stop()
            thread.close()
            self._transfers.discard(transfer)

    async def _watch(self, fetch: Fetch, transfer: Transfer, rate: "_Rate") -> None:
        if transfer.missing_bytes is not None and not transfer.roomy.is_set():
            reason = await self._make_room(transfer.missing_bytes)
            if reason is not None:
                transfer.stop(reason)
            transfer.roomy.set()
        elif transfer.roomy.is_set():
            disk = await self._disk.do("fill", self._folder.disk)
            if disk.free_bytes < LEAST_FREE_BYTES:
                transfer.stop("disk full while it was fetched; make room, or place it elsewhere")
        fetch.progress = FetchProgress(
            transfer.done_bytes,
            transfer.total_bytes,
            rate.of(transfer.done_bytes, self._clock.monotonic()),
        )
        fetch.tell()
        self.changed()

    # --- evicting

    async def evict(self, ids: Collection[str] | None = None) -> tuple[Entry, ...]:
        """Removes these, or everything that nothing needs. Raises ModelNotHere when one of them is in use or unknown."""
        await self.look()
        protected = self.protected()
        by_id = {each.id: each for each in self.entries}
        for each in ids or ():
            if each not in by_id:
                raise ModelNotHere(f"there is no model {each} on this node", hint="Look at `nebula cache list`")
            if each in protected:
                raise ModelNotHere(
                    f"{by_id[each].source} is in use on this node", hint="Stop its replicas there, or move them away"
                )
        wanted = by_id if ids is None else dict.fromkeys(ids)
        gone = [by_id[each] for each in wanted if each not in protected]
        return await self._remove(gone, "an operator asked for it")

    def find(self, source: str) -> tuple[Entry, ...]:
        """Entries by their id, or by the source they were fetched from."""
        return tuple(each for each in self.entries if source in {each.id, each.source})

    async def _make_room(self, missing: int) -> str | None:
        """Why there is none."""
        await self.look()
        kept: frozenset[str] = frozenset()
        while self.disk is not None:
            room = make_room(missing, self.disk, self.entries, self.protected() | kept, self._settings.limits)
            locked = await self._remove_most(room.evict, f"room for {missing} bytes")
            if not locked:
                return room.reason
            kept |= locked
        return None

    async def _remove_most(self, entries: Collection[Entry], why: str) -> frozenset[str]:
        """Ids of those that stayed: another process is busy with them, or they came into use; others go in their place.

        When none stayed nothing more is to go, whatever the disk says: it frees what is still open somewhere only later.
        """
        gone = await self._remove(entries, why) if entries else ()
        return frozenset(each.id for each in entries) - {each.id for each in gone}

    async def _remove(self, entries: Collection[Entry], why: str) -> tuple[Entry, ...]:
        gone: list[Entry] = []
        for entry in entries:
            # Asked anew before each: a replica may have been placed meanwhile.
            if entry.id in self.protected():
                continue
            try:
                await self._disk.do(entry.id, self._folder.remove, entry.id)
            except (NebulaError, OSError) as error:
                log.info("model_kept", model=entry.source, reason=str(error))
                continue
            gone.append(entry)
            log.info("model_evicted", model=entry.source, id=entry.id, freed_bytes=entry.size_bytes, reason=why)
        await self.look()
        return tuple(gone)


class _Rate:
    """Bytes per second over the last seconds."""

    def __init__(self) -> None:
        self._points: collections.deque[tuple[float, int]] = collections.deque(maxlen=64)

    def of(self, done: int, now: float) -> float | None:
        points = self._points
        points.append((now, done))
        while len(points) > 2 and now - points[0][0] > RATE_SECONDS:
            points.popleft()
        span = now - points[0][0]
        return None if span <= 0 else max(0.0, (done - points[0][1]) / span)


def _words(error: NebulaError | OSError) -> str:
    if isinstance(error, NebulaError):
        return str(error)
    return f"the cache cannot be written: {error.strerror or error}"


def _rounded(count: int) -> int:
    return count >> 20 << 20
