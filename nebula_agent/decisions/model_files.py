"""Which files of a repository a node wants, and whether what lies here is still what was fetched.

Only what cannot run code is fetched: weights as safetensors (or GGUF), and texts. Pickled weights and Python files stay
where they are unless the node's policy says otherwise (reliability T7). Names come from strangers: a name that could
lead out of its folder, or hide in it, makes the whole listing unusable (T21, C15).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import Field

from nebula_core.records.base import Record
from nebula_core.records.model_source import ModelSource, Weights

#: Of one model; more is no model.
MOST_FILES = 4000
#: Texts and small files that models are read by.
_TEXTS = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "*.yaml", "*.yml", "merges.txt", "LICENSE*", "*.spm")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
#: Characters of a revision or mark: commits and etags have 40 or 64.
MOST_WORD = 200
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+=@ ()\[\]-]{0,200}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Files up to this size are hashed again before a start; larger ones are known by their size and time.
SMALL_BYTES = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file where it comes from."""

    path: str
    #: None is unknown until it is fetched.
    size: int | None
    sha256: str | None = None
    #: What tells this content from another where there is no digest (an etag, a blob id).
    mark: str | None = None

    @property
    def same_as(self) -> str:
        """Two files with the same word have the same content."""
        return f"{self.path}|{self.size}|{self.sha256 or self.mark or ''}"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository has at one revision."""

    #: The commit, where there are commits.
    revision: str | None
    files: tuple[RemoteFile, ...]


class KeptFile(Record):
    path: str
    size: int = Field(ge=0)
    sha256: str
    #: When it was written: a change of it is looked into.
    mtime_ns: int
    #: What was listed of it (`RemoteFile.same_as`).
    mark: str = ""


class Manifest(Record):
    """What was fetched; a model without one is not whole."""

    id: str
    source: str
    weights: str = "safetensors"
    revision: str | None = None
    files: tuple[KeptFile, ...] = ()
    #: Unix seconds, for display.
    fetched_at: float = 0.0
    #: Of a partial one: what was listed of the file that is being written.
    begun: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over the names, sizes and digests of its files: equal content, equal digest."""
        lines = sorted(f"{file.path}\0{file.size}\0{file.sha256}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def why_bad_path(path: str) -> str | None:
    """Why a name from outside is not used as one here; None: it is plain."""
    parts = path.split("/")
    if len(path) > 512 or len(parts) > 8:
        return "is too long"
    if any(_PART.fullmatch(part) is None or part.endswith((" ", ".part")) for part in parts):
        return "is no plain file name"
    return None


def choose_files(source: ModelSource, listing: Listing, *, pickled: bool = False) -> tuple[RemoteFile, ...] | str:
    """What is fetched of a repository; or why nothing can be."""
    if len(listing.files) > MOST_FILES:
        return f"{source.text} has {len(listing.files)} files, more than {MOST_FILES}"
    if not _is_word(listing.revision):
        return f"{source.text} is at a revision whose name is none: {ascii(listing.revision)[:120]}"
    wanted = [file for file in listing.files if _is_wanted(file.path, source)]
    weights = [file for file in wanted if file.path.endswith(f".{source.weights}")]
    if source.weights == "gguf":
        weights = _picked(weights, source.pick)
    else:
        weights = _one_form(weights)
        if not weights and pickled:
            weights = [file for file in listing.files if _matches(file.path, _PICKLED)]
    if not weights:
        return _why_nothing(source, listing)
    rest = [] if source.weights == "gguf" else [file for file in wanted if not file.path.endswith(".safetensors")]
    chosen = sorted({file.path: file for file in (*rest, *weights)}.values(), key=lambda file: file.path)
    for file in chosen:
        reason = why_bad_path(file.path)
        if reason is not None:
            return f"{source.text} has a file whose name {file.path[:120]!r} {reason}"
        if file.sha256 is not None and _SHA256.fullmatch(file.sha256) is None:
            return f"{source.text} has a file whose digest is none: {file.path}"
        if not _is_word(file.mark) or (file.size is not None and file.size < 0):
            return f"{source.text} has a file whose size or mark is none: {file.path}"
    return tuple(chosen)


def _is_word(said: str | None) -> bool:
    """What a stranger says and we write down, to be compared and shown."""
    return said is None or (len(said) <= MOST_WORD and said.isprintable())


def _is_wanted(path: str, source: ModelSource) -> bool:
    # Hidden files, and the form in which the weights were made before (Meta's `original/`).
    if path.startswith((".", "original/", "metal/")) or "/." in path:
        return False
    patterns = (*_TEXTS, f"*.{source.weights}", *(("*.py",) if source.code else ()))
    return _matches(path, patterns)


def _matches(path: str, patterns: Iterable[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _one_form(weights: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Mistral publishes the same weights twice: once in the usual form, once as `consolidated`."""
    usual = [file for file in weights if not file.path.startswith("consolidated")]
    return usual or list(weights)


def _picked(weights: Sequence[RemoteFile], pick: str | None) -> list[RemoteFile]:
    """Those of one quantisation: as named, else Q4_K_M as llama.cpp takes it, else the only one there is."""
    for word in (pick,) if pick is not None else ("Q4_K_M", "Q8_0", None):
        found = [file for file in weights if word is None or word.lower() in file.path.lower()]
        # Projectors of images lie beside the model and are none.
        found = [file for file in found if "mmproj" not in file.path.lower()]
        if found:
            sharded = [file for file in found if re.search(r"-\d{5}-of-\d{5}\.gguf$", file.path)]
            return sharded or found[:1]
    return []


def _why_nothing(source: ModelSource, listing: Listing) -> str:
    if source.weights == "gguf":
        picked = f" with {source.pick} in its name" if source.pick else ""
        return f"{source.text} has no GGUF file{picked}"
    pickled = [file.path for file in listing.files if _matches(file.path, _PICKLED) and why_bad_path(file.path) is None]
    if pickled:
        return (
            f"{source.text} has no safetensors, only {pickled[0]}, which runs code when it is loaded; "
            "use a repository with safetensors, or set pickled_weights in this node's policy"
        )
    return f"{source.text} has no weights"


def entry_file(weights: Weights, paths: Iterable[str]) -> str | None:
    """What an engine is given of a model: None is its folder; of GGUF, the first file."""
    return min((path for path in paths if path.endswith(".gguf")), default=None) if weights == "gguf" else None


def why_damaged(manifest: Manifest, seen: Mapping[str, tuple[int, int] | None]) -> str | None:
    """By `(size, mtime_ns)` of each file here, None: it is missing. None: as far as these tell, nothing is."""
    for file in manifest.files:
        found = seen.get(file.path)
        if found is None:
            return f"{file.path} is missing"
        if found[0] != file.size:
            return f"{file.path} has {found[0]} bytes instead of {file.size}"
    return None


def to_hash(manifest: Manifest, seen: Mapping[str, tuple[int, int] | None]) -> tuple[KeptFile, ...]:
    """Files whose content has to be looked at: the small ones that say what the others are, and any that was touched."""
    return tuple(
        file
        for file in manifest.files
        if file.size <= SMALL_BYTES or (found := seen.get(file.path)) is None or found[1] != file.mtime_ns
    )


def asks_for_code(name: str, content: bytes) -> bool:
    """Whether a configuration names code of its repository (`auto_map`), which some engines load unasked (C7)."""
    if name not in {"config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"}:
        return False
    try:
        values = json.loads(content)
    except ValueError:
        return False
    return isinstance(values, dict) and bool(values.get("auto_map"))


def why_no_safetensors(header: bytes, size: int) -> str | None:
    """Whether the beginning of a file fits its length: 8 bytes say how long the JSON is that says where tensors end.

    Source: the format's own description (safetensors, "Format"). `header` holds the 8 bytes and as much of the JSON as
    was read; None: it fits, or too little was read to tell.
    """
    if len(header) < 8:
        return f"is cut off: {size} bytes"
    length = int.from_bytes(header[:8], "little")
    if length > 100_000_000 or length + 8 > size:
        return f"is cut off or no safetensors: {size} bytes"
    if len(header) < length + 8:
        return None
    try:
        entries = json.loads(header[8 : length + 8])
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return "is no safetensors: its header cannot be read"
    whole = 8 + length + max(ends, default=0)
    return None if whole == size else f"is damaged: {size} bytes instead of {whole}"
