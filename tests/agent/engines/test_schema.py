"""The schema doctor: expected, found, renamed, missing, and what is off because of it."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_agent.engines.registry import ENGINES
from nebula_agent.engines.schema import examine
from nebula_agent.engines.versions import Known, parsed
from nebula_core.wire.exposition import Scanner

FIXTURES = Path(__file__).parents[1] / "fixtures"
PAGES = {
    "vllm": ("0.32.0+cpu", "vllm_idle", "vllm_busy", "vllm_after50", "vllm_preempt_busy", "vllm_preempt_after"),
    "sglang": ("0.5.23", "sglang"),
    "llamacpp": ("b1-0c1e570", "llamacpp_idle", "llamacpp_busy", "llamacpp_after50"),
}


def diagnosed(kind, page, version):
    names = ENGINES[kind].names
    present = Scanner(names.wanted()).scan(page)
    return examine(names, present, parsed(version), version, page=page)


@pytest.mark.parametrize(
    ("kind", "version", "page"), [(kind, version, page) for kind, (version, *pages) in PAGES.items() for page in pages]
)
def test_captured_pages_have_all_their_version_should_have(kind, version, page):
    schema = diagnosed(kind, (FIXTURES / f"{page}.prom").read_text(), version)
    assert (schema.missing, schema.renamed, schema.off) == ((), (), ())
    assert schema.expected == schema.found > 0
    assert schema.engine_version == version


def test_old_names_on_an_old_vllm_are_what_it_should_have():
    page = (FIXTURES / "vllm_idle.prom").read_text()
    page = page.replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    page = page.replace("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")
    old = diagnosed("vllm", page, "0.8.5")
    assert (old.missing, old.renamed) == (
        (),
        (
            ("vllm:gpu_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"),
            ("vllm:gpu_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"),
        ),
    )
    new = diagnosed("vllm", page, "0.32.0")
    assert ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc") in new.renamed
    assert new.missing == ()


def test_a_renamed_gauge_is_missed_says_what_is_off_and_which_name_resembles_it():
    page = (FIXTURES / "vllm_idle.prom").read_text().replace("vllm:kv_cache_usage_perc", "vllm:kv_cache_usage_ratio")
    schema = diagnosed("vllm", page, "0.40.0")
    assert schema.missing == ("vllm:kv_cache_usage_perc",)
    assert schema.off == ("routing and admission by KV cache",)
    assert schema.resembling == (("vllm:kv_cache_usage_perc", "vllm:kv_cache_usage_ratio"),)


def test_what_comes_with_its_first_event_is_not_missed():
    page = "sglang:num_running_reqs 0\nsglang:num_queue_reqs 0\nsglang:token_usage 0\n"
    schema = diagnosed("sglang", page, "0.5.23")
    assert schema.missing == ()
    assert schema.expected == 3


def test_an_empty_page_misses_all_and_switches_off_what_needs_it():
    for kind in ("vllm", "sglang", "llamacpp", "xllm"):
        schema = diagnosed(kind, "", None)
        assert schema.found == 0
        assert len(schema.missing) == schema.expected > 0
        assert "load in routing, hang detection" in schema.off


@pytest.mark.parametrize("kind", sorted(ENGINES))
@given(st.data())
def test_every_expected_name_is_found_or_missing_and_none_is_both(kind, data):
    names = ENGINES[kind].names
    present = data.draw(st.sets(st.sampled_from(sorted(names.wanted()))))
    version = data.draw(st.none() | st.tuples(st.integers(0, 1), st.integers(0, 40)))
    schema = examine(names, present, version, None)
    assert schema.expected == schema.found + len(schema.missing)
    assert len(schema.renamed) <= schema.found
    assert not {expected for expected, _ in schema.renamed} & set(schema.missing)
    assert bool(schema.off) <= bool(schema.missing)
    # What a version has under none of its names is asked of nobody.
    reduced = names.of_version(version)
    assert reduced.wanted() <= names.wanted()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.32.0+cpu", (0, 32, 0)),
        ("v0.11.1", (0, 11, 1)),
        ("0.11.0rc2", (0, 11, 0)),
        ("0.9.2.dev5+g1234", (0, 9, 2)),
        ("b1-0c1e570", None),
        ("", None),
        (None, None),
    ],
)
def test_versions_as_they_are_written(text, version):
    assert parsed(text) == version


def test_a_range_of_versions():
    known = Known(since=(0, 9), until=(0, 11), unsure=False)
    assert [known.to(version) for version in ((0, 8, 9), (0, 9), (0, 10, 9), (0, 11, 0), None)] == [
        False,
        True,
        True,
        False,
        False,
    ]


def test_every_name_of_a_table_of_versions_is_a_name_of_the_engine():
    for engine in ENGINES.values():
        names = {re.sub("_bucket$", "", name) for name in engine.names.wanted()}
        assert set(engine.names.known) <= names
