"""What goes from a node's disk, and what does not: for any disk, any models, any limits."""

from hypothesis import assume, given
from hypothesis import strategies as st

from nebula_agent.decisions.model_cache import (
    PARTIAL_SECONDS,
    RESERVE_BYTES,
    CacheLimits,
    Disk,
    Entry,
    make_room,
    outdated,
    overfull,
)

GIB = 1024**3


@st.composite
def caches(draw):
    """A disk, the models on it, those of them that are protected, the limits."""
    sizes = draw(st.lists(st.integers(1, 50 * GIB), max_size=8))
    entries = tuple(
        Entry(
            id=f"m{index}",
            source=f"team/m{index}",
            size_bytes=size,
            files=1,
            # Few values: models that were used at the same time occur.
            used_at=float(draw(st.integers(0, 5))) * 100_000,
            complete=draw(st.booleans()),
        )
        for index, size in enumerate(sizes)
    )
    entries = tuple(draw(st.permutations(entries)))
    protected = frozenset(draw(st.lists(st.sampled_from([each.id for each in entries] or ["none"]), max_size=4)))
    high = draw(st.sampled_from([0.5, 0.8, 0.9, 1.0]))
    low = draw(st.sampled_from([low for low in (0.3, 0.5, 0.8, 0.9, 1.0) if low <= high]))
    most = draw(st.one_of(st.none(), st.integers(0, 200 * GIB)))
    free = draw(st.integers(0, 100 * GIB))
    others = draw(st.integers(0, 100 * GIB))
    total = free + sum(sizes) + others
    assume(total > 0)
    return Disk(free, total), entries, protected, CacheLimits(most, high, low)


def is_room(missing, disk, entries, gone, limits):
    """The rule as it is told to operators, with what is `gone` gone."""
    free = disk.free_bytes + sum(each.size_bytes for each in gone)
    kept = sum(each.size_bytes for each in entries) - sum(each.size_bytes for each in gone)
    ample = free >= missing * 1.2 + RESERVE_BYTES - 1
    filled = disk.total_bytes - free + missing <= limits.high * disk.total_bytes + 1
    return ample and filled and (limits.max_bytes is None or kept + missing <= limits.max_bytes)


def assert_order(entries, protected, gone):
    """Partial ones before whole ones, of each the least recently used first, and nothing that is protected."""
    assert not {each.id for each in gone} & protected
    assert len(set(gone)) == len(gone)
    kept = [each for each in entries if each not in gone and each.id not in protected]
    line = [(each.complete, each.used_at) for each in gone]
    assert line == sorted(line)
    assert all(each <= (other.complete, other.used_at) for each in line for other in kept)


@given(caches(), st.integers(0, 150 * GIB))
def test_room_is_made_by_the_least_recently_used_or_refused_with_nothing_gone(cache, missing):
    disk, entries, protected, limits = cache
    room = make_room(missing, disk, entries, protected, limits)
    assert_order(entries, protected, room.evict)
    if room.reason is not None:
        # Not even all that may go would do, so none goes.
        assert room.evict == ()
        free = [each for each in entries if each.id not in protected]
        assert not is_room(missing + 2, disk, entries, free, limits)
        assert "disk full" in room.reason
        return
    assert is_room(missing, disk, entries, room.evict, limits)
    if room.evict:
        # It was needed, and ended as soon as there was room and the fill was down to the low watermark.
        assert not is_room(missing + 2, disk, entries, (), limits)
        spared = room.evict[:-1]
        free = disk.free_bytes + sum(each.size_bytes for each in spared)
        above = disk.total_bytes - free + missing > limits.low * disk.total_bytes - 2
        assert above or not is_room(missing + 2, disk, entries, spared, limits)


@given(caches())
def test_a_disk_that_filled_up_is_brought_down_to_the_low_watermark_and_no_further(cache):
    disk, entries, protected, limits = cache
    gone = overfull(disk, entries, protected, limits)
    assert_order(entries, protected, gone)

    sum_of = sum(each.size_bytes for each in entries)
    edge = disk.total_bytes * (1 - limits.high)
    assume(abs(disk.free_bytes - edge) > 2)  # to the byte nobody says how it is rounded

    def is_well(gone, slack):
        freed = sum(each.size_bytes for each in gone)
        low = disk.free_bytes >= edge or disk.free_bytes + freed >= disk.total_bytes * (1 - limits.low) + slack
        return low and (limits.max_bytes is None or sum_of - freed <= limits.max_bytes)

    if gone:
        assert disk.free_bytes < edge or sum_of > limits.max_bytes
        assert not is_well(gone[:-1], 2)
    if not is_well(gone, -2):
        assert set(gone) == {each for each in entries if each.id not in protected}


@given(caches(), st.integers(-1, 20))
def test_only_partials_that_nobody_goes_on_with_expire(cache, days):
    _, entries, protected, _ = cache
    now = days * 86400.0
    gone = set(outdated(entries, protected, now))
    for each in entries:
        old = now - each.used_at >= PARTIAL_SECONDS
        assert (each in gone) == (not each.complete and old and each.id not in protected)


def test_a_download_wants_a_fifth_more_than_it_brings():
    entry = Entry("old", "team/old", 5 * GIB, 1, 0.0, complete=True)
    limits = CacheLimits(high=1.0, low=1.0)
    just = 12 * GIB + RESERVE_BYTES
    assert make_room(10 * GIB, Disk(just, 100 * GIB), (entry,), (), limits).evict == ()
    assert make_room(10 * GIB, Disk(just - 1, 100 * GIB), (entry,), (), limits).evict == (entry,)
    refused = make_room(10 * GIB, Disk(just - 1, 100 * GIB), (entry,), ("old",), limits)
    assert refused.evict == ()
    assert "needs 12.0 GiB free" in refused.reason
    assert "5.0 GiB of models are in use" in refused.reason
