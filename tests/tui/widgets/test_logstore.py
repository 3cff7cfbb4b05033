"""The ring keeps the newest lines under their numbers; a scan finds what looking at every line would."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_tui.presenters.loglines import LogEntry, gap_entry
from nebula_tui.widgets.logstore import CHUNK, LogStore, Scan, Whole, drop_oldest


def lines(low: int, high: int) -> list[LogEntry]:
    return [LogEntry(float(n), "s", f"line {n}") for n in range(low, high)]


def test_lines_keep_their_numbers() -> None:
    store = LogStore(2100)
    store.append(lines(0, 2500))
    store.append(lines(2500, 7100))
    assert store.end == 7100
    assert store.first == 5000
    assert store[5000].text == "line 5000"
    assert store[7099].text == "line 7099"
    for gone in (4999, 7100):
        with pytest.raises(IndexError):
            store[gone]
    assert [n for n, _ in store.slice(0, 5003)] == [5000, 5001, 5002]
    assert [e.text for _, e in store.slice(6998, 7002)] == [f"line {n}" for n in range(6998, 7002)]


@given(st.lists(st.integers(0, 2600), max_size=12), st.integers(1, 4))
def test_the_ring_is_bounded_and_holds_the_newest(batches: list[int], chunks: int) -> None:
    store, sent = LogStore(chunks * 700), 0
    for size in batches:
        store.append(lines(sent, sent + size))
        sent += size
        assert store.end == sent
        assert len(store) == min(sent, store.capacity)
        assert sum(map(len, store._chunks)) < store.capacity + CHUNK
        assert [e.text for _, e in store.slice(sent - 3, sent)] == [e.text for e in lines(max(0, sent - 3), sent)]


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 700)), max_size=15), st.integers(2, 9))
def test_a_scan_in_slices_equals_looking_at_every_line(steps: list[tuple[int, int]], every: int) -> None:
    store = LogStore(1900)
    store.append(lines(0, 1500))

    def wanted(entry: LogEntry) -> bool:
        return int(entry.at) % every == 0

    scan = Scan(store, wanted)
    for come, looked in steps:
        store.append(lines(store.end, store.end + come))
        scan.catch_up()
        if not scan.done:
            scan.step(looked)
    while not scan.done:
        scan.step(400)
    scan.catch_up()
    expected = [n for n in range(store.first, store.end) if n % every == 0]
    assert [scan[i] for i in range(len(scan))] == expected
    for number in (store.first, store.first + 7, store.end):
        assert scan.place(number) == sum(n < number for n in expected)
        assert (number in scan) == (number in expected)
        assert scan.after(number) == next((n for n in expected if n > number), None)
        assert scan.before(number) == next((n for n in reversed(expected) if n < number), None)


def test_whole_has_the_same_face() -> None:
    store = LogStore(1500)
    store.append(lines(0, 3500))
    whole = Whole(store)
    assert (len(whole), whole[0], whole[len(whole) - 1]) == (1500, 2000, 3499)
    assert [whole.place(n) for n in (0, 2001, 9999)] == [0, 1, 1500]
    assert whole.done


def test_a_full_queue_loses_its_oldest_and_counts_what_gaps_stood_for() -> None:
    pending: deque[LogEntry] = deque()
    assert drop_oldest(pending, [gap_entry(0, 50), *lines(0, 4)], 3) == 51
    assert [e.text for e in pending] == ["line 1", "line 2", "line 3"]
