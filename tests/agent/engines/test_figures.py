"""Captured `/metrics` of real engines through our names: every figure, and honest gaps."""

from pathlib import Path

import pytest

from nebula_agent.decisions.rates import History
from nebula_agent.engines.metrics import read, sample
from nebula_agent.engines.registry import ENGINES
from nebula_core.wire.exposition import Scanner

FIXTURES = Path(__file__).parents[1] / "fixtures"


def sampled(kind, *fixtures, model="tiny", text=None):
    names = ENGINES[kind].names
    scanner = Scanner(names.wanted())
    history, figures = History(), None
    for second, fixture in enumerate(fixtures):
        content = text if text is not None else (FIXTURES / f"{fixture}.prom").read_text()
        figures = read(names, scanner.scan(content), model, float(second))
        history = history.with_reading(figures.reading)
    return sample(figures, history, names)


def test_vllm_busy():
    found = sampled("vllm", "vllm_busy")
    assert (found.requests_running, found.requests_waiting) == (16, 33)
    assert found.kv_cache_usage == pytest.approx(0.00097662, rel=1e-4)
    assert found.kv_cache_tokens == 2_097_152
    assert found.prefix_cache_queries_total == 2850
    assert found.preemptions_total == 0
    assert found.missing == ()
    assert found.generation_tokens_per_second is None


def test_vllm_rates_between_two_scrapes():
    found = sampled("vllm", "vllm_busy", "vllm_after50")
    before, after = sampled("vllm", "vllm_busy"), sampled("vllm", "vllm_after50")
    assert found.generation_tokens_per_second == after.generation_tokens_total - before.generation_tokens_total > 0
    assert 0 < found.ttft_p50_seconds <= found.ttft_p95_seconds
    assert found.itl_p95_seconds > 0
    assert 0 <= found.prefix_cache_hit_ratio <= 1


def test_vllm_idle_has_everything_at_zero_and_nothing_missing():
    found = sampled("vllm", "vllm_idle", "vllm_idle")
    assert found.requests_running == 0
    assert found.generation_tokens_per_second == 0.0
    assert found.ttft_p95_seconds is None
    assert found.missing == ()


def test_a_vllm_restart_between_two_scrapes_gives_no_rate():
    found = sampled("vllm", "vllm_after50", "vllm_idle")
    assert found.generation_tokens_per_second is None


def test_old_vllm_names_are_found_by_fallback():
    text = (
        'vllm:num_requests_running{model_name="tiny"} 3\nvllm:gpu_cache_usage_perc{model_name="tiny"} 0.4\n'
        'vllm:gpu_prefix_cache_hit_rate{model_name="tiny"} 0.5\n'
        'vllm:time_per_output_token_seconds_bucket{le="1",model_name="tiny"} 0\n'
    )
    found = sampled("vllm", "", text=text)
    assert (found.requests_running, found.kv_cache_usage, found.prefix_cache_hit_ratio) == (3, 0.4, 0.5)
    assert "vllm:num_requests_waiting" in found.missing
    assert "vllm:inter_token_latency_seconds" not in found.missing
    assert found.requests_waiting is None


def test_ranks_are_summed_and_other_models_left_out():
    text = """
vllm:num_requests_running{engine="0",model_name="tiny"} 3
vllm:num_requests_running{engine="1",model_name="tiny"} 4
vllm:num_requests_running{engine="0",model_name="other"} 100
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.1
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.7
sglang:num_running_reqs{model_name="tiny",tp_rank="0"} 2
sglang:num_running_reqs{model_name="tiny",tp_rank="1"} 2
"""
    found = sampled("vllm", "", text=text)
    assert (found.requests_running, found.kv_cache_usage) == (7, 0.7)
    assert sampled("sglang", "", text=text).requests_running == 2


def test_minus_one_is_off_and_not_a_ratio():
    assert sampled("vllm", "", text="vllm:gpu_prefix_cache_hit_rate -1\n").prefix_cache_hit_ratio is None


def test_llamacpp_has_no_cache_figure_and_does_not_miss_it():
    found = sampled("llamacpp", "llamacpp_idle", "llamacpp_busy")
    assert (found.requests_running, found.requests_waiting) == (4, 43)
    assert found.generation_tokens_total == 1056
    assert found.generation_tokens_per_second > 0
    assert (found.kv_cache_usage, found.ttft_p95_seconds) == (None, None)
    assert found.missing == ()


@pytest.mark.parametrize("prefix", ["sglang:", "sglang_"])
def test_sglang_under_both_prefixes(prefix):
    text = (FIXTURES / "sglang.prom").read_text().replace("sglang:", prefix)
    found = sampled("sglang", "", text=text)
    assert found.requests_running is not None
    assert found.kv_cache_usage is not None
    assert found.kv_cache_tokens > 0
    assert found.generation_tokens_total > 0
    assert found.missing == ()


def test_sglang_before_its_first_request_misses_nothing():
    text = "sglang:num_running_reqs 0\nsglang:num_queue_reqs 0\nsglang:token_usage 0\n"
    assert sampled("sglang", "", text=text).missing == ()


@pytest.mark.parametrize("kind", sorted(ENGINES))
def test_an_empty_page_is_unknown_and_never_zero(kind):
    found = sampled(kind, "", text="")
    known = {name: value for name, value in found.model_dump().items() if value is not None and name != "missing"}
    assert known == {}
    assert found.missing


def test_ranks_of_one_engine_have_a_sum_a_mean_and_a_fullest():
    text = """
vllm:num_requests_running{engine="0",model_name="tiny"} 3
vllm:num_requests_running{engine="1",model_name="tiny"} 4
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.1
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.7
"""
    found = sampled("vllm", "", text=text)
    assert (found.engine_ranks, found.kv_cache_usage, found.kv_cache_usage_mean) == (2, 0.7, pytest.approx(0.4))
    one = sampled("vllm", "vllm_busy")
    assert (one.engine_ranks, one.kv_cache_usage_mean) == (None, None)


def test_preemptions_of_a_full_cache():
    found = sampled("vllm", "vllm_preempt_busy", "vllm_preempt_after")
    assert found.preemptions_total == 129
    assert found.missing == ()


def test_llamacpp_says_its_version_and_how_many_slots_it_has():
    info = ENGINES["llamacpp"].read_info({"build_info": "b1-0c1e570", "total_slots": 4})
    assert info == ("b1-0c1e570", 4)
    assert ENGINES["vllm"].read_info({"version": "0.32.0"}).version == "0.32.0"
    assert ENGINES["vllm"].read_info({"version": 3}).version is None


def test_requests_that_wait_for_their_grammar_wait():
    text = "sglang:num_running_reqs 1\nsglang:num_queue_reqs 2\nsglang:num_grammar_queue_reqs 3\nsglang:token_usage 0\n"
    assert sampled("sglang", "", text=text).requests_waiting == 5
    assert sampled("sglang", "", text="sglang:num_grammar_queue_reqs 3\n").requests_waiting is None
