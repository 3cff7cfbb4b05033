"""The image of one replica's next start: which it is, whether it may run here, and whether it is here.

A tag is resolved once per replica and kept on disk: a replica that is restarted comes up from the same content, whatever
was pushed under that tag since. With `image_tag = "rolling"` the registry is asked before every start instead.
"""

from collections.abc import Callable

from nebula_agent.adapters.runtime import StartImage
from nebula_agent.decisions.catalog import CatalogEntry
from nebula_agent.decisions.lifecycle import ImageState
from nebula_agent.loops.context import Context
from nebula_agent.loops.how_run import catalog_entry
from nebula_agent.loops.image_keeper import Pull
from nebula_agent.loops.replica_book import ReplicaBook
from nebula_core.errors import NebulaError
from nebula_core.records.base import frozen_map
from nebula_core.records.image_ref import ImageRef, parse_image
from nebula_core.records.placement import Placement


class NextImage:
    """Owned by the replica's owner; `call` wakes it."""

    def __init__(self, book: ReplicaBook, context: Context, call: Callable[[], None]) -> None:
        self._book = book
        self._context = context
        self._call = call
        self._pull: Pull | None = None

    def state(self, placement: Placement) -> ImageState | None:
        """What there is to wait for; None: nothing."""
        wanted = self._wanted(placement)
        if wanted is None or self._ready(placement, wanted) is not None:
            return None
        pull = self._pull
        if pull is None:
            return ImageState(f"{wanted.short}: not on this node")
        return ImageState(pull.words, pull.failed)

    def begin(self, placement: Placement) -> None:
        """Begins to pull it, or joins those who wait for it already."""
        self.let_go()
        keeper, entry = self._context.images, catalog_entry(placement, self._context)
        wanted = self._wanted(placement)
        if keeper is not None and wanted is not None and isinstance(entry, CatalogEntry):
            self._pull = keeper.want(wanted, self._book.replica, self._call, size_bytes=entry.size_bytes)

    def let_go(self) -> None:
        """It is not waited for any more, or the start has been made."""
        pull, self._pull = self._pull, None
        if pull is not None and self._context.images is not None:
            self._context.images.let_go(pull, self._book.replica)

    async def take(self, placement: Placement) -> StartImage | None:
        """What the start is made of; its meaning is kept on disk before. Raises NebulaError when it is gone again."""
        wanted = self._wanted(placement)
        if wanted is None:
            return None
        found = self._ready(placement, wanted)
        if found is None:
            raise NebulaError(f"image {wanted.short} is not on this node any more", hint="It will be pulled again")
        await self._book.keep(image=found.reference, image_digest=found.digest)
        return found

    def _wanted(self, placement: Placement) -> ImageRef | None:
        entry = catalog_entry(placement, self._context)
        named = parse_image(entry.image) if isinstance(entry, CatalogEntry) else None
        if named is None or named.digest is not None or placement.spec.image_tag == "rolling":
            return named
        kept = self._book.kept
        if kept.image == named.text and kept.image_digest is not None:
            return named.pinned(kept.image_digest)
        return named

    def _ready(self, placement: Placement, wanted: ImageRef) -> StartImage | None:
        keeper, entry = self._context.images, catalog_entry(placement, self._context)
        if keeper is None or not isinstance(entry, CatalogEntry):
            return None
        pull = self._pull
        local = pull.image if pull is not None and pull.wanted == wanted else None
        digest = pull.digest if local is not None and pull is not None else wanted.digest
        if local is None:
            if placement.spec.image_tag == "rolling" and wanted.digest is None:
                # Only the registry knows what it means today.
                return None
            local = keeper.local(wanted)
            if local is None:
                return None
            digest = digest or local.digest_of(wanted.name)
        judged = wanted if digest is None or wanted.digest is not None else wanted.pinned(digest)
        if keeper.why_refused(judged) is not None:
            # What is here under this tag is not what is allowed; the registry may have what is.
            return None
        reference = ImageRef(wanted.registry, wanted.repository, wanted.tag, None if wanted.tag else wanted.digest)
        return StartImage(local.id, reference.text, digest, frozen_map(entry.env))
