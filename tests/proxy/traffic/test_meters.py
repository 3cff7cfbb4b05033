"""Figures: quantiles out of buckets, rates out of readings, unknown kept unknown."""

import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nebula_proxy.traffic.meters import TTFT_BOUNDS, Histogram, Meters, ModelMeter, quantile
from nebula_proxy.traffic.request_log import MAX_LINES, RequestLine, RequestLog


@example([0.002] * 3 + [0.01] * 3, 0.5)
@given(st.lists(st.floats(0.0001, 600), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    histogram = Histogram(TTFT_BOUNDS)
    for value in values:
        histogram.observe(value)
    found = quantile(TTFT_BOUNDS, histogram.counts, q)
    true = sorted(values)[max(0, min(len(values) - 1, -(-len(values) * int(q * 100) // 100) - 1))]
    assert found is not None
    above = [bound for bound in TTFT_BOUNDS if bound >= true]
    below = [bound for bound in TTFT_BOUNDS if bound < true]
    assert (below[-1] if below else 0.0) <= found <= above[0]
    assert histogram.sum == pytest.approx(sum(values))


def test_without_an_observation_a_quantile_is_unknown() -> None:
    assert quantile(TTFT_BOUNDS, [0] * (len(TTFT_BOUNDS) + 1), 0.5) is None


def test_rates_are_over_the_last_ten_seconds() -> None:
    meter = ModelMeter("m")
    for second in range(30):
        for _ in range(2 if second < 15 else 4):
            meter.finished(200, 0.5)
            meter.tokens(10, 20)
            meter.ttft.observe(0.1)
        meter.read(100.0 + second)
    traffic = meter.traffic()
    assert traffic.requests_per_second == pytest.approx(4.0)
    assert traffic.generation_tokens_per_second == pytest.approx(80.0)
    assert traffic.prompt_tokens_per_second == pytest.approx(40.0)
    assert traffic.ttft_p50_seconds == pytest.approx(0.0875, abs=0.02)
    assert traffic.itl_p95_seconds is None
    assert len(meter.readings) <= 12


def test_what_nobody_said_is_unknown() -> None:
    meter = ModelMeter("m")
    assert meter.traffic().requests_per_second is None
    meter.read(0.0)
    for _ in range(10):
        meter.finished(200, 0.1)
    meter.read(1.0)
    traffic = meter.traffic()
    assert traffic.requests_per_second == 10
    assert traffic.generation_tokens_per_second is None  # streams without usage: not none, unknown
    assert traffic.failed_per_second == 0


def test_failures_and_refusals_are_told_apart() -> None:
    meter = ModelMeter("m")
    meter.read(0.0)
    meter.finished(502, 0.1)
    meter.admission("reject", "overloaded")
    meter.finished(429, 0.0)
    meter.retry("lost")
    meter.read(1.0)
    traffic = meter.traffic()
    assert (traffic.failed_per_second, traffic.rejected_per_second, traffic.retried_per_second) == (1, 1, 1)


def test_only_known_models_have_meters() -> None:
    meters = Meters()
    meters.nobody.finished(404, 0.0)
    assert meters.models == {}
    assert meters.of("m") is meters.of("m")


def line(**changes: object) -> RequestLine:
    fields: dict[str, object] = {
        "action": "request", "timestamp": "t", "level": "info", "request_id": "r", "path": "/v1/x", "status": 200,
        "outcome": "ok", "duration_seconds": 0.1,
    }  # fmt: skip
    return RequestLine(**(fields | changes))  # type: ignore[arg-type]


def test_lines_are_json_one_each() -> None:
    read, write = os.pipe()
    log = RequestLog(write)
    log.write(line(detail='quotes " and\nbreaks \u2028 \x1b[31m'))
    log.write(line(model="m"))
    log.flush()
    os.close(write)
    with os.fdopen(read, "rb") as out:
        lines = out.read().split(b"\n")
    assert lines[-1] == b""
    assert all(each.isascii() for each in lines)
    first, second = (json.loads(each) for each in lines[:-1])
    assert first["detail"].startswith("quotes")
    assert (second["model"], second["action"], "replica" in second) == ("m", "request", False)
    assert log.stamp(0.25) == "1970-01-01T00:00:00.250000Z"


def test_lines_nobody_takes_are_counted() -> None:
    read, write = os.pipe()
    os.close(read)
    log = RequestLog(write)
    for _ in range(MAX_LINES + 5):
        log.write(line())
    log.flush()
    assert log.dropped >= 1
    os.close(write)
