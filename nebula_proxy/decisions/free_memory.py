"""When memory that is free inside this process goes back to the machine.

glibc gives freed memory back from the top of its heap only. A thousand slow clients leave a hundred megabytes of free
blocks below a few that live, and the process shows them as its own for the rest of its days: to the operator that is a leak,
and to the guard of the memory limit (`decisions/overload_guard`) a reason to refuse, of which it would never be rid.
Giving them back walks the heap and holds the loop, about 80 µs per megabyte; so it is done

- when this process has become so much larger than it was at its smallest since the last time (what it gave back does not
  come again by itself, and the heap's own count of free bytes still has it);
- when that much of it is free, look after look: a burst that is about to use it again keeps it.
"""

from typing import NamedTuple

#: Less is not worth a walk.
WORTH_BYTES = 32 * 1024 * 1024
#: It must have been free at so many looks in a row, one a second.
LOOKS = 10


class Heap(NamedTuple):
    """What was seen, look after look. None: nothing yet."""

    #: The smallest this process was since memory went back, bytes.
    least_bytes: int | None = None
    #: Looks in a row at which enough was free.
    looks: int = 0


def has_grown(heap: Heap, resident_bytes: int) -> bool:
    """Whether it is worth asking how much of it is free."""
    return heap.least_bytes is not None and resident_bytes - heap.least_bytes >= WORTH_BYTES


def looked(heap: Heap, resident_bytes: int, free_bytes: int | None) -> Heap:
    """One look. `free_bytes` of the heap; None where nobody asked or nobody knows."""
    least = resident_bytes if heap.least_bytes is None else min(heap.least_bytes, resident_bytes)
    free = free_bytes is not None and free_bytes >= WORTH_BYTES and has_grown(heap, resident_bytes)
    return Heap(least, heap.looks + 1 if free else 0)


def is_due(heap: Heap, *, short: bool) -> bool:
    """Whether it goes back now; `short`: new requests are turned away for want of memory."""
    return heap.looks >= (1 if short else LOOKS)
