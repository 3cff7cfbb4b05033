"""Names of images, in one form: registry, repository, tag, digest (as `docker pull` reads them).

    vllm/vllm-openai:v0.32.0        docker.io / vllm/vllm-openai / v0.32.0
    localhost:5000/x@sha256:…       localhost:5000 / x / – / sha256:…

The first part is a registry only when it has a dot or a port or is `localhost`; a bare word is one of Docker Hub's
`library/` images. A digest names content and cannot move; a tag is whatever the registry says today.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*(?::[0-9]{1,5})?"
_REFERENCE = re.compile(
    rf"(?P<name>(?:{_HOST}/)?{_PART}(?:/{_PART})*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: Longer ones are no names.
_LONGEST = 512
HUB = "docker.io"


@dataclass(frozen=True, slots=True)
class ImageRef:
    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def text(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def short(self) -> str:
        """As people write it: without Docker Hub's name, and with the first digits of a digest."""
        name = self.name.removeprefix(f"{HUB}/").removeprefix("library/") if self.registry == HUB else self.name
        tag = f":{self.tag}" if self.tag else ""
        return f"{name}{tag}" + (f"@{self.digest[:19]}" if self.digest else "")

    def pinned(self, digest: str) -> "ImageRef":
        return replace(self, digest=digest)


def parse_image(text: str) -> ImageRef | None:
    """The parts of a reference; `latest` where neither tag nor digest is said; None when it is none."""
    found = _REFERENCE.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        return None
    name, tag, digest = found["name"], found["tag"], found["digest"]
    head, slash, rest = name.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        registry, repository = head, rest
    elif name != name.lower():
        return None
    else:
        registry, repository = HUB, name if slash else f"library/{name}"
    if registry in {"index.docker.io", "registry-1.docker.io"}:
        registry = HUB
    return ImageRef(registry, repository, tag or (None if digest else "latest"), digest)


def is_it(wanted: ImageRef, image_id: str, tags: Iterable[str], digests: Iterable[str]) -> bool:
    """Whether an image with these names is `wanted`: by digest where one is said, else by its tag."""
    if wanted.digest is not None:
        return image_id == wanted.digest or any(one.rpartition("@")[2] == wanted.digest for one in digests)
    return any(parse_image(tag) == wanted for tag in tags)


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None
