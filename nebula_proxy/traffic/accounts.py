"""What can be told of a request from outside: a row of what is open, and the record of how it went.

Both are made only for the few requests that somebody looks at or that leave a record; see `inquiries` and `recorder`.
No word of a prompt or of an answer is in either.
"""

import time

from nebula_core.records.decision import AttemptRecord, DecisionRecord
from nebula_core.records.inflight import STALLED_SECONDS, OpenRequest, RequestPhase
from nebula_proxy.decisions.discretion import discreet
from nebula_proxy.decisions.explanation import explained
from nebula_proxy.decisions.retry import Trouble
from nebula_proxy.traffic.request import Request

#: As in the request log.
_DETAIL_CHARACTERS = 500


def note_trouble(request: Request, trouble: Trouble, detail: str) -> None:
    """The attempt under way has failed: keeps how it was chosen, before the next one is."""
    said = discreet(detail, request.body, None if request.facts is None else request.facts.model)
    attempt = _attempt(request).model_copy(update={"trouble": str(trouble), "detail": said})
    request.failed = (*request.failed, attempt)


def attempts(request: Request) -> tuple[AttemptRecord, ...]:
    """Every try, the one under way too."""
    failed = request.failed
    if request.weighed and (request.attempts > len(failed) or request.choice is None):
        return (*failed, _attempt(request))
    return failed


def _attempt(request: Request) -> AttemptRecord:
    inflight = request.plane.ledger.replicas
    made = explained(request.choice, request.weighed, request.tried, inflight=inflight, ask=request.ask)
    if request.choice is None:
        return made.model_copy(update={"at_seconds": time.monotonic() - request.at})
    first = request.first_byte_at - request.at
    return made.model_copy(
        update={
            "at_seconds": max(0.0, request.sent_at - request.at),
            "first_byte_seconds": first if request.first_byte_at >= request.sent_at else None,
            "resumed": request.resumes > 0 and request.attempts > 1,
        }
    )


def record_of(
    request: Request, reason: str, *, status: int | None = None, outcome: str = "open", detail: str | None = None
) -> DecisionRecord:
    """The request as it stands, or as it ended."""
    seconds = time.monotonic() - request.at
    caller, facts, usage = request.caller, request.facts, request.usage
    return DecisionRecord(
        id=request.request_id.decode("ascii"),
        proxy=request.plane.proxy,
        at=time.time() - seconds,
        path=request.call.path.decode("ascii"),
        model=None if facts is None else facts.model[:128],
        key_id=None if caller is None else caller.key_id,
        key_name=None if caller is None else caller.principal.name,
        stream=None if facts is None else facts.stream,
        outcome=outcome,
        status=status,
        detail=None if detail is None else detail[:_DETAIL_CHARACTERS],
        kept_because=reason,
        admission=_admission(request, status),
        admission_reason=outcome if request.attempts == 0 and status is not None else None,
        wait_seconds=request.wait_seconds,
        attempts=attempts(request),
        resumes=request.resumes,
        ttft_seconds=request.ttft,
        tpot_seconds=request.tpot(seconds) if status is not None else None,
        overhead_seconds=request.overhead,
        duration_seconds=seconds,
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
        request_bytes=len(request.body),
        response_bytes=request.sent_bytes,
        trace_id=request.trace_id,
    )


def _admission(request: Request, status: int | None) -> str | None:
    if request.attempts:
        return "admit" if request.wait_seconds is None else "wait"
    return None if status is None else "reject"


def row_of(
    request: Request, now: float, *, phase: RequestPhase, silent: float | None, paused: bool, client: str | None
) -> OpenRequest:
    """The request among those that are open. `silent` is the time since the engine's last byte."""
    caller, facts = request.caller, request.facts
    stalled = None
    if phase == "streaming" and silent is not None and silent > STALLED_SECONDS:
        stalled = "client" if paused else "engine"
    return OpenRequest(
        id=request.request_id.decode("ascii"),
        model="-" if facts is None else facts.model[:128],
        path=request.call.path.decode("ascii"),
        replica=None if request.route is None else request.route.replica,
        phase=phase,
        stalled=stalled,
        stream=facts is None or facts.stream,
        age_seconds=now - request.at,
        wait_seconds=now - request.at if phase == "waiting" else request.wait_seconds,
        ttft_seconds=request.ttft,
        silent_seconds=silent,
        events=request.events,
        sent_bytes=request.sent_bytes,
        request_bytes=len(request.body),
        key_id=None if caller is None else caller.key_id,
        key_name=None if caller is None else caller.principal.name,
        client=client,
        attempts=request.attempts,
        resumes=request.resumes,
    )
