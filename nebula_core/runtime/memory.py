"""The memory of a process: what of its heap is free, and giving that back to the machine."""

import ctypes
import gc


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33: all of `size_t`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


_LIBC = ctypes.CDLL(None)
# glibc's; others give back by themselves.
_MALLINFO = getattr(_LIBC, "mallinfo2", None)
if _MALLINFO is not None:
    _MALLINFO.restype = _MallInfo
_TRIM = getattr(_LIBC, "malloc_trim", None)
_MALLOPT = getattr(_LIBC, "mallopt", None)
#: `malloc.h`; the same number on every platform glibc runs on.
_M_ARENA_MAX = -8


def free_heap_bytes() -> int | None:
    """Free inside the heap, also what went back before; None where the library does not say. Some tens of microseconds."""
    return None if _MALLINFO is None else int(_MALLINFO().fordblks)


def share_heaps(most: int = 2) -> None:
    """Threads share so many heaps, instead of up to eight per core; said before the first thread starts.

    Python's threads take turns anyway, and what one of them frees stays in its heap: an agent whose Docker calls run in
    threads was 10 MB larger for it.
    """
    if _MALLOPT is not None:
        _MALLOPT(_M_ARENA_MAX, most)


def give_back_memory() -> None:
    """Free pages of the heap go back to the kernel, those of young cycles too: milliseconds."""
    gc.collect(0)
    if _TRIM is not None:
        _TRIM(0)


def settle_memory() -> None:
    """Once a process has started: what is here now stays, so the collector need not walk through it again and again.

    Pages that the start left free go back to the kernel: reading the modules of an agent leaves 12 MB of 80.
    """
    gc.collect()
    gc.freeze()
    give_back_memory()
