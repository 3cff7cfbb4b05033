"""The routing table: silence lowers a standing and takes nothing away; keys of engines; figures of other proxies."""

from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.report import ProxyReport
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.security.sealing import SealingKeyPair, seal
from nebula_proxy.adapters.engine_keys import EngineKeys
from nebula_proxy.decisions.candidates import Standing
from nebula_proxy.decisions.ejection import Evidence
from nebula_proxy.traffic.ejections import Ejections
from nebula_proxy.traffic.routing_table import GRACE_SECONDS, RoutingTable
from tests.support.data_plane import MODEL, endpoint, model
from tests.support.proxy_process import report


def table(pair: SealingKeyPair | None = None) -> RoutingTable:
    return RoutingTable(EngineKeys(pair), Ejections(), "me")


def standings(table_: RoutingTable, now: float) -> list[Standing]:
    return [each.standing for each in table_.candidates(table_.models[MODEL], {}, now)]


def test_silence_lowers_the_standing_by_steps() -> None:
    routes = table()
    routes.update({MODEL: model(endpoint("r0", 1, sampled_at=100.0))})
    assert standings(routes, 101.0) == [Standing.SOUND]
    assert standings(routes, 103.0) == [Standing.SUSPECT]
    assert standings(routes, 111.0) == [Standing.SILENT]
    assert standings(routes, 10_000.0) == [Standing.SILENT]


def test_while_the_store_is_away_nobody_grows_silent() -> None:
    routes = table()
    routes.update({MODEL: model(endpoint("r0", 1, sampled_at=100.0))})
    routes.hear(101.0, reachable=False)
    assert standings(routes, 1_000.0) == [Standing.SOUND]
    # What engines said before is too old to turn anybody away.
    assert routes.candidates(routes.models[MODEL], {}, 101.0)[0].sample_age == float("inf")
    routes.hear(1_000.0, reachable=True)
    assert standings(routes, 1_000.0) == [Standing.SOUND]  # they have not had the time to be heard
    routes.hear(1_000.0 + GRACE_SECONDS, reachable=True)
    assert standings(routes, 1_000.0 + GRACE_SECONDS) == [Standing.SILENT]


def test_a_route_lives_as_long_as_its_engine_start() -> None:
    routes = table()
    routes.update({MODEL: model(endpoint("r0", 1, engine_epoch="e1"))})
    first = routes.models[MODEL].routes[0]
    routes.update({MODEL: model(endpoint("r0", 1, engine_epoch="e1"))})
    assert routes.models[MODEL].routes[0] is first
    routes.update({MODEL: model(endpoint("r0", 2, engine_epoch="e2"))})
    assert routes.models[MODEL].routes[0] is not first


def test_evidence_ends_with_the_engine_start() -> None:
    ejections = Ejections()
    routes = RoutingTable(EngineKeys(None), ejections)
    routes.update({MODEL: model(endpoint("r0", 1, engine_epoch="e1"))})
    ejections.strike("r0", "e1", Evidence.REFUSED, 100.0)
    assert standings(routes, 100.5) == [Standing.OUT]
    assert standings(routes, 101.5) == [Standing.PROBE]
    routes.update({MODEL: model(endpoint("r0", 1, engine_epoch="e2"))})
    assert standings(routes, 100.5) == [Standing.SOUND]
    assert not ejections


def test_sealed_keys_are_opened_and_sent() -> None:
    pair = SealingKeyPair.generate()
    sealed = seal(pair.public, b"engine-key", context=b"r0|e1")
    routes = table(pair)
    routes.update({MODEL: model(endpoint("r0", 1, sealed_key=sealed))})
    (route,) = routes.models[MODEL].routes
    assert b"\r\nauthorization: Bearer engine-key\r\n" in route.head(b"/v1/completions")
    assert route.keyed


def test_an_engine_whose_key_does_not_open_is_left_out() -> None:
    pair = SealingKeyPair.generate()
    sealed = seal(pair.public, b"engine-key", context=b"r0|another start")
    for routes in (table(pair), table(None)):
        routes.update({MODEL: model(endpoint("r0", 1, sealed_key=sealed), endpoint("r1", 2))})
        assert [route.replica for route in routes.models[MODEL].routes] == ["r1"]


def test_ipv6_addresses_are_bracketed() -> None:
    routes = table()
    routes.update({MODEL: model(endpoint("r0", 1, host="::1"))})
    assert b"\r\nhost: [::1]:1\r\n" in routes.models[MODEL].routes[0].head(b"/x")


def snapshot(at: float, *proxies: ProxyReport) -> ClusterSnapshot:
    spec = DeploymentSpec(source="sim", engine="simulated", replicas=2)
    deployments = frozen_map({MODEL: Deployment(name=MODEL, generation=1, spec=spec)})
    return ClusterSnapshot(revision=7, deployments=deployments).with_reports([report([1, 2], 1)], proxies, at=at)


def other_proxy(name: str, **inflight: int) -> ProxyReport:
    return ProxyReport(
        proxy=name, sequence=1, pid=1, version="0", at=0.0, started_at=0.0, revision=7,
        inflight={replica.replace("_", "-"): count for replica, count in inflight.items()},
    )  # fmt: skip


def test_open_requests_of_other_proxies_count() -> None:
    routes = table()
    seen = snapshot(100.0, other_proxy("a", m_r0=3), other_proxy("b", m_r0=2, m_r1=1), other_proxy("me", m_r1=9))
    routes.follow(seen, 100.0)
    assert routes.revision == 7
    found = routes.candidates(routes.models[MODEL], {"m-r1": 4}, 100.0)
    assert [(each.replica, each.inflight, each.elsewhere) for each in found] == [("m-r0", 0, 5), ("m-r1", 4, 1)]
    # A proxy that has fallen silent is not believed for ever.
    routes.follow(seen, 110.0)
    assert [each.elsewhere for each in routes.candidates(routes.models[MODEL], {}, 110.0)] == [0, 0]


def test_a_lost_node_keeps_its_endpoints_in_the_table() -> None:
    routes = table()
    routes.follow(snapshot(100.0), 100_000.0)
    assert len(routes.models[MODEL].routes) == 2


def test_before_the_first_word_nothing_is_known() -> None:
    routes = table()
    assert not routes.known
    routes.update({})
    assert routes.known
