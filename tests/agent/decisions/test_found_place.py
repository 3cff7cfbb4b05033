"""Where a found engine is reached, and what is said where it is not."""

import pytest

from nebula_agent.decisions.containers import Container, ContainerState
from nebula_agent.decisions.found_place import FoundPlace, on_node, place_of, why_silent, why_unreachable
from nebula_agent.decisions.listeners import Listener

EVERYWHERE, LOOPBACK = Listener("0.0.0.0", 8000, 1), Listener("127.0.0.1", 8000, 1)


def box(**changes):
    return Container.model_validate({"id": "c", "state": ContainerState.RUNNING, "address": "172.17.0.2"} | changes)


def test_on_the_nodes_own_network_it_is_where_it_listens():
    assert place_of(EVERYWHERE, elsewhere=False, container=None) == FoundPlace("0.0.0.0", 8000, "127.0.0.1", True)
    assert place_of(LOOPBACK, elsewhere=False, container=box()) == FoundPlace("127.0.0.1", 8000, "127.0.0.1", False)


def test_a_published_port_is_asked_behind_the_helper_where_that_is_possible():
    same = place_of(EVERYWHERE, elsewhere=True, container=box(published={8000: ("0.0.0.0", 8000)}))
    assert (same.reached_at("10.0.0.1"), same.port, same.probe_host) == ("10.0.0.1", 8000, "172.17.0.2")
    other = place_of(EVERYWHERE, elsewhere=True, container=box(published={8000: ("10.0.0.1", 9000)}))
    assert (other.reached_at("10.0.0.9"), other.port, other.probe_host) == ("10.0.0.1", 9000, "10.0.0.1")


@pytest.mark.parametrize(
    ("listener", "container", "word"),
    [
        (EVERYWHERE, None, "no Docker that knows its container"),
        (LOOPBACK, box(published={8000: ("0.0.0.0", 8000)}), "start it with --host 0.0.0.0"),
        (EVERYWHERE, box(address=None), "start it with -p 8000:8000"),
    ],
)
def test_what_nobody_reaches_says_why(listener, container, word):
    assert word in place_of(listener, elsewhere=True, container=container)


@pytest.mark.parametrize(
    ("place", "word"),
    [
        (place_of(EVERYWHERE, elsewhere=True, container=box()), "-p 8000:8000, or with --network host"),
        (place_of(LOOPBACK, elsewhere=False, container=None), "start it with --host 10.0.0.1"),
        (
            place_of(EVERYWHERE, elsewhere=True, container=box(published={8000: ("127.0.0.1", 9000)})),
            "start it with -p 10.0.0.1:9000:8000",
        ),
    ],
)
def test_only_proxies_on_the_same_machine_reach_a_loopback_or_a_bridge(place, word):
    assert word in why_unreachable(place, "10.0.0.1")
    assert why_unreachable(place, "127.0.0.1") is None


def test_others_reach_what_listens_everywhere_or_on_an_address_of_the_node():
    for listener in (EVERYWHERE, Listener("10.0.0.1", 8000, 1)):
        place = place_of(listener, elsewhere=False, container=None)
        assert why_unreachable(place, "10.0.0.1") is None
        assert place.reached_at("10.0.0.1") == "10.0.0.1"


def test_a_paused_container_is_said_to_be_paused():
    assert (
        why_silent(box(state=ContainerState.PAUSED, name="x"), "silent") == "its container is paused: docker unpause x"
    )
    assert why_silent(box(), "silent") == why_silent(None, "silent") == "silent"


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("/models/q", "/data/models/q"),
        ("/models", "/data/models"),
        ("/models/sub/q", "/other/q"),
        ("/modelsx/q", "/modelsx/q"),
        ("/in/the/image", "/in/the/image"),
    ],
)
def test_a_path_of_the_container_is_found_on_the_node(path, there):
    assert on_node(path, {"/models": "/data/models", "/models/sub": "/other"}) == there
