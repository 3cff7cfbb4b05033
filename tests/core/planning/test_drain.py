"""The gate of a drain: when a replica may be told to stop, and what it waits for until then."""

from dataclasses import replace

import pytest

from nebula_core.planning.drain import Gate, may_stop
from nebula_core.planning.memory import observe
from nebula_core.planning.policy import DrainSeen, PlanPolicy
from nebula_core.records.base import frozen_map
from nebula_core.records.node import DrainIntent, NodeIntent
from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.sample import EngineSample
from nebula_core.records.snapshot import ClusterSnapshot
from tests.support.records import a_placement, a_proxy_report, a_report, a_status

DRAINING = a_placement(wanted=Wanted.DRAIN, revision=6)
IDLE = EngineSample(requests_running=0, requests_waiting=0)


def view_of(
    *,
    at: float = 100.0,
    revision: int = 7,
    acknowledged: int = 7,
    inflight: int = 0,
    sample: EngineSample | None = IDLE,
    proxies: int = 1,
    phase: Phase = Phase.DRAINING,
) -> ClusterSnapshot:
    view = ClusterSnapshot(revision=revision, placements=frozen_map({"chat-r1": DRAINING}))
    status = a_status(phase=phase, sample=sample, load_seconds=1.0)
    open_requests = {"chat-r1": inflight} if inflight else {}
    return view.with_reports(
        [a_report(replicas=(status,), sequence=int(at))],
        [
            a_proxy_report(f"p{number}", sequence=int(at), revision=acknowledged, inflight=open_requests)
            for number in range(1, proxies + 1)
        ],
        at=at,
    )


def status_of(view: ClusterSnapshot) -> ReplicaStatus | None:
    return view.replicas().get("chat-r1")


def gate(view: ClusterSnapshot, seen: DrainSeen | None, now: float) -> Gate:
    return may_stop(view, DRAINING, status_of(view), now, seen)


def test_the_pass_that_begins_a_drain_does_not_end_it():
    assert gate(view_of(), None, 100.0) == Gate(open=False, reason="drain begins")


def test_quiet_twice_opens_it():
    seen = DrainSeen(since=90.0, revision=7, quiet_at=99.0)
    assert gate(view_of(at=100.0), seen, 100.1) == Gate(open=True, reason="nothing in flight")


def test_once_is_not_enough():
    seen = DrainSeen(since=90.0, revision=7, quiet_at=100.0)
    assert gate(view_of(at=100.0), seen, 100.1).reason == "quiet, waits to hear it twice"


def test_every_proxy_must_say_it_again():
    seen = DrainSeen(since=90.0, revision=7, quiet_at=100.0)
    view = view_of(at=100.0, proxies=2).with_reports(
        [a_report(replicas=(a_status(sample=IDLE, load_seconds=1.0),), sequence=101)],
        [a_proxy_report("p1", sequence=101, revision=7)],
        at=101.0,
    )
    assert not gate(view, seen, 101.1).open
    view = view.with_reports(proxies=[a_proxy_report("p2", sequence=101, revision=7)], at=101.2)
    assert gate(view, seen, 101.3).open


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (view_of(acknowledged=6), "waits for proxy p1 to take it out of routing, 10 of 600 s"),
        (view_of(inflight=3, proxies=2), "6 in flight, 10 of 600 s"),
        (view_of(inflight=3, sample=None), "3 in flight, 10 of 600 s"),
        (
            view_of(sample=EngineSample(requests_running=2, requests_waiting=1)),
            "the engine still counts 3 requests, 10 of 600 s",
        ),
        (
            view_of(sample=None, proxies=0),
            "no proxy and no engine figures: nobody can tell whether it is idle, 10 of 600 s",
        ),
    ],
)
def test_what_it_waits_for(view: ClusterSnapshot, reason: str):
    assert gate(view, DrainSeen(since=90.0, revision=7, quiet_at=95.0), 100.0) == Gate(open=False, reason=reason)


def test_without_engine_figures_the_proxies_word_is_enough():
    assert gate(view_of(sample=None), DrainSeen(since=90.0, revision=7, quiet_at=95.0), 100.0).open


def test_without_a_proxy_the_engines_word_is_enough():
    assert gate(view_of(proxies=0), DrainSeen(since=90.0, revision=7, quiet_at=95.0), 100.0).open


def test_a_proxy_that_fell_silent_is_not_waited_for():
    view = view_of(at=100.0, acknowledged=2)
    view = view.with_reports([a_report(replicas=(a_status(sample=IDLE),), sequence=111)], at=111.0)
    assert gate(view, DrainSeen(since=90.0, revision=7, quiet_at=105.0), 111.0).open


def test_grace_ends_it_and_says_what_is_cut():
    seen = DrainSeen(since=100.0, revision=7)
    told = gate(view_of(at=700.0, inflight=4), seen, 700.0)
    assert told == Gate(open=True, reason="grace of 600 s is over, which cuts what is left: 4 in flight")


def test_the_drain_of_a_node_sets_its_own_grace():
    intent = NodeIntent(node="n1", drain=DrainIntent(by="ops", since=0.0, grace_seconds=5.0))
    view = replace(view_of(inflight=1), intents=frozen_map({"n1": intent}))
    assert gate(view, DrainSeen(since=94.0, revision=7), 100.0).open


@pytest.mark.parametrize("phase", [Phase.STOPPED, Phase.FAILED])
def test_what_does_not_run_need_not_be_waited_for(phase: Phase):
    assert gate(view_of(phase=phase, inflight=2), DrainSeen(since=100.0, revision=7), 100.0).open


def test_a_silent_node_is_waited_for_until_the_grace_is_over():
    seen = DrainSeen(since=90.0, revision=7, quiet_at=105.0)
    view = view_of(at=100.0)
    assert not gate(view, seen, 130.0).open


def test_memory_takes_the_revision_at_which_the_drain_was_seen():
    """The change's own revision is not known to a later leader; that of its first view with it is never too low."""
    policy = observe(PlanPolicy(), view_of(revision=7, acknowledged=6), 100.0)
    assert policy.memory.drains["chat-r1"] == DrainSeen(since=100.0, revision=7, quiet_at=None)
    policy = observe(policy, view_of(at=101.0, revision=30, acknowledged=7), 101.0)
    assert policy.memory.drains["chat-r1"] == DrainSeen(since=100.0, revision=7, quiet_at=101.0)
    policy = observe(policy, view_of(at=102.0), 102.0)
    assert policy.memory.drains["chat-r1"].quiet_at == 101.0
    policy = observe(policy, view_of(at=103.0, inflight=1), 103.0)
    assert policy.memory.drains["chat-r1"].quiet_at is None
    policy = observe(policy, replace(view_of(at=104.0), placements=frozen_map()), 104.0)
    assert not policy.memory.drains
