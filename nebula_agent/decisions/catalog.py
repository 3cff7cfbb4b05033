"""Which image serves a deployment that says `image = "auto"`: (hardware, engine, model) → image.

The catalog is a list; the first entry that fits wins, so an operator's entries stand before those Nebula comes with.
An entry fits when the engine is the same, the hardware (the maker of the node's GPUs: nvidia, huawei, amd; or cpu) is
named or left open, and the source matches its pattern.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from nebula_core.records.base import Record
from nebula_core.records.deployment import DeploymentSpec, EngineKind
from nebula_core.records.image_ref import ImageRef, parse_image

Hardware = Literal["nvidia", "huawei", "amd", "cpu"]


class CatalogEntry(Record):
    engine: EngineKind
    #: None: any.
    hardware: Hardware | None = None
    #: A pattern of sources, e.g. `deepseek-ai/*`.
    model: str = "*"
    image: str
    #: The engine's program inside; its options follow.
    program: str
    #: Of the engine inside, where it decides about options; None is unknown.
    version: tuple[int, ...] | None = None
    #: Added to the environment of the engine.
    env: dict[str, str] = Field(default_factory=dict)
    #: On disk, for the check before the first pull; None is unknown.
    size_bytes: int | None = Field(default=None, ge=0)


def hardware_of(vendors: Iterable[str], *, gpus: int) -> Hardware:
    """What a replica with so many GPUs runs on, on a node with GPUs of these makers."""
    found = set(vendors)
    if gpus == 0 or not found:
        return "cpu"
    if "ascend" in found:
        return "huawei"
    for known in ("nvidia", "huawei", "amd"):
        if known in found:
            return known
    return "nvidia"


def choose(catalog: Sequence[CatalogEntry], spec: DeploymentSpec, hardware: Hardware) -> CatalogEntry | None:
    """The first entry that fits."""
    return next((entry for entry in catalog if _fits(entry, spec, hardware)), None)


def entry_for(catalog: Sequence[CatalogEntry], spec: DeploymentSpec, hardware: Hardware) -> CatalogEntry | str:
    """The image of a deployment with what is known of it, or why there is none.

    A named image takes program and environment from the entry of the same repository, else from the one `auto` would take.
    """
    if spec.image == "auto":
        found = choose(catalog, spec, hardware)
        if found is None:
            return f"the catalog has no image of {spec.engine} for {hardware}; name one in `image`, or add it there"
        return found
    named = parse_image(spec.image)
    if named is None:
        return f"{spec.image[:200]!r} is no name of an image; write registry/repository:tag or …@sha256:…"
    same = (entry for entry in catalog if entry.engine == spec.engine and _name(entry) == named.name)
    base = next(same, None)
    if base is not None:
        # Another tag may hold another version: what only holds for the entry's own is left out.
        known = parse_image(base.image)
        version = base.version if known is not None and known.tag == named.tag else None
        return base.model_copy(update={"image": spec.image, "version": version, "size_bytes": None})
    base = choose(catalog, spec, hardware) or next((one for one in catalog if one.engine == spec.engine), None)
    if base is None:
        return f"the catalog does not know how {spec.engine} is started in a container; add an entry with its program"
    return base.model_copy(update={"image": spec.image, "version": None, "size_bytes": None})


def repositories(catalog: Iterable[CatalogEntry]) -> tuple[str, ...]:
    """Where the images of a catalog come from."""
    return tuple(sorted({name for entry in catalog if (name := _name(entry)) is not None}))


def _name(entry: CatalogEntry) -> str | None:
    found: ImageRef | None = parse_image(entry.image)
    return None if found is None else found.name


def _fits(entry: CatalogEntry, spec: DeploymentSpec, hardware: Hardware) -> bool:
    return entry.engine == spec.engine and entry.hardware in {None, hardware} and fnmatchcase(spec.source, entry.model)
