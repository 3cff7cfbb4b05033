"""Who may take a request: ready, placed here to run, on a node that is not lost."""

import pytest

from nebula_core.records.deployment import Adapter, Deployment, DeploymentSpec, Limits
from nebula_core.records.endpoint import ModelView, endpoints_by_model
from nebula_core.records.event import Change, ChangeKind
from nebula_core.records.placement import Placement, SignedPlacement, Wanted
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.snapshot import ClusterSnapshot
from tests.support.records import a_placement, a_report, a_status

SPEC = DeploymentSpec(source="m", replicas=2, limits=Limits(inflight=7), strategy="prefix")


def a_cluster(
    *statuses: ReplicaStatus, placements: tuple[Placement, ...] = (), deployed: bool = True
) -> ClusterSnapshot:
    changes = [
        Change(
            revision=number,
            kind=ChangeKind.PLACEMENT,
            id=placement.replica,
            value=SignedPlacement(payload=placement.to_json(), key_id="k", signature="s").to_json(),
        )
        for number, placement in enumerate(placements, 1)
    ]
    if deployed:
        deployment = Deployment(name="chat", generation=1, spec=SPEC)
        changes.append(Change(revision=99, kind=ChangeKind.DEPLOYMENT, id="chat", value=deployment.to_json()))
    nodes = {status.node for status in statuses}
    reports = [a_report(node, replicas=tuple(s for s in statuses if s.node == node)) for node in sorted(nodes)]
    return ClusterSnapshot().with_changes(changes).with_reports(reports, at=100.0)


def view(snapshot: ClusterSnapshot, now: float = 100.0, model: str = "chat") -> ModelView:
    return endpoints_by_model(snapshot, now)[model]


def test_a_ready_replica_is_an_endpoint_with_the_limits_of_its_deployment() -> None:
    found = view(a_cluster(a_status(), placements=(a_placement(),)))
    (endpoint,) = found.endpoints
    assert (endpoint.replica, endpoint.node, endpoint.host, endpoint.port) == ("chat-r1", "n1", "10.0.0.1", 20000)
    assert (endpoint.limits.inflight, endpoint.strategy, endpoint.suspect) == (7, "prefix", False)
    assert (found.wanted, found.starting) == (2, 0)


@pytest.mark.parametrize("phase", list(Phase))
def test_only_ready_ones_are_routable(phase: Phase) -> None:
    found = view(a_cluster(a_status(phase=phase)))
    assert len(found.endpoints) == (phase is Phase.READY)
    assert found.starting == (phase in {Phase.PENDING, Phase.PULLING, Phase.CREATING, Phase.LOADING})


@pytest.mark.parametrize("wanted", list(Wanted))
def test_a_drain_takes_it_out_at_once(wanted: Wanted) -> None:
    found = view(a_cluster(a_status(), placements=(a_placement(wanted=wanted),)))
    assert len(found.endpoints) == (wanted is Wanted.RUN)


def test_absence_of_its_placement_is_no_order() -> None:
    assert len(view(a_cluster(a_status())).endpoints) == 1


def test_the_copy_on_a_node_it_was_moved_from_is_not_routed() -> None:
    found = view(a_cluster(a_status(node="n1"), a_status(node="n2"), placements=(a_placement(node="n2"),)))
    assert [endpoint.node for endpoint in found.endpoints] == ["n2"]


def test_a_silent_node_is_first_suspect_then_lost() -> None:
    snapshot = a_cluster(a_status())
    assert [endpoint.suspect for endpoint in view(snapshot, 102.5).endpoints] == [True]
    assert view(snapshot, 110.5).endpoints == ()


def test_no_request_goes_to_an_engine_that_was_only_found() -> None:
    """Whoever may start a process on a node could call it `chat`, and read what clients ask."""
    ready = a_status("found-1", deployment="found-1", model="chat", managed=False)
    loading = a_status("found-2", deployment="found-2", model="chat", managed=False, phase=Phase.LOADING)
    views = endpoints_by_model(a_cluster(ready, loading), 100.0)
    assert views["chat"].endpoints == ()
    assert views["chat"].starting == 0


def test_engines_whose_deployment_is_gone_are_models_too() -> None:
    views = endpoints_by_model(a_cluster(a_status("mine-r1", deployment="mine", model="mine")), 100.0)
    assert views["mine"].endpoints[0].replica == "mine-r1"
    assert views["mine"].endpoints[0].limits == Limits()
    assert views["chat"].endpoints == ()


def test_a_replica_without_an_address_is_not_routed() -> None:
    assert view(a_cluster(a_status(endpoint=None))).endpoints == ()


def test_endpoints_come_in_a_stable_order() -> None:
    statuses = [a_status(f"chat-r{number}", node=f"n{number}") for number in (3, 1, 2)]
    found = view(a_cluster(*statuses))
    assert [endpoint.replica for endpoint in found.endpoints] == ["chat-r1", "chat-r2", "chat-r3"]


def test_adapters_and_the_longest_request_are_told() -> None:
    adapters = (Adapter(name="sql", source="a"), Adapter(name="poem", source="b"))
    spec = DeploymentSpec(source="m", adapters=adapters, args={"max-model-len": 8192})
    value = Deployment(name="chat", generation=1, spec=spec).to_json()
    change = Change(revision=1, kind=ChangeKind.DEPLOYMENT, id="chat", value=value)
    found = view(ClusterSnapshot().with_changes([change]))
    assert (found.adapters, found.max_model_len) == (("sql", "poem"), 8192)


def test_an_adapter_has_a_name_of_its_own() -> None:
    twice = (Adapter(name="sql", source="a"), Adapter(name="sql", source="b"))
    with pytest.raises(ValueError, match="stands there twice"):
        DeploymentSpec(source="m", adapters=twice)
    with pytest.raises(ValueError, match="name"):
        Adapter(name="a/b", source="x")
