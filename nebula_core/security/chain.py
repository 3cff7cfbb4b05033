"""The audit chain: each entry carries the digest of the one before, so that an edit or a gap shows."""

import hashlib
from collections.abc import Sequence

from nebula_core.records.event import Audit


def chained(previous: str, entry: Audit) -> Audit:
    """The entry as it follows the one with digest `previous` ("" is the beginning)."""
    linked = entry.model_copy(update={"previous": previous, "digest": "", "id": None})
    return linked.model_copy(update={"digest": digest(linked)})


def digest(entry: Audit) -> str:
    """SHA-256 of everything in the entry but the digest itself and the id the store gave."""
    bare = entry.model_copy(update={"digest": "", "id": None})
    return hashlib.sha256(b"nebula audit v1\n" + bare.to_json().encode()).hexdigest()


def first_break(entries: Sequence[Audit]) -> int | None:
    """Index of the first entry that was altered or does not follow its predecessor; the first one begins anywhere."""
    for index, entry in enumerate(entries):
        if entry.digest != digest(entry):
            return index
        if index and entry.previous != entries[index - 1].digest:
            return index
    return None
