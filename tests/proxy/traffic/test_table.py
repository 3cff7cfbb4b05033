"""The routing table: silence lowers a standing and takes nothing away; keys of engines; figures of other proxies."""

from nebula_core.records.base import frozen_map
from nebula_core.records.compact import ReplicaDelta
from nebula_core.records.deployment import Deployment, DeploymentSpec, Limits
from nebula_core.records.endpoint import endpoints_by_model
from nebula_core.records.report import ModelTraffic, ProxyReport
from nebula_core.records.sample import EngineSample
from nebula_core.records.snapshot import ClusterSnapshot, ReceivedProxy
from nebula_core.security.sealing import SealingKeyPair, seal
from nebula_proxy.adapters.engine_keys import EngineKeys
from nebula_proxy.decisions.candidates import Standing
from nebula_proxy.decisions.ejection import Evidence
from nebula_proxy.decisions.prompt import chain
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


def test_silence_never_speaks_for_an_engine_that_failed() -> None:
    ejections = Ejections()
    routes = RoutingTable(EngineKeys(None), ejections)
    both = (endpoint(f"r{number}", number, engine_epoch="e1", sampled_at=100.0) for number in (0, 1))
    routes.update({MODEL: model(*both)})
    ejections.strike("r0", "e1", Evidence.HANG, 103.0)
    assert standings(routes, 103.1) == [Standing.STRUGGLING, Standing.SUSPECT]


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
    routes.update({MODEL: model(endpoint("r0", 1, engine_epoch="e1", sampled_at=100.0))})
    ejections.strike("r0", "e1", Evidence.REFUSED, 100.0)
    assert standings(routes, 100.5) == [Standing.OUT]
    assert standings(routes, 101.5) == [Standing.PROBE]
    routes.update({MODEL: model(endpoint("r0", 1, engine_epoch="e2", sampled_at=100.0))})
    assert standings(routes, 100.5) == [Standing.SOUND]
    assert not ejections.held


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
    routes.update(endpoints_by_model(seen, 0.0), revision=seen.revision)
    routes.count_elsewhere(seen.proxies, 100.0)
    assert routes.revision == 7
    found = routes.candidates(routes.models[MODEL], {"m-r1": 4}, 100.0)
    assert [(each.replica, each.inflight, each.elsewhere) for each in found] == [("m-r0", 0, 5), ("m-r1", 4, 1)]
    # A proxy that has fallen silent is not believed for ever.
    routes.count_elsewhere(seen.proxies, 110.0)
    assert [each.elsewhere for each in routes.candidates(routes.models[MODEL], {}, 110.0)] == [0, 0]


def test_where_others_wait_nobody_keeps_more_than_an_even_share() -> None:
    routes = table()
    waiting = other_proxy("a", m_r0=3).model_copy(update={"models": (ModelTraffic(model=MODEL, waiting=5),)})
    seen = snapshot(100.0, waiting, other_proxy("b"))
    routes.update(endpoints_by_model(seen, 0.0), revision=seen.revision)
    told: list[bool] = []
    routes.listeners.append(lambda: told.append(True))
    routes.count_elsewhere(seen.proxies, 100.0)
    assert told, "room may have come for those who wait here"
    most = Limits().inflight
    model = routes.models[MODEL]
    assert [row.rivals for row in routes.candidates(model, {}, 100.0)] == [1, 1]
    assert routes.field(model, 100.0).limits == [most // 2, most // 2]
    routes.count_elsewhere({}, 101.0)
    assert routes.field(model, 101.0).limits == [most, most]


def test_before_the_first_word_nothing_is_known() -> None:
    routes = table()
    assert not routes.known
    routes.update({})
    assert routes.known


def test_the_columns_are_kept_until_something_changes() -> None:
    ejections = Ejections()
    routes = RoutingTable(EngineKeys(None), ejections, "me", {"r0": 3})
    routes.update({MODEL: model(endpoint("r0", 1, sampled_at=100.0), endpoint("r1", 2, sampled_at=100.0))})
    made = routes.models[MODEL]
    first = routes.field(made, 100.1)
    assert routes.field(made, 101.9) is first
    # A sample that grows old, and a node that grows silent, by the clock alone.
    assert routes.field(made, 102.4) is not first
    silent = routes.field(made, 111.0)
    assert silent.tier is Standing.SILENT
    figures = (ReplicaDelta(id="r0", phase="ready", running=2, waiting=1, kv=0.5),)
    routes.heard({"n1": figures}, 111.0)
    fresh = routes.field(made, 111.0)
    assert fresh.tier is Standing.SOUND
    assert fresh.kv[0] == 0.5
    # What was open when the figures came is in them; what comes after is not.
    assert fresh.rows[0].inflight_at_sample == 3
    assert routes.field(made, 111.5) is fresh
    # What is held against an endpoint changes with every request.
    ejections.strike("r0", "e1", Evidence.REFUSED, 111.5)
    assert routes.field(made, 111.5).replicas == ["r1"]
    assert routes.field(made, 111.5, without="r1").replicas == []
    ejections.clear("r0")
    assert routes.field(made, 111.6) is fresh


def test_other_proxies_count_and_tell() -> None:
    routes = table()
    routes.tells_prefixes = True
    routes.update({MODEL: model(endpoint("m-r0", 1, sampled_at=100.0), endpoint("m-r1", 2, sampled_at=100.0))})
    made = routes.models[MODEL]
    digests = chain(b"x" * 1000)
    made.index.insert(digests, made.routes[0].seat, 100.0)
    assert routes.told_prefixes() == {}  # there is nobody to be told
    other = ProxyReport(
        proxy="other", sequence=1, pid=1, version="1", at=0.0, started_at=0.0, revision=0,
        inflight={"m-r1": 2}, unread_bytes={"m-r1": 500, "gone": 1}, prefixes={"m-r1": (digests[-1],), "gone": (1,)},
    )  # fmt: skip
    routes.count_elsewhere({"other": ReceivedProxy(other, 100.0)}, 100.5)
    row = routes.field(made, 100.5).rows[1]
    assert (row.elsewhere, row.unread_elsewhere) == (2, 500)
    held = {seat: depth for depth, seat in made.index.match([*digests, 7])}
    assert held == {made.routes[0].seat: 3, made.routes[1].seat: 3}
    made.index.insert(chain(b"y" * 600), made.routes[1].seat, 101.0)
    assert routes.told_prefixes() == {"m-r1": (chain(b"y" * 600)[-1],)}
    # Its word is believed for a moment only.
    routes.count_elsewhere({"other": ReceivedProxy(other, 100.0)}, 110.0)
    assert routes.field(made, 100.6).rows[1].elsewhere == 0


def test_a_slow_start_goes_on_by_the_clock() -> None:
    routes = table()
    new = endpoint("new", 1, sampled_at=100.0, ready_seconds=6.0)
    routes.update({MODEL: model(new, endpoint("old", 2, sampled_at=100.0, ready_seconds=500.0, share=0.5))})
    made = routes.models[MODEL]
    assert [row.weight for row in routes.field(made, 100.0).rows] == [0.2, 0.5]
    assert [row.weight for row in routes.field(made, 101.5).rows] == [0.25, 0.5]
    # The same start of the engine heard of again does not begin anew.
    routes.update({MODEL: model(endpoint("new", 1, sampled_at=115.0, ready_seconds=0.0))})
    assert routes.field(routes.models[MODEL], 115.0).rows[0].weight == 0.7


def test_the_caches_of_the_engines_bound_what_is_remembered() -> None:
    routes = table()
    sample = EngineSample(kv_cache_tokens=1000)
    routes.update({MODEL: model(endpoint("r0", 1, sample=sample), endpoint("r1", 2, sample=sample))})
    assert routes.models[MODEL].index.capacity_bytes == 2000 * 4 * 1.5
    other = ProxyReport(proxy="other", sequence=1, pid=1, version="1", at=0.0, started_at=0.0, revision=0)
    routes.count_elsewhere({"other": ReceivedProxy(other, 100.0)}, 100.5)
    assert routes.models[MODEL].index.capacity_bytes == 1000 * 4 * 1.5
    routes.update({MODEL: model(endpoint("r0", 1, sample=sample), endpoint("r1", 2, sample=EngineSample()))})
    assert routes.models[MODEL].index.capacity_bytes is None
