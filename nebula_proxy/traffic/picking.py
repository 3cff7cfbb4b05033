"""Where a request goes, for its first and for every later attempt: candidates, a decision, and the books of it."""

import time

import structlog

from nebula_proxy.decisions import refusal as refusals
from nebula_proxy.decisions.admission import estimated_tokens, nothing_ready
from nebula_proxy.decisions.candidates import untried
from nebula_proxy.decisions.field import field_of
from nebula_proxy.decisions.refusal import Refusal
from nebula_proxy.decisions.rendezvous import key_of
from nebula_proxy.decisions.routing import Choice, NoChoice, choose, explain
from nebula_proxy.decisions.strategies import FALLBACK_STRATEGY, Ask
from nebula_proxy.traffic.request import Request
from nebula_proxy.traffic.response_holders import Holder
from nebula_proxy.traffic.routing_table import ModelRoutes, Route
from nebula_proxy.traffic.waiting_room import Hold, Waiting

log = structlog.get_logger(__name__)

#: Above every priority a key may have: who was let in before and lost its replica goes on first.
ADMITTED = 11


def pick(request: Request) -> Route | Refusal | Hold:
    """The replica that takes the request from now on, in the ledger too; or why there is none (yet)."""
    plane = request.plane
    model = request.routes
    assert model is not None  # noqa: S101 - set at the entrance, for the type checker
    waited = request.place
    now = time.monotonic() if request.attempts or waited is not None else request.at
    choice = _choose(request, model, now)
    if type(choice) is not Choice:
        return choice  # type: ignore[return-value] # mypy does not narrow by type()
    request.choice = choice
    route = model.route(choice.replica)
    if route is None:
        raise LookupError(choice.replica)  # candidates come from these routes
    request.route = route
    caller = request.caller
    request.decision = explain(choice, full=caller is not None and caller.operator)
    if plane.ejections.held:
        plane.ejections.trying(route.replica, route.endpoint.engine_epoch, now)
    if waited is not None:
        plane.room.served(waited, now)
    elif request.attempts == 0 and choice.reason not in _ADMITTED_APART:
        request.meter.admitted += 1
    ask = request.ask
    unread = 0
    if ask is not None and (digests := ask.looked_up) is not None:
        # Entered before it is there: the next request of the same prefix comes while this one is computed.
        model.index.insert(digests, route.seat, now)
        unread = ask.size - ask.held(choice.place)
    request.ticket.move(route.replica, unread)  # type: ignore[union-attr] # opened at the entrance
    request.meter.route(choice.strategy, choice.reason)
    return route


_ADMITTED_APART = frozenset({"pinned", "held"})


def _choose(request: Request, model: ModelRoutes, now: float) -> Choice | Refusal | Hold:
    plane = request.plane
    routing = plane.routing
    request.choice = None
    field = plane.table.field(model, now, request.tried)
    request.weighed = field.candidates
    if request.wishes.replica is not None:
        return _pinned(request, model, request.wishes.replica)
    facts = request.facts
    if facts is not None and facts.previous_response_id is not None:
        holder = plane.responses.holder(facts.previous_response_id)
        if holder is not None:
            return _held(request, model, holder)
    ask = request.ask
    if ask is None:
        caller = request.caller
        root = routing.secret
        if not routing.prefixes_shared and caller is not None:
            root ^= key_of(caller.key_id.encode())
        ask = request.ask = Ask(facts, request.call.dialect, request.headers, model.index, root)
    strategy = request.wishes.strategy or model.strategy or routing.default_strategy
    choice = choose(
        field,
        strategy,
        next(plane.turns),
        inflight=plane.ledger.replicas,
        unread=plane.ledger.unread,
        ask=ask,
        strategies=routing.strategies,
    )
    if type(choice) is not Choice:
        return _nobody(request, model, choice)  # type: ignore[arg-type] # mypy does not narrow by type()
    if choice.problem is not None and strategy not in plane.fell_back:
        plane.fell_back.add(strategy)  # said once: the counter of `fallback` goes on
        log.warning("strategy_fell_back", strategy=strategy, problem=choice.problem, model=model.view.model)
    return choice


def _pinned(request: Request, model: ModelRoutes, pinned: str) -> Choice | Refusal:
    """An operator's wish is an order: neither standing nor load stand in its way."""
    if model.route(pinned) is None:
        reason = f"{pinned} is not one of its ready replicas"
        return refusals.no_replica(model.view.model, reason, request.plane.roll())
    request.meter.admission("admit", "pinned")
    return Choice(pinned, "pinned", "pinned", 0.0, 1)


def _held(request: Request, model: ModelRoutes, holder: Holder) -> Choice | Refusal | Hold:
    """The response that this request goes on from is held by one start of one engine, and nowhere else."""
    plane = request.plane
    route = model.route(holder.replica)
    if route is None or route.endpoint.engine_epoch != holder.engine_epoch:
        return refusals.previous_response_gone(holder.replica)
    if request.tried == holder.replica:
        reason = f"{holder.replica}, which holds the previous response, does not answer"
        return refusals.no_replica(model.view.model, reason, plane.roll())
    only = field_of([row for row in request.weighed if row.replica == holder.replica])
    choice = choose(only, FALLBACK_STRATEGY, 0, inflight=plane.ledger.replicas)
    if type(choice) is not Choice:
        return _nobody(request, model, choice)  # type: ignore[arg-type] # mypy does not narrow by type()
    request.meter.admission("admit", "held")
    return choice._replace(strategy="session_affinity", reason="held")


def _nobody(request: Request, model: ModelRoutes, choice: NoChoice) -> Refusal | Hold:
    if choice is NoChoice.SATURATED:
        return Hold.SATURATED
    view = model.view
    if view.starting:
        return Hold.STARTING
    return nothing_ready(
        view.model, ejected=len(request.weighed), starting=0, wanted=view.wanted, roll=request.plane.roll()
    )


def hold(request: Request, why: Hold, holder: Waiting) -> Refusal | None:
    """Lets a request that cannot go on yet wait, or says why it may not."""
    model, caller, facts = request.routes, request.caller, request.facts
    assert model is not None  # noqa: S101 - these three are set at the entrance, for the type checker
    assert caller is not None  # noqa: S101
    assert facts is not None  # noqa: S101
    # After a wait the replica that failed before is as good as any: if it is not, its ejection says so.
    request.tried = None
    view = model.view
    return request.plane.room.hold(
        holder,
        why,
        model=facts.model,
        deployment=view.deployment,
        own=view.limits,
        starting=view.starting,
        key=caller.key_id,
        # Asking for more than the key may is no error: it gets what it may, as at the edge of a network.
        priority=ADMITTED if request.attempts else min(request.wishes.priority, caller.max_priority),
        cost=estimated_tokens(len(request.body), facts.output_limit),
        wish=request.wishes.wait,
        now=time.monotonic(),
    )


def why_not(request: Request) -> Refusal:
    """What a request is told whose time in the waiting room is over."""
    plane = request.plane
    facts = request.facts
    name = "-" if facts is None else facts.model
    model = plane.table.models.get(name)
    if model is None:
        return refusals.no_replica(name, "its deployment is gone", plane.roll())
    request.routes = model
    found = _choose(request, model, time.monotonic())
    if found is Hold.STARTING:
        return refusals.model_starting(name, model.view.starting, plane.roll())
    if type(found) is Refusal:
        return found
    return refusals.wait_expired(name, request.wait_seconds or 0.0, plane.room.retry_after(model.view.deployment))


def others(request: Request, now: float) -> int:
    """How many replicas could take the request instead of the one it is on, by the table of now."""
    route = request.route
    plane = request.plane
    model = None if route is None else plane.table.models.get(route.endpoint.model)
    if route is None or model is None:
        return 0
    request.routes = model
    return untried(plane.table.candidates(model, plane.ledger.replicas, now), route.replica)
