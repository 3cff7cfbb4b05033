"""What a deployment's `source` means: which kind of place a model comes from, and what it is called there.

    Qwen/Qwen2.5-7B-Instruct[@revision][:pick]   a model hub that speaks Hugging Face's API; `pick` for GGUF: a quantisation
    modelscope:Qwen/Qwen2.5-7B-Instruct[@rev]    ModelScope
    s3:bucket/prefix, s3://bucket/prefix         an object store that speaks S3
    nfs:/mnt/nas/qwen                            a path, used where it is
    nfs+copy:/mnt/nas/qwen                       a path, copied to this node's disk first
    /models/qwen, ./qwen                         a path

No name of the outside ever becomes a path on this node: a source that is kept here has an id, made of a digest of all
that it means (reliability T21, C15).
"""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from posixpath import normpath
from typing import Literal

from nebula_core.records.deployment import DeploymentSpec

Weights = Literal["safetensors", "gguf"]


class SourceKind(StrEnum):
    HUB = "hub"
    MODELSCOPE = "modelscope"
    S3 = "s3"
    #: A path that is copied to the cache.
    COPY = "copy"
    #: A path that is used where it is.
    PATH = "path"


_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(
    rf"(?P<name>{_PART}(?:/{_PART})?)(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,127}}))?(?::(?P<pick>[A-Za-z0-9._-]{{1,64}}))?"
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[A-Za-z0-9!_.*'()=+@ -]{1,255}){0,20}/?")
#: Of an entry in the cache: it is a name of a folder and nothing else.
ENTRY_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,47}-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One model as a deployment names it."""

    kind: SourceKind
    #: As it was written.
    text: str
    #: At its place: `Qwen/Qwen2.5-7B`, `bucket/prefix`, an absolute path.
    name: str
    revision: str | None = None
    weights: Weights = "safetensors"
    #: Of several GGUF files, those with this in their name.
    pick: str | None = None
    #: Its own Python code is fetched with it.
    code: bool = False

    @property
    def kept(self) -> bool:
        """Whether it is fetched to this node's cache."""
        return self.kind is not SourceKind.PATH

    @property
    def id(self) -> str:
        """Of its entry in the cache: 16 hex digits of SHA-256 over all that it means, after a word for people."""
        meaning = "\n".join(
            (self.kind, self.name, self.revision or "", self.weights, self.pick or "", "code" if self.code else "")
        )
        word = re.sub(r"[^a-z0-9]+", "-", self.name.rpartition("/")[2].lower()).strip("-")[:40] or "model"
        return f"{word}-{hashlib.sha256(meaning.encode()).hexdigest()[:16]}"


def read_source(text: str, *, engine: str = "vllm", code: bool = False) -> ModelSource | str:
    """What a source means for this kind of engine; or why it means nothing, with what to write."""
    weights: Weights = "gguf" if engine == "llamacpp" else "safetensors"
    if not text.isprintable():
        # Lone surrogates are among these: they cannot be written as UTF-8, in a digest or anywhere else.
        return f"{text[:200]!a} is no source: it holds characters that cannot be shown"
    if text.startswith(("/", "./", "../")) or (engine == "llamacpp" and text.endswith(".gguf")):
        return ModelSource(SourceKind.PATH, text, text)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in {"nfs", "nfs+copy"}:
        if not rest.startswith("/"):
            return f"{text!r}: write {scheme}:/path"
        path = normpath(rest)
        if scheme == "nfs":
            return ModelSource(SourceKind.PATH, text, path)
        return ModelSource(SourceKind.COPY, text, path, weights=weights, code=code)
    if colon and scheme == "s3":
        place = rest.removeprefix("//")
        if _BUCKET.fullmatch(place) is None or _climbs(place):
            return f"{text!r}: write s3:bucket/prefix"
        return ModelSource(SourceKind.S3, text, place.rstrip("/"), weights=weights, code=code)
    kind, name = (SourceKind.MODELSCOPE, rest) if colon and scheme == "modelscope" else (SourceKind.HUB, text)
    found = _REPOSITORY.fullmatch(name)
    if found is None or _climbs(name) or "--" in found["name"]:
        return f"{text[:200]!r} is no source: write a hub id (owner/name), a path, or modelscope:, s3:, nfs: before it"
    if kind is SourceKind.MODELSCOPE and "/" not in found["name"]:
        return f"{text!r}: write modelscope:owner/name"
    if found["pick"] is not None and weights != "gguf":
        return f"{text!r}: only GGUF files are picked by what stands after the colon"
    return ModelSource(kind, text, found["name"], found["revision"], weights, found["pick"], code)


def _climbs(name: str) -> bool:
    return ".." in name or "//" in name or name.startswith("/")


def sources_of(spec: DeploymentSpec) -> tuple[ModelSource, ...]:
    """Of the model and its adapters; what cannot be read is left to the policy of the node to refuse."""
    if spec.engine in {"simulated", "external"}:
        return ()
    code = any(spec.args.get(name) is True for name in ("trust-remote-code", "trust_remote_code"))
    found = [read_source(spec.source, engine=spec.engine, code=code)]
    found += [read_source(adapter.source, engine=spec.engine) for adapter in spec.adapters]
    return tuple(source for source in dict.fromkeys(found) if isinstance(source, ModelSource))
