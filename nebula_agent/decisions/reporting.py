"""When a full report is due and what the compact record of a second says.

Full: when anything changed that a compact record cannot carry, and every few seconds in any case, so that a reader
that lost one is right again soon. Figures that move all the time are no change.
"""

from nebula_core.records.compact import NodeDelta, ReplicaDelta
from nebula_core.records.replica import ReplicaStatus
from nebula_core.records.report import NodeReport
from nebula_core.records.sample import EngineSample, GpuSample, HostSample

FULL_EVERY_SECONDS = 5.0


def is_full_due(last: NodeReport | None, last_at: float | None, report: NodeReport, now: float) -> bool:
    if last is None or last_at is None or now - last_at >= FULL_EVERY_SECONDS:
        return True
    return lasting(last) != lasting(report)


def lasting(report: NodeReport) -> NodeReport:
    """The report without what moves from second to second."""
    return report.model_copy(
        update={
            "sequence": 0,
            "at": 0.0,
            "host": HostSample(),
            "gpus": tuple(_lasting_gpu(gpu) for gpu in report.gpus),
            "replicas": tuple(_lasting_replica(status) for status in report.replicas),
            # Bytes and room move all the time; a hundredth more of a download is news.
            "fetches": tuple(one.model_copy(update={"done_bytes": 0, "message": ""}) for one in report.fetches),
            "model_cache": None
            if report.model_cache is None
            else report.model_cache.model_copy(update={"room_bytes": 0, "used_bytes": 0}),
        }
    )


def _lasting_gpu(gpu: GpuSample) -> GpuSample:
    # Who holds memory is for the full report, but not a reason for one: it changes with every allocation.
    return GpuSample(gpu=gpu.gpu, index=gpu.index, fault=gpu.fault)


def _lasting_replica(status: ReplicaStatus) -> ReplicaStatus:
    sample = status.sample
    return status.model_copy(
        update={
            "phase_seconds": None,
            "sample_age_seconds": None,
            "health": None
            if status.health is None
            else status.health.model_copy(update={"still_seconds": None, "canary_age_seconds": None}),
            # Whether there is one, and what is missing from it.
            "sample": None if sample is None else EngineSample(missing=sample.missing),
        }
    )


#: Figures of an engine are passed on as those of this second for so long: two scrapes, and a half for the way.
SAMPLE_OLD_SECONDS = 2.5


def compact(report: NodeReport) -> NodeDelta:
    return NodeDelta(
        node=report.node,
        sequence=report.sequence,
        cpu=_rounded(report.host.cpu_ratio, 3),
        gpus=tuple(
            (
                _rounded(gpu.utilization_ratio, 3),
                gpu.memory_used_bytes,
                gpu.temperature_celsius,
                _rounded(gpu.power_watts, 1),
            )
            for gpu in report.gpus
        ),
        replicas=tuple(_compact_replica(status) for status in report.replicas),
    )


def _compact_replica(status: ReplicaStatus) -> ReplicaDelta:
    sample = status.sample
    if sample is None or (status.sample_age_seconds or 0.0) > SAMPLE_OLD_SECONDS:
        # An engine that answers no scrape any more has no figures: its last ones would say that it moves.
        return ReplicaDelta(id=status.id, phase=status.phase.value)
    return ReplicaDelta(
        id=status.id,
        phase=status.phase.value,
        running=sample.requests_running,
        waiting=sample.requests_waiting,
        kv=_rounded(sample.kv_cache_usage, 4),
        generation_rate=_rounded(sample.generation_tokens_per_second, 1),
        prompt_rate=_rounded(sample.prompt_tokens_per_second, 1),
        ttft_p95=_rounded(sample.ttft_p95_seconds, 4),
        hit=_rounded(sample.prefix_cache_hit_ratio, 4),
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
