"""A replica as its agent reports it: put together from its order, its book, and what the monitor last saw."""

from nebula_agent.loops.context import Context
from nebula_agent.loops.engine_monitor import EngineMonitor
from nebula_agent.loops.how_run import program_of, runtime_name
from nebula_agent.loops.replica_book import ReplicaBook
from nebula_core.records.engine_health import EngineHealth
from nebula_core.records.placement import Placement
from nebula_core.records.replica import EndpointAddress, ReplicaStatus


def replica_status(
    placement: Placement,
    book: ReplicaBook,
    monitor: EngineMonitor | None,
    sealed_key: str | None,
    context: Context,
    now: float,
    *,
    alive: bool | None,
) -> ReplicaStatus:
    kept, spec = book.kept, placement.spec
    started = kept.started
    runtime = started.runtime if started is not None else runtime_name(placement, context)
    program = program_of(placement, context) if monitor is None else None
    sampled_at = monitor.sampled_at if monitor is not None else None
    return ReplicaStatus(
        id=kept.replica,
        deployment=placement.deployment,
        model=placement.deployment,
        node=placement.node,
        gpus=placement.gpus if started is None else started.gpus,
        engine=spec.engine,
        engine_version=monitor.version
        if monitor is not None
        else (program.version_text if program is not None else None),
        runtime=runtime,
        image=kept.image if started is None else started.image,
        image_digest=kept.image_digest if started is None else started.image_digest,
        phase=kept.phase,
        phase_reason=kept.phase_reason,
        phase_seconds=round(now - book.since, 1),
        generation=placement.generation,
        placement_epoch=placement.epoch,
        placement_revision=placement.revision,
        endpoint=None
        if started is None
        else EndpointAddress(
            # Proxies connect to the number that was judged, whatever its name says later.
            host=started.host if started.runtime == "external" else (started.reached_at or context.settings.address),
            port=started.port,
            sealed_key=sealed_key,
            served_model=None if started.served_model == placement.deployment else started.served_model,
        ),
        engine_epoch=None if started is None else started.engine_epoch,
        pid=None if started is None else started.pid,
        container_id=None if started is None else started.container_id,
        started_at=None if started is None else started.started_at,
        restarts=kept.restarts,
        simulated=spec.engine == "simulated",
        load_seconds=kept.load_seconds,
        sample=monitor.sample if monitor is not None else None,
        sample_age_seconds=None if sampled_at is None else round(now - sampled_at, 2),
        failure_log=kept.failure_log,
        first_failure_reason=kept.first_failure_reason,
        first_failure_log=kept.first_failure_log,
        evidence=kept.evidence,
        health=_health(book, monitor, now, alive=alive),
        metrics_schema=monitor.schema if monitor is not None else None,
    )


def _health(book: ReplicaBook, monitor: EngineMonitor | None, now: float, *, alive: bool | None) -> EngineHealth | None:
    if alive is None:
        return None
    if monitor is None:
        started = book.kept.started
        return EngineHealth(engine_epoch=None if started is None else started.engine_epoch, alive=alive)
    return monitor.health(now, alive=alive, ready=book.kept.proven or monitor.proven)
