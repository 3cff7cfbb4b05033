"""The one way out of a request: ledger, meters and the log line. Whoever ends a request comes through here, once."""

import time
from functools import partial

from nebula_proxy.decisions.discretion import discreet
from nebula_proxy.decisions.sampling import kept_because
from nebula_proxy.traffic.accounts import record_of
from nebula_proxy.traffic.entrance import used_tokens
from nebula_proxy.traffic.request import Request
from nebula_proxy.traffic.request_log import RequestLine

#: Beside what went wrong: what a person ended, who may ask for it again.
_OUT_OF_THE_ORDINARY = frozenset({"broken", "cancelled", "request_cancelled"})


def close(request: Request, status: int, outcome: str, detail: str | None) -> None:
    """Books the end of a request; `status` is what the client got, `outcome` one word, `detail` for people."""
    plane = request.plane
    if detail is not None and request.attempts:
        # After an attempt these may be words of an engine, which may repeat the prompt.
        detail = discreet(detail, request.body, None if request.facts is None else request.facts.model)
    now = time.monotonic()
    facts = request.facts
    routes = request.routes
    if request.place is not None:
        plane.room.leave(request.place, now)
    if request.claim is not None:
        plane.key_limits.end(request.claim, used_tokens(request, status))
        request.claim = None  # which holds the exchange
    ticket = request.ticket
    if ticket is not None:
        request.ticket = None  # which holds the exchange
        ticket.close()
    meter = request.meter
    seconds = now - request.at
    meter.finished(status, seconds)
    if routes is not None:
        plane.room.ended(routes.view.deployment, served=request.attempts > 0 and status < 500)
    prompt_tokens = completion_tokens = None
    usage = request.usage
    if usage is not None:
        prompt_tokens, completion_tokens = usage
        meter.tokens(prompt_tokens, completion_tokens)
    ttft = request.ttft
    if ttft is not None and (tpot := request.tpot(seconds)) is not None:
        meter.tpot.observe(tpot)
    caller = request.caller
    # What a stranger without a key sends leaves nothing in the store.
    if caller is not None:
        recorder = plane.recorder
        reason = kept_because(
            recorder.sampling,
            status,
            outcome in _OUT_OF_THE_ORDINARY,
            request.attempts,
            request.retried,
            request.resumes,
            seconds if ttft is None else ttft,
            caller.person,
            plane.roll(),
            recorder.floor_left,
        )
        if reason is not None:
            make = partial(record_of, request, reason, status=status, outcome=outcome, detail=detail)
            recorder.take(reason, make)
    if plane.tracer is not None:
        plane.tracer.ended(request, status, outcome, detail)
    log = plane.log
    route, choice = request.route, request.choice
    log.write(
        RequestLine(
            "request",
            log.stamp(time.time()),
            "info" if status < 500 else "warning",
            request.request_id.decode("ascii"),
            request.call.name,
            status,
            outcome,
            seconds,
            None if facts is None else facts.model[:128],
            None if caller is None else caller.key_id,
            None if route is None else route.replica,
            request.decision,
            None if facts is None else facts.stream,
            ttft,
            request.overhead,
            prompt_tokens,
            completion_tokens,
            len(request.body),
            request.sent_bytes,
            request.attempts,
            request.resumes,
            request.wait_seconds,
            None if choice is None else choice.strategy,
            None if request.trace is None else request.trace_id,
            None if detail is None else detail[:500],
        )
    )
