"""Which images a node may let go of, and whether the one it has is the one that is meant."""

from collections.abc import Collection, Iterable

from nebula_core.records.base import Record
from nebula_core.records.image_ref import ImageRef, is_it, parse_image


class LocalImage(Record):
    """An image on this node, as its runtime has it."""

    #: `sha256:…` of its configuration: what containers are made of.
    id: str
    #: `repository:tag`, as the runtime writes them.
    tags: tuple[str, ...] = ()
    #: `repository@sha256:…`: what registries call it.
    digests: tuple[str, ...] = ()
    size_bytes: int | None = None
    #: Unix seconds.
    created_at: float | None = None

    def has_digest(self, digest: str) -> bool:
        return any(one.rpartition("@")[2] == digest for one in self.digests)

    def digest_of(self, name: str) -> str | None:
        """What the registry calls this content under the name `registry/repository`."""
        for one in self.digests:
            found = parse_image(one)
            if found is not None and found.name == name:
                return found.digest
        return None


def find_local(images: Iterable[LocalImage], wanted: ImageRef) -> LocalImage | None:
    """The image on this node that is `wanted`: by digest where one is said, else by its tag."""
    return next((image for image in images if is_it(wanted, image.id, image.tags, image.digests)), None)


def why_not_it(image: LocalImage | None, wanted: ImageRef) -> str | None:
    """After a pull: why what is there now may not be started in the place of `wanted`."""
    if image is None:
        return f"after the pull there is no {wanted.short} on this node"
    if wanted.digest is not None and not image.has_digest(wanted.digest):
        have = image.digest_of(wanted.name) or "none"
        return f"{wanted.short} was pulled and is something else now: its digest is {have[:19]}; the tag was moved"
    return None


def unused(images: Iterable[LocalImage], *, in_use: Collection[str], pinned: Collection[str]) -> list[LocalImage]:
    """Those that nothing needs, largest first. `in_use`: ids of images of any container; `pinned`: ids or digests."""
    free = [
        image
        for image in images
        if image.id not in in_use
        and image.id not in pinned
        and not any(one.rpartition("@")[2] in pinned for one in image.digests)
    ]
    return sorted(free, key=lambda image: (-(image.size_bytes or 0), image.id))


def known_size(images: Iterable[LocalImage], wanted: ImageRef, said: int | None) -> int | None:
    """What a pull will need, before its first byte: as the catalog says, or as large as the largest of the same name."""
    if said is not None:
        return said
    sizes = [
        image.size_bytes
        for image in images
        if image.size_bytes is not None
        and any(
            (found := parse_image(one)) is not None and found.name == wanted.name
            for one in (*image.tags, *image.digests)
        )
    ]
    return max(sizes, default=None)
