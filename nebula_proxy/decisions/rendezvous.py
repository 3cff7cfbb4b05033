"""Rendezvous hashing: every process ranks the replicas of a key alike, and a replica that goes moves only its own keys.

Thaler and Ravishankar 1998. Of n replicas one that comes takes 1/n of the keys, from all others evenly.
"""

from collections.abc import Iterable, Sequence

import xxhash

_digest = xxhash.xxh3_64_intdigest


def key_of(name: bytes) -> int:
    """A key as a number of 64 bits, the same in every process."""
    return _digest(name)


def nearest(key: int, replicas: Sequence[bytes], among: Iterable[int]) -> int:
    """The one of `among` (places in `replicas`, at least one) that ranks first for the key."""
    return max(among, key=lambda at: _digest(replicas[at], key))


def ranks(key: int, replicas: Sequence[bytes]) -> list[float]:
    """0..1 for each replica, the lowest first for the key."""
    return [1.0 - _digest(replica, key) * 2.0**-64 for replica in replicas]
