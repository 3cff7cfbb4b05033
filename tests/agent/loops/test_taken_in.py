"""A container that was taken in and is started again by others: the same replica, another start, wherever it is by then."""

from types import SimpleNamespace

import pytest

from nebula_agent.adapters.runtime import Started
from nebula_agent.decisions.containers import Container, ContainerState
from nebula_agent.loops.taken_in import started_again

FORMER = Started(
    runtime="docker",
    engine_epoch="e1",
    host="172.17.0.2",
    probe_host="172.17.0.2",
    port=8000,
    ports=(8000,),
    log_file="x.log",
    started_at=100.0,
    boot_id="b1",
    pid=70,
    pid_born=5.0,
    container_id="c1",
    container_started_at=100.0,
    container_port=8000,
    taken_in=True,
)


def again(started=FORMER, *, address="10.0.0.1", **container):
    values = {"id": "c1", "state": ContainerState.RUNNING, "started_at": 200.0, "address": "172.17.0.9", "pid": None}
    seen = Container.model_validate(values | container)
    context = SimpleNamespace(
        containers=SimpleNamespace(seen=lambda _: seen), settings=SimpleNamespace(address=address), boot_id="b2"
    )
    return started_again(started, context)


def test_it_is_another_start_of_the_same_replica():
    renewed = again(published={8000: ("0.0.0.0", 8000)})
    assert renewed.engine_epoch != FORMER.engine_epoch
    assert (renewed.container_id, renewed.started_at, renewed.boot_id) == ("c1", 200.0, "b2")
    assert (renewed.pid, renewed.pid_born) == (None, None)
    assert (renewed.probe_host, renewed.port, renewed.reached_at) == ("172.17.0.9", 8000, None)
    assert again(renewed, published={8000: ("0.0.0.0", 8000)}) is None, "once for each start"


@pytest.mark.parametrize(
    ("published", "place"),
    [
        ({8000: ("0.0.0.0", 32769)}, ("127.0.0.1", 32769, None)),
        ({8000: ("10.0.0.7", 32769)}, ("10.0.0.7", 32769, "10.0.0.7")),
        ({}, ("172.17.0.9", 8000, "172.17.0.9")),
    ],
)
def test_port_and_address_are_those_of_the_new_start(published, place):
    renewed = again(published=published)
    assert (renewed.probe_host, renewed.port, renewed.reached_at) == place
    assert renewed.ports == (renewed.port,)


def test_on_the_nodes_own_network_it_stays_where_it_was():
    former = FORMER.model_copy(update={"container_port": None, "host": "127.0.0.1", "probe_host": "127.0.0.1"})
    renewed = again(former, address="10.0.0.1", published={})
    assert (renewed.probe_host, renewed.port, renewed.reached_at) == ("127.0.0.1", 8000, None)


@pytest.mark.parametrize(
    "container",
    [
        {"started_at": 100.0},
        {"started_at": None},
        {"state": ContainerState.RESTARTING},
        {"state": ContainerState.PAUSED},
        {"state": ContainerState.EXITED},
    ],
)
def test_nothing_is_begun_anew_while_it_is_the_same_start_or_does_not_run(container):
    assert again(**container) is None


def test_what_nebula_started_or_what_is_no_container_is_none_of_this():
    assert again(FORMER.model_copy(update={"container_started_at": None})) is None
    assert again(None) is None
