"""Which ports the next engine gets: a block of its own, the next one round, so that a dead engine's port rests."""

from collections.abc import Iterable, Sequence


def blocks(port_range: tuple[int, int], size: int, taken: Iterable[int], last: int | None) -> Sequence[range]:
    """All blocks of `size` neighbouring ports without a taken one, beginning after `last`, once round the range."""
    low, high = port_range
    held = set(taken)
    found = [
        block for first in range(low, high - size + 2, size) if held.isdisjoint(block := range(first, first + size))
    ]
    if last is None:
        return found
    after = [block for block in found if block.start > last]
    return after + [block for block in found if block.start <= last]
