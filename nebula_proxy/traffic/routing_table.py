"""Which replicas there are for each model, as this process routes by it: replaced by listeners, read by every request.

Derived from the snapshot and kept as it is while the store is away. Silence of a node takes nothing out of the
table; it only lowers the standing of its endpoints, by the time of the last word of the node against the clock. While
the store does not answer nobody can be heard, so that clock stands still, and for a moment after it is back.
"""

from collections.abc import Iterable, Mapping
from math import inf

from nebula_core.records.endpoint import Endpoint, ModelView, endpoints_by_model
from nebula_core.records.snapshot import LOST_AFTER_SECONDS, SUSPECT_AFTER_SECONDS, ClusterSnapshot
from nebula_proxy.adapters.engine_keys import EngineKeys
from nebula_proxy.decisions.candidates import Candidate, Standing
from nebula_proxy.traffic.ejections import Ejections

#: After the store is back, nodes get this long to be heard before their silence counts.
GRACE_SECONDS = LOST_AFTER_SECONDS
#: What another proxy said of its open requests is believed for so long.
PROXY_FRESH_SECONDS = 3.0

_SOUND, _OUT = Standing.SOUND, Standing.OUT


class Route:
    """An endpoint with what a request to it needs at hand."""

    __slots__ = (
        "_heads",
        "_key",
        "address",
        "elsewhere",
        "endpoint",
        "kv_cache_usage",
        "limits",
        "replica",
        "sampled_at",
        "waiting",
    )

    def __init__(self, endpoint: Endpoint, key: bytes | None) -> None:
        self.replica = endpoint.replica
        self.address = (endpoint.host, endpoint.port)
        self._key = key
        self._heads: dict[bytes, bytes] = {}
        #: Open requests of other proxies.
        self.elsewhere = 0
        self.follow(endpoint)

    def follow(self, endpoint: Endpoint) -> None:
        """Takes newer figures of the same engine start."""
        self.endpoint = endpoint
        self.sampled_at = endpoint.sampled_at
        limits = endpoint.limits
        self.limits = (limits.waiting, limits.kv_cache_usage, limits.inflight)
        sample = endpoint.sample
        self.waiting = None if sample is None else sample.requests_waiting
        self.kv_cache_usage = None if sample is None else sample.kv_cache_usage

    def is_same(self, endpoint: Endpoint) -> bool:
        mine = self.endpoint
        return (
            mine.engine_epoch == endpoint.engine_epoch
            and mine.port == endpoint.port
            and mine.host == endpoint.host
            and mine.sealed_key == endpoint.sealed_key
        )

    @property
    def keyed(self) -> bool:
        return self._key is not None

    def head(self, path: bytes) -> bytes:
        """Request line and the headers that are the same for every request of a path."""
        head = self._heads.get(path)
        if head is None:
            host, port = self.address
            name = f"[{host}]" if ":" in host else host
            head = b"POST %b HTTP/1.1\r\nhost: %b:%d\r\n" % (path, name.encode("ascii"), port)
            if self._key is not None:
                head += b"authorization: Bearer %b\r\n" % self._key
            self._heads[path] = head
        return head


class ModelRoutes:
    """One model: its view and its routes."""

    __slots__ = ("_by_replica", "routes", "strategy", "view")

    def __init__(self, view: ModelView, routes: tuple[Route, ...]) -> None:
        self.view = view
        self.routes = routes
        self._by_replica = {route.replica: route for route in routes}
        self.strategy = routes[0].endpoint.strategy if routes else None

    def route(self, replica: str) -> Route | None:
        return self._by_replica.get(replica)


class RoutingTable:
    """Replaced as a whole by `update`; requests hold on to the routes they began with."""

    def __init__(self, keys: EngineKeys, ejections: Ejections, own_proxy: str = "") -> None:
        self.models: dict[str, ModelRoutes] = {}
        #: Revision of the durable state this table was made from: the acknowledgement of drains.
        self.revision = 0
        #: Whether a table has ever been made: before, nobody can be told that a model does not exist.
        self.known = False
        self._keys = keys
        self._ejections = ejections
        self._own_proxy = own_proxy
        self._routes: dict[str, Route] = {}
        self._stands_at: float | None = None
        self._back_at: float | None = None

    def follow(self, snapshot: ClusterSnapshot, now: float) -> None:
        """Takes a new snapshot."""
        # Time 0: nobody is lost by silence here, that is judged per request.
        self.update(endpoints_by_model(snapshot, 0.0), revision=snapshot.revision)
        for route in self._routes.values():
            route.elsewhere = 0
        for name, seen in snapshot.proxies.items():
            if name == self._own_proxy or now - seen.at > PROXY_FRESH_SECONDS:
                continue
            for replica, count in seen.report.inflight.items():
                if (other := self._routes.get(replica)) is not None:
                    other.elsewhere += count

    def update(self, models: Mapping[str, ModelView], *, revision: int = 0) -> None:
        routes: dict[str, Route] = {}
        made: dict[str, ModelRoutes] = {}
        for name, view in models.items():
            made[name] = ModelRoutes(view, tuple(self._follow(view.endpoints, routes)))
        self.models, self._routes, self.revision, self.known = made, routes, revision, True
        self._keys.keep_only(set(routes))
        self._ejections.keep_only({name: route.endpoint.engine_epoch for name, route in routes.items()})

    def _follow(self, endpoints: Iterable[Endpoint], routes: dict[str, Route]) -> Iterable[Route]:
        for endpoint in endpoints:
            usable, key = self._keys.key_of(endpoint)
            if not usable:
                continue
            route = self._routes.get(endpoint.replica)
            if route is not None and route.is_same(endpoint):
                route.follow(endpoint)
            else:
                route = Route(endpoint, key)
            routes[endpoint.replica] = route
            yield route

    def hear(self, now: float, *, reachable: bool) -> None:
        """Once a second: whether the store answers."""
        if not reachable:
            self._back_at = None
            if self._stands_at is None:
                self._stands_at = now
        elif self._stands_at is not None:
            if self._back_at is None:
                self._back_at = now
            elif now - self._back_at >= GRACE_SECONDS:
                self._stands_at = self._back_at = None

    def candidates(self, model: ModelRoutes, inflight: Mapping[str, int], now: float) -> list[Candidate]:
        """Every endpoint of the model, weighed."""
        deaf = self._stands_at is not None
        heard = now if self._stands_at is None else self._stands_at
        ejections = self._ejections
        anything_held = bool(ejections)
        found = []
        for route in model.routes:
            replica = route.replica
            age = now - route.sampled_at
            standing = _SOUND
            if anything_held:
                standing = ejections.standing(replica, route.endpoint.engine_epoch, now)
            if age > SUSPECT_AFTER_SECONDS and standing is not _OUT:
                silence = heard - route.sampled_at
                if silence > LOST_AFTER_SECONDS:
                    standing = Standing.SILENT
                elif silence > SUSPECT_AFTER_SECONDS:
                    standing = Standing.SUSPECT
            found.append(
                Candidate(
                    replica,
                    standing,
                    inflight.get(replica, 0),
                    route.elsewhere,
                    route.waiting,
                    route.kv_cache_usage,
                    inf if deaf else age,
                    *route.limits,
                )
            )
        return found
