"""Engines that were taken in, as starts like any other: how one begins, and how it goes on when its container is started again.

Whoever started a container may have told Docker to start it again when it ends (`--restart`), or does so by hand. That is
the same container by the same command line, so it stays the replica it is: with a new epoch, because counters and caches
begin anew, and with its address and port looked up anew, because Docker may give it others.
"""

import secrets

from nebula_agent.adapters.process_runtime import born
from nebula_agent.adapters.runtime import Started
from nebula_agent.decisions.containers import ContainerState
from nebula_agent.decisions.found_place import FoundPlace, place_of
from nebula_agent.decisions.listeners import Listener
from nebula_agent.loops.context import Context
from nebula_agent.loops.found_engine import Found


def start_of(found: Found, place: FoundPlace, served_model: str, context: Context) -> Started:
    """The start of an engine that is taken in as it runs. Its owner says where its log is."""
    container = found.container
    started = Started(
        runtime=found.runtime,
        engine_epoch=secrets.token_hex(6),
        host=place.probe_host,
        probe_host=place.probe_host,
        port=place.port,
        gpus=found.gpus,
        log_file="",
        started_at=found.started_at,
        boot_id=context.boot_id,
        pid=found.pid,
        pid_born=found.born,
        container_id=None if container is None else container.id,
        container_started_at=None if container is None else container.started_at,
        container_port=place.own_port,
        image=found.image,
        served_model=served_model,
        taken_in=True,
    )
    return _at(started, place, context)


def started_again(started: Started | None, context: Context) -> Started | None:
    """The next start of the same container, if that is what runs now; None: all is as it was, or it does not run."""
    if started is None or started.container_started_at is None or context.containers is None:
        return None
    container = context.containers.seen(started)
    if container is None or container.state is not ContainerState.RUNNING:
        return None
    if container.started_at in {None, started.container_started_at}:
        return None
    pid = container.pid
    following = started.model_copy(
        update={
            "engine_epoch": secrets.token_hex(6),
            "started_at": container.started_at,
            "container_started_at": container.started_at,
            "boot_id": context.boot_id,
            "pid": pid,
            "pid_born": None if pid is None else born(pid),
        }
    )
    if started.container_port is None:
        return following
    place = place_of(Listener("0.0.0.0", started.container_port, 0), elsewhere=True, container=container)
    return following if isinstance(place, str) else _at(following, place, context)


def _at(started: Started, place: FoundPlace, context: Context) -> Started:
    reached_at = place.reached_at(context.settings.address)
    return started.model_copy(
        update={
            "host": place.probe_host,
            "probe_host": place.probe_host,
            "port": place.port,
            "ports": (place.port,),
            "reached_at": None if reached_at == context.settings.address else reached_at,
        }
    )
