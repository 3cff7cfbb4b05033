"""Health and figures of one engine in words."""

from nebula_core.records.engine_health import EngineHealth, MetricsSchema
from nebula_core.records.replica import Phase
from nebula_core.records.sample import EngineSample
from nebula_core.records.views import ReplicaView
from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.engine_words import health_lines
from nebula_tui.presenters.text import joined


def said(**changes):
    values = {"id": "chat-r1", "deployment": "chat", "model": "chat", "node": "n1", "engine": "vllm"}
    return health_lines(ReplicaView(phase=Phase.READY, **(values | changes)))


def test_nothing_known_says_nothing():
    assert said() == []


def test_the_three_are_told_apart():
    well = EngineHealth(alive=True, ready=True, answers=True, progress="idle", canary="passed", canary_age_seconds=40)
    (line,) = said(health=well)
    assert joined(line) == "health   lives · ready · idle · canary passed 40s ago"
    hung = EngineHealth(alive=True, ready=True, answers=True, progress="still", still_seconds=12)
    (line,) = said(health=hung)
    assert "nothing moves for 12s" in joined(line)
    assert line[-1][1] is Severity.CRIT
    (line,) = said(health=EngineHealth(alive=True, answers=False))
    assert joined(line) == "health   lives · not ready yet · /health says no"
    (line,) = said(health=EngineHealth())
    assert joined(line) == "health   no process"


def test_a_schema_that_is_amiss_says_what_is_off():
    schema = MetricsSchema(
        engine_version="0.40.0",
        expected=11,
        found=10,
        missing=("vllm:kv_cache_usage_perc",),
        off=("routing and admission by KV cache",),
        renamed=(("vllm:a", "vllm:b"),),
        resembling=(("vllm:kv_cache_usage_perc", "vllm:kv_cache_usage_ratio"),),
    )
    lines = [joined(line) for line in said(metrics_schema=schema)]
    assert lines[0] == "metrics  10 of 11 names · missing vllm:kv_cache_usage_perc"
    assert "off because of it: routing and admission by KV cache" in lines[1]
    assert "vllm:a is called vllm:b here" in lines[2]
    assert "may be called vllm:kv_cache_usage_ratio now" in lines[3]


def test_slots_and_ranks():
    sample = EngineSample(requests_running=3, slots_total=4)
    assert [joined(line) for line in said(sample=sample)] == ["slots    3 of 4 busy"]
    ranks = EngineSample(engine_ranks=2, kv_cache_usage=0.7, kv_cache_usage_mean=0.4)
    assert "2 · KV mean 40%, fullest 70%" in joined(said(sample=ranks)[0])
