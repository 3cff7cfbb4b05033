"""The scanner against prometheus-client's own parser, and against bytes captured from real engines."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nebula_core.wire.exposition import Scanner

FIXTURES = Path(__file__).resolve().parents[2] / "agent" / "fixtures"


def oracle(text):
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def scanned(text, names):
    return {
        name: [(dict(series.labels), series.value) for series in found]
        for name, found in Scanner(names).scan(text).items()
    }


@given(
    values=st.lists(
        st.tuples(st.text(max_size=20), st.floats(allow_nan=False)), max_size=8, unique_by=lambda pair: pair[0]
    ),
    count=st.integers(0, 2**40),
    seen=st.lists(st.floats(0, 100), max_size=20),
)
def test_it_reads_what_the_library_writes(values, count, seen):
    registry = CollectorRegistry()
    gauge = Gauge("eng:fill", "fill", ("who",), registry=registry)
    for who, value in values:
        gauge.labels(who).set(value)
    Counter("eng:tokens", "tokens", registry=registry).inc(count)
    histogram = Histogram("eng:ttft_seconds", "ttft", registry=registry, buckets=(0.1, 1, 10))
    for value in seen:
        histogram.observe(value)
    text = generate_latest(registry).decode()
    names = {"eng:fill", "eng:tokens_total", "eng:ttft_seconds_bucket", "eng:ttft_seconds_sum"}
    expected = {name: found for name, found in oracle(text).items() if name in names}
    assert scanned(text, names) == expected


@pytest.mark.parametrize("fixture", sorted(FIXTURES.glob("*.prom")), ids=lambda path: path.stem)
def test_captured_bytes_read_as_the_library_reads_them(fixture):
    text = fixture.read_text()
    # The library gives llama.cpp's counters without `_total` a name of its own making.
    expected = {name: found for name, found in oracle(text).items() if f"\n{name}" in text}
    assert len(expected) >= 10
    assert scanned(text, expected) == expected


@given(st.text(alphabet='ab{}"=,\\ \n\t0.1eE+-_#', max_size=200))
def test_nothing_breaks_it(text):
    Scanner({"a", "b", "ab"}).scan(text)


def test_a_timestamp_and_an_exemplar_are_not_the_value():
    text = 'a{x="}"} 3 1700000000\na_bucket{le="1"} 4 # {trace="q"} 0.5 170\n'
    assert scanned(text, {"a", "a_bucket"}) == {"a": [({"x": "}"}, 3.0)], "a_bucket": [({"le": "1"}, 4.0)]}


def test_an_absent_name_is_absent_and_not_zero():
    assert scanned("# HELP a helps\n# TYPE a gauge\nb 1\n", {"a"}) == {}


_HEADS = ["a", 'a{le="1"}', 'b{x="y z"}', "ab"]


@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.sampled_from(_HEADS), st.sampled_from(["1", "2.5", "NaN", "bad", "3 1700"])), max_size=5
            ),
            st.lists(st.integers(0, 5), max_size=3),
        ),
        max_size=8,
    )
)
def test_page_after_page_reads_as_if_each_were_the_first(pages):
    """Values move, lines come, go and change places; comments and strangers stand between them."""
    names = {"a", "b", "ab"}
    scanner = Scanner(names)
    for lines, between in pages:
        text = [f"{head} {value}" for head, value in lines]
        # As many strangers on every page: one that makes room for a wanted line would not be noticed at once.
        for place in [*between, 0, 0, 0][:3]:
            text.insert(min(place, len(text)), "zz 1")
        page = "\n".join(text)
        assert repr(scanner.scan(page)) == repr(Scanner(names).scan(page))


def test_a_wanted_line_in_the_place_of_another_is_seen_before_long():
    scanner = Scanner({"a", "b"})
    assert set(scanner.scan("a 1\nzz 1")) == {"a"}
    pages = [set(scanner.scan("a 1\nb 1")) for _ in range(40)]
    assert pages[-1] == {"a", "b"}


def test_siblings_know_the_same_lines_at_other_places():
    first = Scanner({"a"})
    first.scan("a 1\nzz 2")
    assert {name: series[0].value for name, series in first.sibling().scan("zz 2\na 3").items()} == {"a": 3.0}
