"""Images of this node: which there are, which are on their way, which may go.

One pull per image, whoever waits for it: replicas, commands. A pull asks the registry what the tag means, checks that the
policy allows that very content and that the disk holds it, pulls it by its digest, and looks whether that is what came. It is
tried three times with a growing pause, unless trying again cannot help, and given up when nobody waits any more.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping

import structlog

from nebula_agent.adapters.disk_threads import DiskSilent, DiskThreads
from nebula_agent.adapters.docker_engine import ContainerEngine, DockerRefused, DockerUnavailable, EngineFacts
from nebula_agent.decisions.catalog import CatalogEntry, repositories
from nebula_agent.decisions.images import LocalImage, find_local, known_size, unused, why_not_it
from nebula_agent.decisions.policy import LocalPolicy, why_image_refused
from nebula_agent.decisions.pull import TRIES, PullProgress, describe_pull_failure, is_final, why_no_room
from nebula_core.errors import NebulaError
from nebula_core.records.image_ref import ImageRef
from nebula_core.records.report import ImagePull, NodeImage
from nebula_core.runtime.clock import Clock

log = structlog.get_logger(__name__)

#: Others may pull and remove images too.
LOOK_SECONDS = 30.0
#: Between two tries of a pull: so long, then twice as long.
PAUSE_SECONDS = 2.0
#: The disk is looked at so often while a pull runs, and waiters are told.
TELL_SECONDS = 0.5
#: How long a look at what is free waits for that disk.
ROOM_SECONDS = 3.0
#: A pull that failed is shown for so long, and so many at most.
FAILED_SECONDS = 3600.0
MOST_FAILED = 32


class ImageNotPulled(NebulaError):
    """An image could not be had; the message says what of the registry, the disk or the policy to change."""

    code = "image_not_pulled"


class _NoRoom(Exception):
    pass


class Pull:
    """One image on its way; `image` once it is there."""

    def __init__(self, wanted: ImageRef) -> None:
        self.wanted = wanted
        self.progress = PullProgress()
        self.image: LocalImage | None = None
        self.digest: str | None = None
        self.failed: str | None = None
        #: Who waits, with what to call when something changed.
        self.waiters: dict[str, Callable[[], None]] = {}
        self.task: asyncio.Task[None] | None = None
        self._note: str | None = None

    @property
    def over(self) -> bool:
        return self.image is not None or self.failed is not None

    @property
    def words(self) -> str:
        how = self._note or self.progress.words()
        return f"{self.wanted.short}: {how}"

    def say(self, note: str | None) -> None:
        self._note = note
        self.tell()

    def tell(self) -> None:
        for call in tuple(self.waiters.values()):
            call()


class ImageKeeper:
    """`pins` answers digests and ids that replicas of this node hold on to."""

    def __init__(
        self,
        engine: ContainerEngine,
        facts: Callable[[], EngineFacts | None],
        catalog: Collection[CatalogEntry],
        policy: LocalPolicy,
        clock: Clock,
        *,
        stall_seconds: float,
        pause_seconds: float = PAUSE_SECONDS,
        pins: Callable[[], Collection[str]] = lambda: (),
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        #: None: Docker has not answered yet.
        self.images: tuple[LocalImage, ...] | None = None
        self.catalog = tuple(catalog)
        self.pins = pins
        self.changed = changed
        self._engine = engine
        self._facts = facts
        self._policy = policy
        self._clock = clock
        self._stall_seconds = stall_seconds
        self._pause_seconds = pause_seconds
        self._repositories = repositories(catalog)
        self._in_use: frozenset[str] = frozenset()
        self._pulls: dict[str, Pull] = {}
        #: When each failed, monotonic seconds, oldest first.
        self._failed: dict[str, tuple[float, ImagePull]] = {}
        self._looking = asyncio.Lock()
        self._disk = DiskThreads("images")

    # --- what is here

    async def look(self) -> None:
        """Asks the daemon. Raises DockerUnavailable or DockerRefused."""
        async with self._looking:
            former = (self.images, self._in_use)
            self.images = tuple(await self._engine.images())
            self._in_use = await self._engine.images_in_use()
        if former != (self.images, self._in_use):
            self.changed()

    def local(self, wanted: ImageRef) -> LocalImage | None:
        return find_local(self.images or (), wanted)

    def why_refused(self, wanted: ImageRef) -> str | None:
        """By the policy of this node, as far as the name tells."""
        return why_image_refused(self._policy, wanted, self._repositories)

    def may_be_allowed(self, wanted: ImageRef) -> bool:
        """Whether the name is allowed, or a digest of it could be: then the registry has to say which it is."""
        if self.why_refused(wanted) is None:
            return True
        entries = self._policy.images or ()
        return wanted.digest is None and any("sha256:" in entry for entry in entries)

    def reported(self) -> tuple[NodeImage, ...] | None:
        if self.images is None:
            return None
        pins = frozenset(self.pins())
        return tuple(
            NodeImage(
                id=image.id,
                tags=image.tags,
                digests=image.digests,
                size_bytes=image.size_bytes,
                in_use=image.id in self._in_use,
                pinned=image.id in pins or any(one.rpartition("@")[2] in pins for one in image.digests),
            )
            for image in sorted(self.images, key=lambda image: (image.tags, image.id))
        )

    def pulls(self) -> tuple[ImagePull, ...]:
        """On their way, and those that failed lately."""
        on_their_way = {
            name: ImagePull(image=pull.wanted.short, progress=_rounded(pull.progress.ratio), message=pull.words)
            for name, pull in self._pulls.items()
            if not pull.over
        }
        since = self._clock.monotonic() - FAILED_SECONDS
        shown = {name: told for name, (at, told) in self._failed.items() if at > since} | on_their_way
        return tuple(shown[name] for name in sorted(shown))

    # --- pulling

    def want(self, wanted: ImageRef, who: str, call: Callable[[], None], *, size_bytes: int | None = None) -> Pull:
        """The pull of this image, begun if nobody waits for it yet; `call` is called when something of it changed."""
        pull = self._pulls.get(wanted.text)
        if pull is None or pull.over:
            pull = self._pulls[wanted.text] = Pull(wanted)
            pull.task = asyncio.create_task(self._pull(pull, size_bytes), name=f"pull:{wanted.short}")
        pull.waiters[who] = call
        return pull

    def let_go(self, pull: Pull, who: str) -> None:
        """Nobody waits: it ends."""
        pull.waiters.pop(who, None)
        if not pull.waiters:
            if pull.task is not None:
                pull.task.cancel()
            if self._pulls.get(pull.wanted.text) is pull:
                del self._pulls[pull.wanted.text]
            self.changed()

    async def close(self) -> None:
        tasks = [pull.task for pull in self._pulls.values() if pull.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pull(self, pull: Pull, size_bytes: int | None) -> None:
        wanted, pause = pull.wanted, self._pause_seconds
        self._failed.pop(wanted.text, None)
        log.info("image_pulling", image=wanted.text)
        reason = ""
        try:
            for attempt in range(1, TRIES + 1):
                try:
                    await self._try(pull, size_bytes)
                    log.info("image_pulled", image=wanted.text, digest=pull.digest)
                    break
                except _NoRoom as error:
                    reason = str(error)
                    break
                except ImageNotPulled as error:
                    reason = error.message
                    break
                except (DockerUnavailable, DockerRefused) as error:
                    reason = describe_pull_failure(error.message)
                    log.warning("image_pull_failed", image=wanted.text, attempt=attempt, error=error.message)
                    if attempt == TRIES or is_final(error.message):
                        break
                    pull.say(f"try {attempt} of {TRIES} failed: {reason[:160]}")
                    await self._clock.sleep(pause)
                    pause *= 2
                    pull.say(None)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("image_pull_broke", image=wanted.text)
            reason = f"the agent failed: {type(error).__name__}"
        if pull.image is None:
            pull.failed = reason
            told = ImagePull(image=wanted.short, message=reason, failed=True)
            self._failed[wanted.text] = (self._clock.monotonic(), told)
            while len(self._failed) > MOST_FAILED:
                del self._failed[next(iter(self._failed))]
        pull.tell()
        self.changed()

    async def _try(self, pull: Pull, size_bytes: int | None) -> None:
        wanted = pull.wanted
        exact = wanted
        if wanted.digest is None:
            exact = wanted.pinned(await self._engine.remote_digest(wanted))
        refused = self.why_refused(exact)
        if refused is not None:
            raise ImageNotPulled(refused)
        await self.look()
        if self.local(exact) is None:
            await self._fetch(pull, exact, size_bytes)
            await self.look()
        image = find_local(self.images or (), exact)
        wrong = why_not_it(image, exact)
        if wrong is not None or image is None:
            raise ImageNotPulled(wrong or "it is not there")
        if exact.tag is not None and self.local(ImageRef(exact.registry, exact.repository, exact.tag)) != image:
            await self._engine.tag_image(image.id, exact)
            await self.look()
        pull.image, pull.digest = image, exact.digest

    async def _fetch(self, pull: Pull, exact: ImageRef, size_bytes: int | None) -> None:
        facts = self._facts()
        where = "Docker on this node" if facts is None else facts.root_dir
        expected = known_size(self.images or (), exact, size_bytes)
        reason = why_no_room(expected, await self._free_bytes(facts), where)
        if reason is not None:
            raise _NoRoom(reason)
        pull.progress = PullProgress()
        told_at = self._clock.monotonic()
        full: list[str] = []
        looking: asyncio.Task[None] | None = None

        async def look() -> None:
            reason = why_no_room(pull.progress.missing_bytes, await self._free_bytes(facts), where)
            if reason is not None:
                full.append(reason)
                working.cancel()

        def heard(message: Mapping[str, object]) -> None:
            nonlocal told_at, looking
            former, pull.progress = pull.progress, pull.progress.heard(message)
            now = self._clock.monotonic()
            due = now - told_at >= TELL_SECONDS
            # When another layer has begun, more is known to come.
            if (due or former.total_bytes != pull.progress.total_bytes) and (looking is None or looking.done()):
                looking = asyncio.create_task(look(), name=f"room:{exact.short}")
            if due:
                told_at = now
                pull.tell()
                self.changed()

        pull.tell()
        working = asyncio.ensure_future(self._engine.pull(exact, heard, stall_seconds=self._stall_seconds))
        try:
            await working
        except asyncio.CancelledError:
            if full:
                raise _NoRoom(full[0]) from None
            working.cancel()
            raise
        finally:
            if looking is not None:
                looking.cancel()

    async def _free_bytes(self, facts: EngineFacts | None) -> int | None:
        """On the daemon's disk; None where that is not known, or not told in time."""
        try:
            return None if facts is None else await self._disk.look(ROOM_SECONDS, _free, facts)
        except DiskSilent:
            return None

    # --- pruning

    async def prune(self) -> tuple[tuple[LocalImage, ...], int]:
        """Removes what nothing needs; which those were, and the bytes freed. Raises DockerUnavailable or DockerRefused."""
        await self.look()
        pulling = {pull.wanted.digest for pull in self._pulls.values() if pull.wanted.digest} | {
            pull.digest for pull in self._pulls.values() if pull.digest
        }
        removed: list[LocalImage] = []
        for image in unused(self.images or (), in_use=self._in_use, pinned={*self.pins(), *pulling}):
            try:
                # Each name by itself: by id, Docker refuses an image of several names.
                for name in (*image.tags, *(image.digests if not image.tags else ())):
                    await self._engine.remove_image(name)
                if not image.tags and not image.digests:
                    await self._engine.remove_image(image.id)
            except DockerRefused as error:
                # Somebody made a container of it meanwhile, or another image stands on it.
                log.info("image_kept", image=image.id, reason=error.message)
                continue
            removed.append(image)
        await self.look()
        left = {image.id for image in self.images or ()}
        gone = tuple(image for image in removed if image.id not in left)
        freed = sum(image.size_bytes or 0 for image in gone)
        log.info("images_pruned", images=[image.tags or image.id for image in gone], freed_bytes=freed)
        return gone, freed


def _free(facts: EngineFacts) -> int | None:
    """Blocks for the disk's time."""
    return facts.free_bytes


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 2)
