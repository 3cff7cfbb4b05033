"""Everything that must hold before a replica is looked for: key, facts of the body, wishes, model, limits of the key."""

from nebula_core.wire import openai
from nebula_core.wire.openai import BadBody
from nebula_proxy.decisions import refusal as refusals
from nebula_proxy.decisions.admission import estimated_tokens
from nebula_proxy.decisions.parameters import check_parameters
from nebula_proxy.decisions.refusal import Refusal
from nebula_proxy.decisions.wishes import NO_WISHES, Wishes, read_wishes
from nebula_proxy.traffic.authentication import Pass
from nebula_proxy.traffic.key_limits import Claimant
from nebula_proxy.traffic.plane import OpenExchange, Plane
from nebula_proxy.traffic.request import Request


def enter(request: Request, holder: OpenExchange) -> Refusal | None:
    """Checks a request and enters it into the ledger under `holder`; what was learnt until a refusal stays in it."""
    plane = request.plane
    if plane.guard.shed is not None:
        return refusals.proxy_overloaded(plane.guard.shed, plane.roll())
    caller = request.caller = plane.authenticator.check(request.headers)
    if caller is None:
        return refusals.invalid_key()
    facts = openai.read_facts(request.body)
    if isinstance(facts, BadBody):
        return refusals.bad_request(facts.message, param=facts.param, hint=facts.hint)
    request.facts = facts
    beyond = check_parameters(facts, request.body, plane.parameters)
    if beyond is not None:
        return beyond
    wishes = read_wishes(request.headers)
    if isinstance(wishes, Refusal):
        return wishes
    request.wishes = wishes
    model = facts.model
    if not caller.may_use(model):
        return refusals.model_not_allowed(model, caller.principal.name)
    routes = plane.table.models.get(model)
    if routes is None:
        if not plane.table.known:
            return refusals.no_replica(model, "this proxy has not heard of the cluster yet", plane.roll())
        return refusals.model_not_found(model, [name for name in plane.table.models if caller.may_use(name)])
    request.routes = routes
    request.meter = plane.meters.of(model)
    if wishes is not NO_WISHES and (refusal := _check_wishes(wishes, caller, plane)) is not None:
        return refusal
    if plane.quarantine.held and (seconds := plane.quarantine.refuses(request.body, request.at)) is not None:
        return refusals.quarantined(seconds)
    most = caller.max_inflight
    if most is not None and plane.ledger.keys.get(caller.key_id, 0) >= most:
        return refusals.rate_limited(f"it may have {most} requests open", refusals.jittered(1.0, plane.roll()))
    request.ticket = plane.ledger.open(holder, model, None if most is None else caller.key_id)
    budget = plane.budget
    if budget.left < budget.reserve:
        plane.budget = budget.earned()
    return None


def _check_wishes(wishes: Wishes, caller: Pass, plane: Plane) -> Refusal | None:
    strategies = plane.routing.strategies
    if wishes.strategy is not None and wishes.strategy not in strategies:
        return refusals.bad_request(
            f"There is no strategy {wishes.strategy!r}", param="x-nebula-strategy", hint=", ".join(strategies)
        )
    if wishes.replica is not None and not caller.operator:
        return refusals.pin_not_allowed()
    return None


def claim(request: Request, claimant: Claimant) -> Refusal | None:
    """Takes what the request may need from the limits its key shares with other workers.

    None without `request.claim.taken`: it must wait for word of the store.
    """
    caller, facts = request.caller, request.facts
    assert caller is not None  # noqa: S101 - caller and facts are set by `enter`, for the type checker
    assert caller.limits is not None  # noqa: S101 - else it has nothing to claim
    assert facts is not None  # noqa: S101
    estimate = estimated_tokens(len(request.body), facts.output_limit)
    return request.plane.key_limits.claim(
        claimant, caller.key_id, caller.limits, estimate, request.at, stream=facts.stream is True
    )


def used_tokens(request: Request, status: int) -> int | None:
    """What a request took of its key's tokens; None when it got nothing for it, and then none of its limits is touched.

    Counted by the engine where it said so, else its prompt by the estimate and one token per event.
    """
    usage = request.usage
    if usage is not None and usage.prompt_tokens is not None:
        return usage.prompt_tokens + (usage.completion_tokens or 0)
    if request.attempts == 0 or (not request.events and (status >= 500 or status == 429)):
        return None
    if not request.events and 400 <= status < 499:
        return 0
    return estimated_tokens(len(request.body), request.events)
