"""The KV cache of the simulated engine as numbers: a pool of blocks and the cache of prefixes in it.

Theory. A block holds `block_size` tokens. A block whose tokens are all computed is *full* and gets a key: the digest of
its tokens chained to the key of the block before it, so one key stands for the whole prefix up to here. A request that
comes later shares the blocks whose keys it finds, from the first on, until one is missing. Blocks nobody uses go to the
end of a queue and keep their key; who needs a fresh block takes the front of the queue, and only then the key is
forgotten: least recently used first. A request gives its blocks back last one first, so that the tail of a prefix is
forgotten before its head. (The manner of vLLM v1, `v1/core/block_pool.py`.)
"""

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """Blocks 0..capacity-1, each free, or used by one or more requests; pure bookkeeping."""

    def __init__(self, capacity: int, block_size: int, *, caching: bool = True) -> None:
        self.capacity = capacity
        self.block_size = block_size
        self._caching = caching
        self._users = [0] * capacity
        self._free: OrderedDict[int, None] = OrderedDict((block, None) for block in range(capacity))
        self._key_of: dict[int, int] = {}
        self._block_of: dict[int, int] = {}

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def usage(self) -> float:
        """Fill of the cache, 0..1; blocks kept only for their prefix count as free."""
        return 1.0 - len(self._free) / self.capacity

    def find_prefix(self, keys: Sequence[int]) -> list[int]:
        """The cached blocks of the longest known prefix, without taking them."""
        found: list[int] = []
        if self._caching:
            for key in keys:
                block = self._block_of.get(key)
                if block is None:
                    break
                found.append(block)
        return found

    def take(self, shared: Sequence[int], fresh: int) -> list[int] | None:
        """Uses the `shared` blocks and `fresh` new ones; None, and nothing changed, if there are too few."""
        revived = sum(1 for block in shared if self._users[block] == 0)
        if len(self._free) - revived < fresh:
            return None
        for block in shared:
            if self._users[block] == 0:
                del self._free[block]
            self._users[block] += 1
        taken: list[int] = []
        for _ in range(fresh):
            block, _nothing = self._free.popitem(last=False)
            self._forget(block)
            self._users[block] = 1
            taken.append(block)
        return [*shared, *taken]

    def mark_full(self, block: int, key: int) -> None:
        """Makes a full block findable; the first block of a key stays the one that is found."""
        if self._caching and block not in self._key_of and key not in self._block_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def release(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                self._free[block] = None

    def reset_cache(self) -> bool:
        """Forgets every prefix; refused (False) while a block is in use, as in vLLM."""
        if len(self._free) != self.capacity:
            return False
        self._key_of.clear()
        self._block_of.clear()
        return True

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]


def extend_keys(keys: list[int], tokens: Sequence[int], block_size: int) -> None:
    """Appends the keys of those full blocks of `tokens` that have none yet."""
    for start in range(len(keys) * block_size, len(tokens) - block_size + 1, block_size):
        # The hash of a tuple of ints is the same in every process: only strings are salted.
        keys.append(hash((keys[-1] if keys else 0, tuple(tokens[start : start + block_size]))))
