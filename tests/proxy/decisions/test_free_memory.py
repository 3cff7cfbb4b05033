"""Free memory goes back when it stays free, and never twice."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_proxy.decisions.free_memory import LOOKS, WORTH_BYTES, Heap, has_grown, is_due, looked

MB = 1024 * 1024


def _after(resident: list[int], free: int | None) -> Heap:
    heap = Heap()
    for size in resident:
        heap = looked(heap, size, free)
    return heap


def test_what_stays_free_goes_back() -> None:
    burst = _after([70 * MB, *[187 * MB] * (LOOKS - 1)], 100 * MB)
    assert not is_due(burst, short=False)
    assert is_due(looked(burst, 187 * MB, 100 * MB), short=False)


def test_a_process_short_of_memory_does_not_wait() -> None:
    assert is_due(_after([70 * MB, 187 * MB], 100 * MB), short=True)
    assert not is_due(_after([70 * MB], 100 * MB), short=True)


def test_what_is_used_or_unknown_stays() -> None:
    assert not is_due(_after([70 * MB, *[187 * MB] * 2 * LOOKS], WORTH_BYTES - 1), short=False)
    assert not is_due(_after([70 * MB, *[187 * MB] * 2 * LOOKS], None), short=False)


def test_a_burst_that_comes_again_begins_the_count_anew() -> None:
    heap = _after([70 * MB, *[187 * MB] * (LOOKS - 1)], 100 * MB)
    heap = looked(heap, 187 * MB, 2 * MB)
    assert heap.looks == 0


@given(st.lists(st.integers(50 * MB, 400 * MB), min_size=1, max_size=40))
def test_never_without_growth_since_the_last_time(sizes: list[int]) -> None:
    """The heap's count of free bytes does not fall when they go back; the size does, and is measured from there."""
    heap = looked(Heap(), sizes[0], 1 << 40)
    for size in sizes:
        grown = has_grown(heap, size)
        heap = looked(heap, size, 1 << 40)
        assert is_due(heap, short=True) == grown
        if is_due(heap, short=True):
            heap = looked(Heap(), size, None)
            assert not is_due(looked(heap, size, 1 << 40), short=True)
