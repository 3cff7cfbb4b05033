"""What to do next about one replica: a pure decision over (what is wanted, what is seen, now).

Theory of operation
-------------------
One owner per replica asks `decide` again and again and does the one thing it says; what came of it is seen next time.
So every situation is judged afresh, whatever led to it: an agent that was restarted, a process that died between two
looks, a placement that was changed twice. The moves it asks for stand in the table of `records/replica.py`.

    wanted RUN     pending ─PULL→ pulling ─START→ creating → loading ─proven→ ready      (pulling: image, model)
                      ▲                                                        │ dead, frozen, silent, not proven in time
                      └── backoff is over ── failed ◄─STOP─────────────────────┘
    wanted DRAIN   keeps serving as `draining`; nothing is started or restarted any more
    wanted STOP    STOP, then stopped

*Liveness* is the process; *readiness* was proven once per start (model listed, one token out) and is withdrawn while
`/health` says no; *progress* is counters that move while requests run, or a canary token while none do. Only death and
lack of progress restart an engine: a `/health` that fails while tokens flow is a busy server, not a dead one
(sglang#22511). Doubt comes before the verdict: an engine that has stood still for some seconds, or owes a canary, leaves
routing and returns with its next token.

A process that ended may have left children behind that hold its memory, so its end is always answered by STOP, which
proves that nothing is left, before anything else is done about the replica.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Literal

from nebula_agent.decisions.backoff import MOST_IN_WINDOW, WINDOW_SECONDS, Failures
from nebula_agent.decisions.canary import MOST_FAILURES
from nebula_agent.decisions.start_deadline import ready_by
from nebula_core.records.placement import Wanted
from nebula_core.records.replica import TRANSITIONS, Phase


class Life(StrEnum):
    """The process of a replica as it is seen."""

    #: None was started, or all of it is proven gone.
    NONE = "none"
    RUNNING = "running"
    #: The leader is dead; what it started may live on.
    ENDED = "ended"


class Verb(StrEnum):
    WAIT = "wait"
    #: Change the phase, nothing else.
    MOVE = "move"
    #: Begin to fetch the image and the model of the next start.
    PULL = "pull"
    #: Start the engine: the phase becomes `creating` first.
    START = "start"
    #: End everything of this start and prove it, then take the phase.
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Action:
    verb: Verb
    #: The phase to take once it is done.
    phase: Phase
    reason: str | None = None
    #: Look again at this monotonic time at the latest.
    at: float | None = None
    #: This counts as a failure of the engine (backoff, giving up).
    failure: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """From the placement's spec and the agent's settings; seconds."""

    start_deadline: float = 300.0
    #: Requests run and no counter moved for so long: no new request should go there.
    suspect: float = 8.0
    #: Requests run and no counter moved for so long: the engine hangs.
    frozen: float = 30.0
    #: The process lives and answers nothing at all for so long.
    silent: float = 60.0
    #: `/health` says no for so long, while no token flows.
    unhealthy: float = 30.0


@dataclass(frozen=True, slots=True)
class ImageState:
    """The image or the model of the next start, which is not on this node yet."""

    #: How far it is, for people.
    words: str
    #: Why it will not come.
    failed: str | None = None
    what: Literal["image", "model"] = "image"


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is known of a replica at one moment. Times are monotonic seconds; None is no or unknown."""

    phase: Phase
    life: Life = Life.NONE
    #: Digest of what the running engine was started with, see `launch_digest`.
    digest: str | None = None
    started_at: float | None = None
    #: Readiness was proven for this start.
    proven: bool = False
    #: Since when `/health` refuses or says no.
    unhealthy_since: float | None = None
    #: Since when nothing answers at all.
    silent_since: float | None = None
    #: Since when requests run without any counter moving.
    frozen_since: float | None = None
    #: When the log of an engine that is not ready yet last grew.
    log_grew_at: float | None = None
    #: How many canaries in a row brought no token.
    canary_failures: int = 0
    #: What the end of the process looked like.
    exit_reason: str | None = None
    #: The last step of the way to readiness that was not reached ("the model is not listed yet").
    waiting_for: str | None = None
    failures: Failures = field(default_factory=Failures)
    #: Digest of the launch that was given up.
    given_up: str | None = None
    #: Why a GPU it runs on is lost: the engine cannot go on, whatever it answers.
    gpu_lost: str | None = None
    #: Why it cannot be started yet: a GPU is still held.
    blocked: str | None = None
    #: Why it cannot be started as it is: a program or a model that is missing, the node's policy.
    refused: str | None = None
    #: None: there is nothing to wait for.
    image: ImageState | None = None
    phase_reason: str | None = None


def decide(wanted: Wanted, digest: str, seen: Seen, now: float, limits: Limits) -> Action:
    """The next step. `digest` is that of the wanted launch."""
    if wanted is Wanted.STOP:
        return _stop(seen)
    if seen.life is Life.ENDED:
        return _failed(seen, now, seen.exit_reason or "the engine ended")
    if seen.life is Life.RUNNING:
        return _running(wanted, digest, seen, now, limits)
    return _absent(wanted, digest, seen, now)


def _stop(seen: Seen) -> Action:
    if seen.life is not Life.NONE:
        return Action(Verb.STOP, Phase.STOPPED)
    return _settle(seen, Phase.STOPPED)


def _running(wanted: Wanted, digest: str, seen: Seen, now: float, limits: Limits) -> Action:
    if wanted is Wanted.RUN and seen.digest is not None and seen.digest != digest:
        return Action(Verb.STOP, Phase.STOPPED, "its placement asks for another start")
    trouble, until = _trouble(seen, now, limits)
    if trouble is not None:
        return _failed(seen, now, trouble)
    if wanted is Wanted.DRAIN:
        return _settle(seen, Phase.DRAINING, at=until)
    if not seen.proven:
        return _settle(seen, Phase.LOADING, seen.waiting_for, at=until)
    if seen.unhealthy_since is not None:
        return _settle(seen, Phase.LOADING, "was ready, /health now says no", at=until)
    if seen.canary_failures:
        return _settle(seen, Phase.LOADING, "was ready, now idle and gave no token to a canary", at=until)
    if seen.frozen_since is not None:
        if now - seen.frozen_since >= limits.suspect:
            return _settle(seen, Phase.LOADING, "suspect: requests run and no counter moves", at=until)
        until = min(inf if until is None else until, seen.frozen_since + limits.suspect)
    return _settle(seen, Phase.READY, at=until)


def _trouble(seen: Seen, now: float, limits: Limits) -> tuple[str | None, float | None]:
    """What makes a running engine as good as dead, or when the next such judgement is due."""
    if seen.gpu_lost is not None:
        return seen.gpu_lost, None
    due: list[float] = []

    def over(since: float | None, limit: float) -> bool:
        if since is None:
            return False
        due.append(since + limit)
        return now - since >= limit

    if not seen.proven and seen.started_at is not None:
        by = ready_by(seen.started_at, limits.start_deadline, seen.log_grew_at)
        if now >= by:
            step = f", {seen.waiting_for}" if seen.waiting_for else ""
            within = f"not ready within {limits.start_deadline:g} s{step}"
            return f"{within}; raise start_deadline_seconds if it only needs longer", None
        due.append(by)
    if over(seen.frozen_since, limits.frozen):
        return f"frozen: requests run and no counter moved for {limits.frozen:g} s", None
    if seen.proven and seen.canary_failures >= MOST_FAILURES:
        return f"idle, and it gave no token to {seen.canary_failures} canaries in a row", None
    if seen.proven and over(seen.silent_since, limits.silent):
        return f"the process lives and has answered nothing for {limits.silent:g} s", None
    if seen.proven and over(seen.unhealthy_since, limits.unhealthy):
        return f"/health has said no for {limits.unhealthy:g} s", None
    return None, min(due, default=None)


def _failed(seen: Seen, now: float, reason: str) -> Action:
    last = len([at for at in seen.failures.times if now - at < WINDOW_SECONDS]) + 1 >= MOST_IN_WINDOW
    if last:
        reason = f"{reason}. Given up after {MOST_IN_WINDOW} failures in {WINDOW_SECONDS / 60:.0f} minutes: "
        reason += "correct the cause, then restart the deployment or change its spec"
    return Action(Verb.STOP, Phase.FAILED, reason, failure=True)


def _absent(wanted: Wanted, digest: str, seen: Seen, now: float) -> Action:
    if wanted is Wanted.DRAIN:
        # Nothing runs, so there is nothing to drain and nothing to start.
        if seen.phase in {Phase.FAILED, Phase.STOPPED}:
            return Action(Verb.WAIT, seen.phase, seen.phase_reason)
        return _settle(seen, Phase.STOPPED, "nothing ran when it was to be drained")
    if seen.refused is not None:
        return _settle(seen, Phase.FAILED, seen.refused)
    if seen.phase is Phase.FAILED:
        if seen.given_up == digest:
            return Action(Verb.WAIT, Phase.FAILED, seen.phase_reason)
        due = seen.failures.due()
        if seen.given_up is None and due is not None and now < due:
            return Action(Verb.WAIT, Phase.FAILED, seen.phase_reason, at=due)
        return _settle(seen, Phase.PENDING)
    if seen.phase is Phase.STOPPED:
        return _settle(seen, Phase.PENDING)
    if seen.phase in _RAN:
        # It is proven that nothing is left of it: told as what it is.
        return Action(Verb.MOVE, Phase.FAILED, seen.exit_reason or "the engine is gone", failure=True)
    if seen.image is not None:
        return _fetch(seen, seen.image)
    if seen.blocked is not None:
        return _settle(seen, Phase.PENDING, seen.blocked) if seen.phase is Phase.PENDING else _again(seen)
    return Action(Verb.START, Phase.CREATING)


def _fetch(seen: Seen, image: ImageState) -> Action:
    if image.failed is not None:
        how = "pulled" if image.what == "image" else "fetched"
        reason = f"its {image.what} could not be {how}: {image.failed}"
        return Action(Verb.MOVE, Phase.FAILED, reason, failure=True)
    if seen.phase is Phase.PULLING:
        return Action(Verb.WAIT, Phase.PULLING, image.words)
    if seen.phase is Phase.PENDING:
        return Action(Verb.PULL, Phase.PULLING, image.words)
    return _settle(seen, Phase.PENDING)


_RAN = frozenset({Phase.LOADING, Phase.READY, Phase.DRAINING})


def _again(seen: Seen) -> Action:
    return Action(Verb.MOVE, Phase.FAILED, seen.blocked)


def _settle(seen: Seen, phase: Phase, reason: str | None = None, *, at: float | None = None) -> Action:
    """Take the phase, by one step the table allows; wait when it is taken."""
    if seen.phase is phase:
        return Action(Verb.WAIT, phase, reason, at=at)
    return Action(Verb.MOVE, first_step(seen.phase, phase), reason, at=at)


#: Phases a way may lead through; the others mean something by themselves.
_PASSAGES = frozenset({Phase.PENDING, Phase.CREATING, Phase.LOADING})


def first_step(current: Phase, target: Phase) -> Phase:
    """The first phase on the shortest way to `target` that the table allows; by way of `failed` when there is no other."""
    ways: list[tuple[Phase, Phase]] = [(step, step) for step in sorted(TRANSITIONS[current])]
    seen = {current}
    while ways:
        first, here = ways.pop(0)
        if here is target:
            return first
        if here in seen or here not in _PASSAGES:
            continue
        seen.add(here)
        ways += [(first, step) for step in sorted(TRANSITIONS[here])]
    return Phase.FAILED
