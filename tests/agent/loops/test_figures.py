"""Figures of one engine epoch while canaries are under way: what users see is theirs."""

from nebula_agent.engines.base import EngineInfo
from nebula_agent.engines.registry import ENGINES
from nebula_agent.loops.engine_figures import EngineFigures


def page(running=0, tokens=0, finished=0, waiting=0):
    return (
        f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\nvllm:kv_cache_usage_perc 0\n"
        f"vllm:prompt_tokens_total {finished}\nvllm:generation_tokens_total {tokens}\n"
        f"vllm:request_success_total {finished}\nvllm:iteration_tokens_total_count {tokens}\n"
        f'vllm:time_to_first_token_seconds_bucket{{le="+Inf"}} {finished}\n'
    )


def figures():
    made = EngineFigures(ENGINES["vllm"], "chat", "0.32.0")
    made.told(EngineInfo("0.32.0", None))
    made.take(page(tokens=20, finished=1), 0.0)
    return made


def test_a_slow_canary_is_seen_neither_while_it_runs_nor_afterwards():
    seen = figures()
    seen.canary_asked()
    seen.take(page(running=1, tokens=20, finished=1), 1.0)
    assert seen.sample.requests_running == 0
    seen.canary_answered(1.5, passed=True, prompt_tokens=1.0)
    seen.take(page(tokens=21, finished=2), 2.0)
    assert (seen.sample.generation_tokens_total, seen.sample.requests_finished_total) == (20, 1)
    assert seen.sample.generation_tokens_per_second == 0
    assert seen.sample.ttft_p95_seconds is None
    seen.take(page(running=1, tokens=31, finished=2), 3.0)
    assert (seen.sample.generation_tokens_total, seen.sample.requests_running) == (30, 1)
    assert seen.sample.generation_tokens_per_second == 10


def test_users_who_come_meanwhile_are_counted():
    seen = figures()
    seen.canary_asked()
    seen.take(page(running=3, tokens=120, finished=1), 1.0)
    assert seen.sample.requests_running == 2
    seen.canary_answered(1.5, passed=True, prompt_tokens=1.0)
    seen.take(page(tokens=221, finished=4), 2.0)
    assert (seen.sample.generation_tokens_total, seen.sample.requests_finished_total) == (220, 3)


def test_a_canary_that_waited_behind_others_says_nothing():
    seen = figures()
    seen.canary_asked()
    seen.take(page(running=64, waiting=9, tokens=500, finished=1), 1.0)
    seen.canary_answered(16.0, passed=False, prompt_tokens=1.0)
    assert seen.canary.failures == 0
    seen = figures()
    seen.canary_asked()
    seen.take(page(running=1, tokens=20, finished=1), 1.0)
    seen.canary_answered(16.0, passed=False, prompt_tokens=1.0)
    assert seen.canary.failures == 1


def test_another_start_behind_the_same_address_begins_with_a_clean_slate():
    seen = figures()
    seen.canary_asked()
    seen.canary_answered(0.5, passed=True, prompt_tokens=1.0)
    seen.take(page(tokens=21, finished=2), 1.0)
    seen.take(page(tokens=3, finished=1), 2.0)
    assert (seen.sample.generation_tokens_total, seen.sample.generation_tokens_per_second) == (3, None)


def test_what_an_engine_says_of_its_version_changes_what_is_expected():
    seen = EngineFigures(ENGINES["vllm"], "chat", None)
    seen.take(page().replace("kv_cache_usage_perc", "gpu_cache_usage_perc"), 0.0)
    assert seen.schema.renamed == (("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),)
    assert seen.sample.kv_cache_usage == 0
