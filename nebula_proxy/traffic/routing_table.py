"""Which replicas there are for each model, as this process routes by it: kept up to date by listeners, read by every request.

Models are replaced one by one, figures written into the routes there are (`table_feeder`, `RoutingReports`).

Derived from the snapshot and kept as it is while the store is away. Silence of a node takes nothing out of the
table; it only lowers the standing of its endpoints, by the time of the last word of the node against the clock. While
the store does not answer nobody can be heard, so that clock stands still, and for a moment after it is back.
"""

from collections.abc import Callable, Iterable, Mapping
from math import inf

from nebula_core.records.compact import ReplicaDelta
from nebula_core.records.endpoint import Endpoint, ModelView
from nebula_core.records.report import ProxyReport
from nebula_core.records.snapshot import LOST_AFTER_SECONDS, SUSPECT_AFTER_SECONDS, ReceivedProxy
from nebula_proxy.adapters.engine_keys import EngineKeys
from nebula_proxy.decisions.calls import speaks_responses
from nebula_proxy.decisions.candidates import (
    SAMPLE_FRESH_SECONDS,
    SLOW_START_SECONDS,
    Candidate,
    Standing,
    slow_start,
)
from nebula_proxy.decisions.field import Field, field_of
from nebula_proxy.decisions.load import NO_FIGURES, Figures, most_open, slots_after
from nebula_proxy.decisions.prefix_index import MOST_ENTRIES, PrefixIndex
from nebula_proxy.decisions.prompt import BYTES_PER_TOKEN
from nebula_proxy.traffic.ejections import Ejections

#: After the store is back, nodes get this long to be heard before their silence counts.
GRACE_SECONDS = LOST_AFTER_SECONDS
#: What another proxy said of its open requests is believed for so long.
PROXY_FRESH_SECONDS = 3.0
#: A worker that has not been heard of for so long is none any more.
WORKER_GONE_SECONDS = 10.0
#: How much longer a prefix is remembered than the engines' caches would hold it by their size: a wrong guess sends one
#: request to another place, a prefix forgotten too early is computed anew (7 % of the hits in the replay).
KEPT_LONGER = 1.5
#: While a replica starts slowly its share is worked out anew so often.
_RAMP_STEP_SECONDS = 0.5
#: Ages at which a sample says something else.
_AGES = (SAMPLE_FRESH_SECONDS, SUSPECT_AFTER_SECONDS, LOST_AFTER_SECONDS)

_SOUND, _OUT = Standing.SOUND, Standing.OUT


JSON = b"application/json"
#: Heads of requests that are remembered for one engine, by path and content type.
_HEADS_KEPT = 64


class Route:
    """An endpoint with what a request to it needs at hand."""

    __slots__ = (
        "_figures",
        "_heads",
        "_key",
        "address",
        "counted",
        "elsewhere",
        "endpoint",
        "heard_at",
        "inflight_at_sample",
        "kv_cache_usage",
        "limits",
        "moved_at",
        "ready_at",
        "replica",
        "rivals",
        "running",
        "sampled_at",
        "seat",
        "slots",
        "speaks_responses",
        "unread_elsewhere",
        "waiting",
    )

    def __init__(self, endpoint: Endpoint, key: bytes | None, seat: int = 0) -> None:
        self.replica = endpoint.replica
        #: Its bit in the model's prefix index.
        self.seat = seat
        ready = endpoint.ready_seconds
        self.ready_at = -inf if ready is None else endpoint.sampled_at - ready
        #: Bytes of prompts other proxies sent that nobody has a first token of.
        self.unread_elsewhere = 0
        self.sampled_at = -inf
        self.inflight_at_sample = 0
        self.address = (endpoint.host, endpoint.port)
        self._key = key
        self._heads: dict[tuple[bytes, bytes], bytes] = {}
        #: Until this start of the engine has said that it knows no such path.
        self.speaks_responses = speaks_responses(endpoint.engine)
        #: Open requests of other proxies.
        self.elsewhere = 0
        #: Other proxies in which requests wait for its model.
        self.rivals = 0
        #: When it last showed that it works on a request that has ended, monotonic seconds.
        self.heard_at = 0.0
        #: A sample has told how fast its counters go up, and when one last said that they do.
        self.counted = False
        self.moved_at = -inf
        #: Requests it runs at once, as far as its options say or its figures show.
        self.slots = endpoint.slots
        self._figures = NO_FIGURES
        self.follow(endpoint, 0)

    def follow(self, endpoint: Endpoint, inflight: int) -> None:
        """Takes newer figures of the same engine start; `inflight` is what this process has open there now."""
        self.endpoint = endpoint
        sample = endpoint.sample
        figures = NO_FIGURES if sample is None else Figures(sample.requests_running, sample.requests_waiting)
        if endpoint.sampled_at != self.sampled_at:
            self.sampled_at = endpoint.sampled_at
            self.inflight_at_sample = inflight
            self._learn(figures)
        self.running, self.waiting = figures
        self.kv_cache_usage = None if sample is None else sample.kv_cache_usage
        if sample is not None:
            self._witness(sample.generation_tokens_per_second, sample.prompt_tokens_per_second)
        self._bound()

    def take(self, figures: ReplicaDelta, inflight: int) -> None:
        """Takes the figures of one second."""
        self.inflight_at_sample = inflight
        self.running = figures.running
        self.waiting = figures.waiting
        self.kv_cache_usage = figures.kv
        self._witness(figures.generation_rate, figures.prompt_rate)
        slots = self.slots
        if figures.waiting or slots is not None:
            self._learn(Figures(figures.running, figures.waiting))
            if self.slots != slots:
                self._bound()
        else:
            # Nobody waits and nothing was learnt: most replicas, most of the time.
            self._figures = NO_FIGURES

    def _witness(self, generated: float | None, prompted: float | None) -> None:
        """Tokens per second by the engine's own count."""
        if generated is not None or prompted is not None:
            self.counted = True
            if generated or prompted:
                self.moved_at = self.sampled_at

    def _learn(self, figures: Figures) -> None:
        self.slots = slots_after(self.slots, self.endpoint.slots, self._figures, figures)
        self._figures = figures

    def _bound(self) -> None:
        limits = self.endpoint.limits
        self.limits = (limits.waiting, limits.kv_cache_usage, most_open(limits.inflight, limits.waiting, self.slots))

    def is_same(self, endpoint: Endpoint) -> bool:
        mine = self.endpoint
        return (
            mine.engine_epoch == endpoint.engine_epoch
            and mine.port == endpoint.port
            and mine.host == endpoint.host
            and mine.sealed_key == endpoint.sealed_key
            and mine.served_model == endpoint.served_model
        )

    @property
    def keyed(self) -> bool:
        return self._key is not None

    def authorization(self) -> list[tuple[bytes, bytes]]:
        """The engine's key as a header, where it has one."""
        return [] if self._key is None else [(b"authorization", b"Bearer " + self._key)]

    def head(self, path: bytes, content_type: bytes = JSON) -> bytes:
        """Request line and the headers that are the same for every request of a path and a content type."""
        head = self._heads.get((path, content_type))
        if head is None:
            host, port = self.address
            name = f"[{host}]" if ":" in host else host
            head = b"POST %b HTTP/1.1\r\nhost: %b:%d\r\n" % (path, name.encode("ascii"), port)
            if self._key is not None:
                head += b"authorization: Bearer %b\r\n" % self._key
            head += b"content-type: %b\r\n" % content_type
            # The type is in the client's words: no memory for all it can think of.
            if len(self._heads) < _HEADS_KEPT:
                self._heads[path, content_type] = head
        return head


class ModelRoutes:
    """One model: its view and its routes."""

    __slots__ = (
        "_by_replica",
        "capacity_bytes",
        "field",
        "field_until",
        "figures",
        "index",
        "routes",
        "strategy",
        "view",
    )

    def __init__(self, view: ModelView, routes: tuple[Route, ...], index: PrefixIndex) -> None:
        self.view = view
        self.index = index
        #: Bytes of prompts that the caches of all its engines hold; None is unknown.
        self.capacity_bytes = _capacity_bytes(routes)
        #: The candidates as columns, of which figures, and until when nothing about them changes by the clock alone.
        self.field: Field | None = None
        self.figures = -1
        self.field_until = -inf
        self.routes = routes
        self._by_replica = {route.replica: route for route in routes}
        self.strategy = routes[0].endpoint.strategy if routes else None

    def route(self, replica: str) -> Route | None:
        return self._by_replica.get(replica)


class RoutingTable:
    """Models are replaced one by one; requests hold on to the routes they began with."""

    def __init__(
        self,
        keys: EngineKeys,
        ejections: Ejections,
        own_proxy: str = "",
        inflight: Mapping[str, int] | None = None,
        prefix_entries: int = MOST_ENTRIES,
    ) -> None:
        """`inflight` is what this process has open by replica, kept by the ledger."""
        #: By the name clients send: a deployment's, or an adapter's, which has the routes of its deployment.
        self.models: dict[str, ModelRoutes] = {}
        #: Revision of the durable state this table was made from: the acknowledgement of drains.
        self.revision = 0
        #: Whether a table has ever been made: before, nobody can be told that a model does not exist.
        self.known = False
        #: Data-plane workers there are, this one included; kept while the store is away.
        self.workers = 1
        #: Told after every replacement, and when there are new figures.
        self.listeners: list[Callable[[], None]] = []
        self._keys = keys
        self._ejections = ejections
        self._own_proxy = own_proxy
        #: The same without adapters: what `models` is made of.
        self._made: dict[str, ModelRoutes] = {}
        self._inflight: Mapping[str, int] = {} if inflight is None else inflight
        self._prefix_entries = prefix_entries
        self._indexes: dict[str, PrefixIndex] = {}
        #: Other proxies that are heard of: they fill the same caches.
        self._others = 0
        #: Reports of other proxies that were read for what they sent, by sequence.
        self._heard: dict[str, int] = {}
        #: Whether processes may tell each other digests of prompts: only with a secret that seeds them.
        self.tells_prefixes = False
        #: Rises whenever a figure changes; the columns of a model are made anew then.
        self._figures = 0
        self._routes: dict[str, Route] = {}
        self._nodes: dict[str, dict[str, Route]] = {}
        #: Routes with open requests of other proxies.
        self._counted: set[Route] = set()
        self._stands_at: float | None = None
        self._back_at: float | None = None

    def update(self, models: Mapping[str, ModelView], *, revision: int = 0) -> None:
        """Replaces everything."""
        for name in self._made.keys() - models.keys():
            self.put(name, None)
        for name, view in models.items():
            self.put(name, view)
        self.settle(revision)

    def put(self, model: str, view: ModelView | None) -> None:
        """Replaces one model, or takes it out. `settle` must follow."""
        before = self._made.get(model)
        routes = () if view is None else tuple(self._follow(view.endpoints, self._index(model)))
        if view is None:
            self._made.pop(model, None)
            self._indexes.pop(model, None)
        else:
            index = self._indexes[model]
            index.keep_only({route.replica: route.endpoint.engine_epoch for route in routes})
            self._made[model] = ModelRoutes(view, routes, index)
        for route in () if before is None else before.routes:
            if self._routes.get(route.replica) is route:
                del self._routes[route.replica]
                self._nodes[route.endpoint.node].pop(route.replica, None)
        for route in routes:
            self._routes[route.replica] = route
            self._nodes.setdefault(route.endpoint.node, {})[route.replica] = route

    def settle(self, revision: int) -> None:
        """All models are as of this revision of the durable state."""
        models = dict(self._made)
        for made in self._made.values():
            for adapter in made.view.adapters:
                # The Control API refuses names that are taken; were one all the same, the deployment of that name has it.
                models.setdefault(adapter, made)
        self.models, self.revision, self.known = models, revision, True
        routes = self._routes
        self._keys.keep_only(set(routes))
        self._ejections.keep_only({name: route.endpoint.engine_epoch for name, route in routes.items()})
        self._share_out()
        self._tell()

    def _index(self, model: str) -> PrefixIndex:
        index = self._indexes.get(model)
        if index is None:
            index = self._indexes[model] = PrefixIndex()
        return index

    def _share_out(self) -> None:
        """Gives each model its part of the entries, and of what the caches of its engines hold."""
        for made in self._made.values():
            made.index.most_entries = self._prefix_entries // len(self._made)
            made.index.telling = self.tells_prefixes and self._others > 0
            capacity = made.capacity_bytes
            made.index.capacity_bytes = (
                None if capacity is None else round(capacity * KEPT_LONGER) // (self._others + 1)
            )

    def _tell(self) -> None:
        self._figures += 1
        for listener in self.listeners:
            listener()

    def _follow(self, endpoints: Iterable[Endpoint], index: PrefixIndex) -> Iterable[Route]:
        for endpoint in endpoints:
            route = self._routes.get(endpoint.replica)
            if route is not None and route.endpoint is endpoint:
                yield route  # nothing new of this one; its figures are newer than those in the endpoint
                continue
            usable, key = self._keys.key_of(endpoint)
            if not usable:
                continue
            if route is not None and route.is_same(endpoint):
                self._nodes[route.endpoint.node].pop(route.replica, None)
                route.follow(endpoint, self._inflight.get(endpoint.replica, 0))
            else:
                route = Route(endpoint, key, index.seat(endpoint.replica, endpoint.engine_epoch))
            yield route

    # What comes each second

    def heard(self, figures: Mapping[str, tuple[ReplicaDelta, ...]], at: float) -> None:
        """Figures of nodes, received at monotonic `at`."""
        nodes = self._nodes
        inflight = self._inflight
        for node, replicas in figures.items():
            routes = nodes.get(node)
            if not routes:
                continue
            for route in routes.values():
                route.sampled_at = at
            for one in replicas:
                if (meant := routes.get(one.id)) is not None:
                    meant.take(one, inflight.get(one.id, 0))
        self._tell()

    def forgive(self, seconds: float) -> None:
        """Nobody could be heard for so long."""
        for route in self._routes.values():
            route.sampled_at += seconds
            route.moved_at += seconds
        self._figures += 1

    def count_elsewhere(self, proxies: Mapping[str, ReceivedProxy], now: float) -> None:
        """What other proxies have open, by their latest word."""
        if self._counted:
            self._figures += 1
        for route in self._counted:
            route.elsewhere = route.unread_elsewhere = route.rivals = 0
        self._counted.clear()
        heard = [name for name, seen in proxies.items() if now - seen.at <= WORKER_GONE_SECONDS]
        self.workers = len({*heard, self._own_proxy})
        others = 0
        for name, seen in proxies.items():
            if name == self._own_proxy or now - seen.at > PROXY_FRESH_SECONDS:
                continue
            others += 1
            if self._heard.get(name) != seen.report.sequence:
                self._heard[name] = seen.report.sequence
                self._learn(seen.report)
            for replica, count in seen.report.inflight.items():
                if (other := self._routes.get(replica)) is not None:
                    other.elsewhere += count
                    self._counted.add(other)
            for route in self._wanted_by(seen.report):
                route.rivals += 1
                self._counted.add(route)
            for replica, count in seen.report.unread_bytes.items():
                if (other := self._routes.get(replica)) is not None:
                    other.unread_elsewhere += count
                    self._counted.add(other)
        if self._counted:
            self._tell()
        if others != self._others:
            self._others = others
            self._heard = {name: sequence for name, sequence in self._heard.items() if name in proxies}
            self._share_out()

    def route(self, replica: str) -> Route | None:
        return self._routes.get(replica)

    def told_prefixes(self) -> dict[str, tuple[int, ...]]:
        """What this process sent where since it was last asked, for the others."""
        return {
            replica: tuple(digests)
            for made in self._made.values()
            if made.index.telling
            for replica, digests in made.index.told().items()
        }

    def _learn(self, report: ProxyReport) -> None:
        for replica, digests in report.prefixes.items():
            route = self._routes.get(replica)
            made = None if route is None else self._made.get(route.endpoint.model)
            if route is not None and made is not None:
                made.index.learn(digests, route.seat)

    def _wanted_by(self, report: ProxyReport) -> set[Route]:
        """The routes that requests wait for in another proxy."""
        waited_for = (self.models.get(traffic.model) for traffic in report.models if traffic.waiting)
        return {route for model in waited_for if model is not None for route in model.routes}

    def hear(self, now: float, *, reachable: bool) -> None:
        """Once a second: whether the store answers."""
        if not reachable or self._stands_at is not None:
            self._figures += 1  # the clock of all ages stands or goes again
        if not reachable:
            self._back_at = None
            if self._stands_at is None:
                self._stands_at = now
        elif self._stands_at is not None:
            if self._back_at is None:
                self._back_at = now
            elif now - self._back_at >= GRACE_SECONDS:
                self._stands_at = self._back_at = None

    def field(self, model: ModelRoutes, now: float, without: str | None = None) -> Field:
        """The candidates of the model as columns, less `without`; kept until something about them changes."""
        # What is held against endpoints changes by the clock and by every request: then nothing is kept.
        steady = without is None and not self._ejections.held
        if steady and model.field is not None and model.figures == self._figures and now < model.field_until:
            return model.field
        field = field_of(self.candidates(model, {}, now), without=without)
        if steady:
            model.field, model.figures, model.field_until = field, self._figures, _steady_until(model.routes, now)
        return field

    def candidates(self, model: ModelRoutes, inflight: Mapping[str, int], now: float) -> list[Candidate]:
        """Every endpoint of the model, weighed."""
        deaf = self._stands_at is not None
        heard = now if self._stands_at is None else self._stands_at
        ejections = self._ejections
        anything_held = bool(ejections.held)
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
                    standing = max(standing, Standing.SUSPECT)
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
                    route.running,
                    route.inflight_at_sample,
                    route.unread_elsewhere,
                    slow_start(now - route.ready_at) * route.endpoint.share,
                    route.seat,
                    route.rivals,
                )
            )
        return found


def _steady_until(routes: Iterable[Route], now: float) -> float:
    """When the next of these samples becomes old, silent or lost by the clock alone, or a slow start goes on."""
    until = inf
    for route in routes:
        for age in _AGES:
            if now <= (at := route.sampled_at + age):
                until = min(until, at)
        if now - route.ready_at < SLOW_START_SECONDS:
            until = min(until, now + _RAMP_STEP_SECONDS)
    return until


def _capacity_bytes(routes: Iterable[Route]) -> int | None:
    tokens = 0
    for route in routes:
        sample = route.endpoint.sample
        if sample is None or sample.kv_cache_tokens is None:
            return None
        tokens += sample.kv_cache_tokens
    return tokens * BYTES_PER_TOKEN if tokens else None
