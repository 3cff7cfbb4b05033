"""What operators read of it: each thing once, with the figures that matter."""

from nebula_core.planning.story import tell_changes, tell_nodes, tell_plan, tell_reports
from nebula_core.records.base import frozen_map
from nebula_core.records.placement import Wanted
from nebula_core.records.plan import PlacementChange, Plan, Unplaceable
from nebula_core.records.replica import Phase
from nebula_core.records.snapshot import ClusterSnapshot, NodeState
from tests.support.cluster_model import make_node
from tests.support.records import a_placement, a_report, a_status


def heard(*statuses: object, sequence: int = 1, before: ClusterSnapshot | None = None) -> ClusterSnapshot:
    return (before or ClusterSnapshot()).with_reports(
        [a_report(sequence=sequence, replicas=statuses)], at=100.0 + sequence
    )


def test_ready_says_how_long_it_took():
    before = heard(a_status(phase=Phase.LOADING))
    after = heard(a_status(phase=Phase.READY, load_seconds=48.2), sequence=2, before=before)
    (event,) = tell_reports(before, after, 5.0)
    assert (event.kind, event.object, event.message) == ("ready", "replica/chat-r1", "ready in 48 s on n1")
    assert (event.actor, event.severity, event.at) == ("agent", "info", 5.0)


def test_failed_says_why_and_is_grave():
    before = heard(a_status(phase=Phase.READY))
    after = heard(a_status(phase=Phase.FAILED, phase_reason="exit 137: out of memory"), sequence=2, before=before)
    (event,) = tell_reports(before, after, 5.0)
    assert (event.kind, event.message, event.severity) == ("failed", "exit 137: out of memory", "crit")


def test_a_restart_between_two_reports_is_told():
    before = heard(a_status(restarts=0))
    after = heard(a_status(restarts=1), sequence=2, before=before)
    assert [event.kind for event in tell_reports(before, after, 5.0)] == ["restart"]


def test_figures_are_no_news():
    before = heard(a_status())
    assert tell_reports(before, heard(a_status(), sequence=2, before=before), 5.0) == []
    assert tell_reports(before, before, 5.0) == []


def test_nodes_are_told_lost_and_back_but_not_a_moments_silence():
    view = ClusterSnapshot(nodes=frozen_map({"n1": make_node("n1")}), placements=frozen_map({"chat-r1": a_placement()}))

    def told(was: NodeState | None, state: NodeState) -> list[tuple[str, str]]:
        before = {} if was is None else {"n1": was}
        return [(event.kind, event.message) for event in tell_nodes(before, {"n1": state}, view, 5.0)]

    assert told(NodeState.READY, NodeState.SUSPECT) == []
    assert told(NodeState.SUSPECT, NodeState.LOST) == [("lost", "silent for more than 10 s with 1 replica")]
    assert told(NodeState.LOST, NodeState.LOST) == []
    assert told(NodeState.LOST, NodeState.READY) == [("back", "answers again")]
    assert told(None, NodeState.READY) == [("joined", "reports for the first time, 4 GPUs")]
    assert told(None, NodeState.LOST) == []


def test_orders_are_told_and_removals_are_not():
    view = ClusterSnapshot(placements=frozen_map({"chat-r1": a_placement()}))

    def kinds(replica: str, wanted: Wanted | None) -> list[str]:
        placement = None if wanted is None else a_placement(replica, wanted=wanted, reason="why")
        change = PlacementChange(replica=replica, placement=placement, reason="what")
        return [event.kind for event in tell_changes(view, [change], 5.0)]

    assert kinds("chat-r2", Wanted.RUN) == ["placed"]
    assert kinds("chat-r1", Wanted.RUN) == ["kept"]
    assert kinds("chat-r1", Wanted.DRAIN) == ["drain"]
    assert kinds("chat-r1", Wanted.STOP) == ["stop"]
    assert kinds("chat-r1", None) == []


def test_the_brake_and_the_unplaceable_are_told_when_they_begin_and_end():
    blocked = Plan(unplaceable=(Unplaceable(deployment="chat", count=2, reason="needs 8 GPUs"),))
    braked = Plan(brake="most nodes vanished")

    def kinds(before: Plan | None, plan: Plan) -> list[str]:
        return [event.kind for event in tell_plan(before, plan, 5.0)]

    assert kinds(None, Plan()) == []
    assert kinds(Plan(), blocked) == ["blocked"]
    assert kinds(blocked, blocked) == []
    assert kinds(blocked, Plan()) == ["unblocked"]
    assert kinds(blocked, braked) == ["brake"]
    assert kinds(braked, braked) == []
    assert kinds(braked, Plan()) == ["brake"]
